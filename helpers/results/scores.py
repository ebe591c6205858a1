"""Read evaluations back, grade them, and count. No torch.

``eval/<tag>/<benchmark>.jsonl`` holds one response a problem;
``eval/<tag>/<benchmark>.t<temperature>.jsonl`` several samples of each,
drawn at that temperature. The two lie side by side and never mix. A file
keeps responses, not verdicts: they are graded when they are read, so every
score of one process comes from one grader.

Of several samples ``avg@k`` is what a user gets from one of k, ``pass@k``
what a perfect chooser could get, a majority vote and best-of-n what two real
choosers get. Intervals are over problems; samples of one problem are alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.base import (
    BenchmarkConfig,
    Completion,
    LabError,
    Recipe,
    RunDir,
    did_you_mean,
    group_samples,
    is_empty,
    read_records,
)
from helpers.grading import (
    GradedCompletion,
    grade_completions,
    is_equivalent,
)
from helpers.problems import load_problems
from helpers.results import stats

OUTCOMES = ("right", "finished_wrong", "truncated_wrong", "no_answer")
BEST_OF = "most probable sample by the model's own mean log-probability"
Samples = Mapping[str, Sequence[GradedCompletion]]


# --- which file holds what -------------------------------------------------


def result_name(
    tag: str, benchmark: str, temperature: float | None = None
) -> str:
    """The file of a model's results, as a path in the run.

    Args:
        temperature: of several samples a problem; None for one line each.
    """
    mark = "" if temperature is None else f".t{temperature:g}"
    return f"eval/{tag}/{benchmark}{mark}.jsonl"


def stage_name(tag: str, temperature: float | None = None) -> str:
    """The stage that makes the file; see :func:`result_name`."""
    kind = "evaluate" if temperature is None else f"evaluate-t{temperature:g}"
    return f"{kind}/{tag}"


def choose_benchmarks(
    recipe: Recipe, names: Sequence[str] | None
) -> list[BenchmarkConfig]:
    """The named benchmarks of the recipe, or all; LabError if unknown."""
    known = {b.name: b for b in recipe.evaluate.benchmarks}
    for name in names or ():
        if name not in known:
            raise LabError(
                f"There is no benchmark '{name}'.{did_you_mean(name, known)}",
                fix="choose from: " + ", ".join(known),
            )
    return [known[name] for name in dict.fromkeys(names or known)]


def list_temperatures(run: RunDir, tag: str, benchmark: str) -> list[float]:
    """At which temperatures several samples of each problem were drawn."""
    head = f"{benchmark}.t"
    found = [
        path.stem.removeprefix(head)
        for path in run.file("eval", tag).glob(f"{head}*.jsonl")
    ]
    return sorted(float(text) for text in found if _is_number(text))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


# --- read and grade --------------------------------------------------------


def read_graded_file(run: RunDir, name: str) -> list[GradedCompletion]:
    """The completions of a file of the run, with their verdicts.

    Args:
        name: a path in the run, such as ``samples/distill.jsonl``.

    Raises:
        LabError: a damaged line, or a row whose reference answer is lost.
    """
    return _grade(run, name, read_records(run.file(name), Completion))


def _grade(
    run: RunDir, name: str, rows: Sequence[Completion]
) -> list[GradedCompletion]:
    stored = all(row.gold for row in rows)
    golds = {} if stored else load_golds(run, name)
    return list(grade_completions(rows, golds))


def load_golds(run: RunDir, name: str) -> dict[str, str]:
    """Reference answers by problem id, for a file whose rows have none.

    They are those of the problem file that the recipe names: the training
    problems for ``samples/…``, the benchmark for ``eval/…``.
    """
    if Path(name).parts[0] == "samples":
        source = run.recipe.data.train
    else:
        stem, known = Path(name).stem, run.recipe.evaluate.benchmarks
        found = [
            b.path
            for b in known
            if stem == b.name or stem.startswith(f"{b.name}.t")
        ]
        if not found:
            raise LabError(
                f"{run.file(name)} holds rows without a 'gold' answer.",
                why=f"the recipe has no benchmark '{stem}' to take them from",
                fix="move the file out of the run folder, or add 'gold' to it",
            )
        source = found[0]
    return {problem.id: problem.answer for problem in load_problems(source)}


def load_results(
    run: RunDir, tag: str, benchmark: str
) -> list[GradedCompletion]:
    """The lines of one model on one benchmark, in the problems' order.

    Raises:
        LabError: this model has not been run on it, or not to the end.
    """
    rows = read_responses(run, tag, benchmark)
    return _grade(run, result_name(tag, benchmark), rows)


def read_responses(run: RunDir, tag: str, benchmark: str) -> list[Completion]:
    """As :func:`load_results`, not graded."""
    config = choose_benchmarks(run.recipe, [benchmark])[0]
    command = f"mathslm evaluate --model {tag} --benchmark {benchmark}"
    path = run.file(result_name(tag, benchmark))
    if not path.is_file():
        raise LabError(
            f"{run.label} has no results of '{tag}' on '{benchmark}'.",
            fix=f"{command} --run-dir {run.label}",
        )
    rows = {row.problem_id: row for row in read_records(path, Completion)}
    problems = load_problems(config.path, config.n)
    missing = [p.id for p in problems if p.id not in rows]
    if missing:
        raise LabError(
            f"{path} holds {len(problems) - len(missing)} of "
            f"{len(problems)} problems.",
            why="a score over a part would depend on which part it is",
            fix=f"{command} --run-dir {run.label}",
        )
    return [rows[p.id] for p in problems]


def load_samples(
    run: RunDir,
    tag: str,
    benchmark: str,
    *,
    n: int | None = None,
    temperature: float | None = None,
) -> dict[str, list[GradedCompletion]]:
    """The first ``n`` samples of each problem, in the problems' order.

    Args:
        n: None for as many as every problem has.
        temperature: may be left out where only one was sampled at.

    Raises:
        LabError: no such samples, or fewer than ``n`` of a problem.
    """
    config = choose_benchmarks(run.recipe, [benchmark])[0]
    if temperature is None:
        temperature = _find_temperature(run, tag, benchmark)
    name = result_name(tag, benchmark, float(temperature))
    if not run.file(name).is_file():
        raise _explain_no_samples(run, tag, benchmark)
    problems = load_problems(config.path, config.n)
    groups = group_samples(read_graded_file(run, name), problems)
    kept = require_samples(groups, n)
    return {key: rows[: n or kept] for key, rows in groups.items()}


def _find_temperature(run: RunDir, tag: str, benchmark: str) -> float:
    found = list_temperatures(run, tag, benchmark)
    if not found:
        raise _explain_no_samples(run, tag, benchmark)
    if len(found) > 1:
        raise LabError(
            f"'{tag}' was sampled on '{benchmark}' at the temperatures "
            f"{', '.join(f'{t:g}' for t in found)}.",
            fix="say which one, e.g. temperature=1.0",
        )
    return found[0]


def _explain_no_samples(run: RunDir, tag: str, benchmark: str) -> LabError:
    return LabError(
        f"{run.label} has no several samples of '{tag}' on '{benchmark}'.",
        fix=f"mathslm evaluate --model {tag} --benchmark {benchmark} "
        "--set evaluate.n=4 --set evaluate.temperature=1 "
        f"--run-dir {run.label}",
    )


def measure_benchmark(
    run: RunDir, stage: str, benchmark: str, samples: int
) -> dict[str, Any] | None:
    """The measures of a stage on one benchmark, from its file.

    Args:
        samples: how many samples of each problem are counted.

    Returns:
        as :func:`summarize_results`, for several samples as
        :func:`summarize_samples`; None without a file.
    """
    kind, _, tag = stage.partition("/")
    mark = kind.removeprefix("evaluate").removeprefix("-t")
    temperature = float(mark) if mark else None
    name = result_name(tag, benchmark, temperature)
    if not run.file(name).is_file():
        return None
    rows = read_graded_file(run, name)
    if temperature is None:
        return summarize_results(rows)
    groups: dict[str, list[GradedCompletion]] = {}
    for row in sorted(rows, key=lambda row: row.sample):
        groups.setdefault(row.problem_id, []).append(row)
    return summarize_samples(groups, samples)


# --- one response a problem ------------------------------------------------


def classify_outcome(row: GradedCompletion) -> str:
    """One of OUTCOMES; exactly one holds for every completion."""
    if row.correct:
        return "right"
    if row.finish_reason == "length":
        return "truncated_wrong"
    return "no_answer" if row.extracted is None else "finished_wrong"


def count_outcomes(rows: Iterable[GradedCompletion]) -> dict[str, int]:
    """How many rows have each of OUTCOMES; they add up to all rows."""
    counts = dict.fromkeys(OUTCOMES, 0)
    for row in rows:
        counts[classify_outcome(row)] += 1
    return counts


def summarize_results(rows: Sequence[GradedCompletion]) -> dict[str, Any]:
    """Counts of one benchmark: right, and wrong by kind; mean tokens.

    ``no_answer`` holds those that were not drawn at all (``too_long``: the
    prompt and the cap exceed the context) and most ``empty`` ones.

    Raises:
        LabError: there is no row.
    """
    if not rows:
        raise LabError(
            "There is no result to count: the benchmark is empty.",
            fix="look at its problem file and at n in the recipe",
        )
    counts = count_outcomes(rows)
    return {
        "k": counts["right"],
        "n": len(rows),
        "truncated_wrong": counts["truncated_wrong"],
        "finished_wrong": counts["finished_wrong"],
        "no_answer": counts["no_answer"],
        "too_long": sum(row.finish_reason == "too_long" for row in rows),
        "empty": sum(map(is_empty, rows)),
        "mean_tokens": statistics.fmean(row.tokens for row in rows),
    }


# --- several samples a problem ---------------------------------------------


def require_samples(groups: Samples, k: int | None = None) -> int:
    """Check that every problem has the same samples, and at least k.

    Returns:
        how many samples every problem has.

    Raises:
        LabError: no problem, a problem without samples, a sample that is
            missing or there twice, or k larger than the samples kept.
    """
    if not groups:
        raise LabError(
            "There is no problem with samples: the benchmark is empty.",
            fix="look at its problem file and at n in the recipe",
        )
    for name, rows in groups.items():
        numbers = [row.sample for row in rows]
        if numbers != list(range(len(rows))):
            raise LabError(
                f"Problem {name} has the samples {numbers}, not 0, 1, 2, ….",
                why="a sample is missing or stands there twice",
                fix="run the same mathslm evaluate again: it draws only "
                "what is missing",
            )
    kept = min(map(len, groups.values()))
    if not kept:
        name = next(name for name, rows in groups.items() if not rows)
        raise LabError(
            f"Problem {name} has no sample.",
            why="a score over a part would depend on which part it is",
            fix="run the same mathslm evaluate again",
        )
    if k is not None:
        stats.require_k(k, kept)
    return kept


def count_right(rows: Sequence[GradedCompletion]) -> int:
    """How many rows are right."""
    return sum(row.correct for row in rows)


def average_at_k(groups: Samples, k: int) -> stats.Interval:
    """avg@k: the share of right ones among the first k samples.

    The mean over problems, with a bootstrap interval over problems.

    Raises:
        LabError: fewer than two problems, or fewer than k samples of one.
    """
    require_samples(groups, k)
    return stats.bootstrap_mean(
        [count_right(rows[:k]) / k for rows in groups.values()]
    )


def pass_at_k(groups: Samples, k: int) -> stats.Interval:
    """pass@k: the chance that one of k samples is right, without bias.

    Estimated from all samples kept, see
    :func:`helpers.results.stats.estimate_pass_at_k`; the mean over problems,
    with a bootstrap interval over problems.

    Raises:
        LabError: fewer than two problems, or fewer than k samples of one.
    """
    require_samples(groups, k)
    return stats.bootstrap_mean(
        [
            stats.estimate_pass_at_k(len(rows), count_right(rows), k)
            for rows in groups.values()
        ]
    )


def pass_curve(groups: Samples) -> dict[int, stats.Interval]:
    """pass@k for every k that the samples allow."""
    kept = require_samples(groups)
    return {k: pass_at_k(groups, k) for k in range(1, kept + 1)}


@dataclass(frozen=True)
class Vote:
    """What most samples of a problem answer.

    ``answer`` is None when no sample has one; ``votes`` of ``of`` samples
    agree. ``correct`` is the grader's verdict on that answer.
    """

    answer: str | None
    votes: int
    of: int
    correct: bool


def vote(rows: Sequence[GradedCompletion]) -> Vote:
    """The answer that most samples agree on.

    Answers that the grader calls equivalent count as one, whatever their
    spelling. A sample without an answer has no vote; of equally many votes
    the answer that came first wins.
    """
    if not rows:
        raise LabError("There is no sample to vote.")
    firsts: list[GradedCompletion] = []  # the first sample of each answer
    votes: list[int] = []
    known: dict[str, int] = {}  # spelling: its place in both lists
    for row in rows:
        if row.extracted is None:
            continue
        if row.extracted not in known:
            known[row.extracted] = _find_answer(row.extracted, firsts)
        place = known[row.extracted]
        if place == len(firsts):
            firsts.append(row)
            votes.append(0)
        votes[place] += 1
    if not firsts:
        return Vote(None, 0, len(rows), False)
    most = max(votes)
    first = firsts[votes.index(most)]  # the first of equals
    return Vote(first.extracted, most, len(rows), first.correct)


def _find_answer(answer: str, firsts: Sequence[GradedCompletion]) -> int:
    """Where an equivalent answer stands; the length when there is none."""
    for place, first in enumerate(firsts):
        if is_equivalent(answer, first.extracted or ""):
            return place
    return len(firsts)


def majority_at_k(groups: Samples, k: int) -> dict[str, bool]:
    """By problem id, whether the vote of the first k samples is right."""
    require_samples(groups, k)
    return {name: vote(rows[:k]).correct for name, rows in groups.items()}


def best_of_n(groups: Samples, n: int) -> dict[str, bool]:
    """By problem id, whether the most confident of n samples is right.

    Chosen by the model's own mean log-probability a token, which knows
    nothing of the gold answer: usual texts are probable, right or not. A
    sample that was not drawn is never chosen over one that was.

    Raises:
        LabError: fewer than n samples, or a log-probability that is nan.
    """
    require_samples(groups, n)
    return {
        name: _most_probable(rows[:n]).correct for name, rows in groups.items()
    }


def _most_probable(rows: Sequence[GradedCompletion]) -> GradedCompletion:
    for row in rows:
        if not math.isfinite(row.mean_logprob):
            raise LabError(
                f"Sample {row.sample} of {row.problem_id} has the mean "
                f"log-probability {row.mean_logprob}.",
                why="the best of several cannot be chosen by it",
                fix="use a majority vote, or sample with an engine that "
                "gives log-probabilities",
            )
    drawn = [row for row in rows if row.tokens] or rows
    return max(drawn, key=lambda row: row.mean_logprob)


def summarize_samples(groups: Samples, n: int) -> dict[str, Any]:
    """The measures of n samples a problem, for ``metrics.json``.

    ``avg`` and every ``pass`` are ``[value, low, high]`` as fractions;
    ``majority`` and ``best_of`` count problems (``best_of`` is None where
    log-probabilities are missing); the four outcomes count samples.
    """
    require_samples(groups, n)
    kept = {name: rows[:n] for name, rows in groups.items()}
    rows = [row for part in kept.values() for row in part]
    scored = all(math.isfinite(row.mean_logprob) for row in rows)
    average = average_at_k(kept, n)
    return {
        "problems": len(kept),
        "samples": n,
        "avg": [average.value, average.low, average.high],
        "pass": {
            str(k): [found.value, found.low, found.high]
            for k, found in pass_curve(kept).items()
        },
        "majority": sum(majority_at_k(kept, n).values()),
        "best_of": sum(best_of_n(kept, n).values()) if scored else None,
        **count_outcomes(rows),
        "mean_tokens": statistics.fmean(row.tokens for row in rows),
    }


# --- a table of scores -----------------------------------------------------


def score_table(
    run: RunDir, tags: Iterable[str], recipe: Recipe
) -> list[tuple[str, str, str]]:
    """Rows (model, benchmark, score) of what the run measured.

    Args:
        recipe: its ``evaluate.n`` and ``temperature`` say which scores: one
            row a benchmark, or of several samples one a measure.
    """
    asked = recipe.evaluate
    temperature = asked.temperature if asked.n > 1 else None
    metrics, rows = run.metrics(), []
    for tag in tags:
        found = metrics.get(stage_name(tag, temperature), {})
        for name, measured in found.items():
            if temperature is None:
                score = stats.proportion(measured["k"], measured["n"])
                rows.append((tag, name, str(score)))
            else:
                lines = _list_measures(measured)
                rows.append((tag, name, lines[0]))
                rows += [("", "", line) for line in lines[1:]]
    return rows


def _list_measures(measured: Mapping[str, Any]) -> list[str]:
    """Average, perfect choice, vote, best of n; one line each."""
    n, problems = measured["samples"], measured["problems"]
    lines = [
        f"avg@{n} {stats.Interval(*measured['avg'])}",
        f"pass@{n} {stats.Interval(*measured['pass'][str(n)])}",
        f"majority {stats.proportion(measured['majority'], problems)}",
    ]
    if measured["best_of"] is not None:
        chosen = stats.proportion(measured["best_of"], problems)
        lines.append(f"best of {n} {chosen}")
    return lines
