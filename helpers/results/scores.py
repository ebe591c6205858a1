"""Read evaluations back and count what they hold. No torch.

``eval/<tag>/<benchmark>.jsonl`` holds one graded line a problem;
``eval/<tag>/<benchmark>.t<temperature>.jsonl`` several samples of each,
drawn at that temperature. The two lie side by side and never mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helpers.base import (
    BenchmarkConfig,
    Completion,
    LabError,
    Recipe,
    RunDir,
    did_you_mean,
    group_samples,
    read_records,
)
from helpers.problems import load_problems
from helpers.results.outcomes import summarize_results
from helpers.results.sampled import require_samples, summarize_samples
from helpers.results.verdicts import load_graded


def result_name(
    tag: str, benchmark: str, temperature: float | None = None
) -> str:
    """The file of a model's results, as a path in the run.

    Args:
        temperature: of several samples a problem; None for one line each.
    """
    return f"eval/{tag}/{mark_sampled(benchmark, temperature)}.jsonl"


def mark_sampled(benchmark: str, temperature: float | None) -> str:
    """``main`` → ``main.t0.7``, the stem of the file of several samples."""
    return (
        benchmark if temperature is None else f"{benchmark}.t{temperature:g}"
    )


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


def load_results(run: RunDir, tag: str, benchmark: str) -> list[Completion]:
    """The lines of one model on one benchmark, in the problems' order.

    Raises:
        LabError: this model has not been run on it, or not to the end, or
            models were graded on it by different versions of the grader.
    """
    config = choose_benchmarks(run.recipe, [benchmark])[0]
    command = f"mathslm evaluate --model {tag} --benchmark {benchmark}"
    path = run.file(result_name(tag, benchmark))
    if not path.is_file():
        raise LabError(
            f"{run.label} has no results of '{tag}' on '{benchmark}'.",
            fix=f"{command} --run-dir {run.label}",
        )
    graded = load_graded(run, benchmark, tag)
    rows = {row.problem_id: row for row in graded}
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
) -> dict[str, list[Completion]]:
    """The first ``n`` samples of each problem, in the problems' order.

    Args:
        n: None for as many as every problem has.
        temperature: may be left out where only one was sampled at.

    Raises:
        LabError: no such samples, fewer than ``n`` of a problem, or models
            were graded by different versions of the grader.
    """
    config = choose_benchmarks(run.recipe, [benchmark])[0]
    if temperature is None:
        temperature = _find_temperature(run, tag, benchmark)
    stem = mark_sampled(benchmark, float(temperature))
    if not run.file("eval", tag, f"{stem}.jsonl").is_file():
        raise _explain_no_samples(run, tag, benchmark)
    problems = load_problems(config.path, config.n)
    groups = group_samples(load_graded(run, stem, tag), problems)
    kept = require_samples(groups, n)
    return {key: rows[: n or kept] for key, rows in groups.items()}


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
    """The measures of a finished stage on one benchmark, from its file.

    Args:
        samples: how many samples of each problem are counted.

    Returns:
        as :func:`summarize_results`, for several samples as
        :func:`helpers.results.sampled.summarize_samples`; None without a file.
    """
    kind, _, tag = stage.partition("/")
    mark = kind.removeprefix("evaluate").removeprefix("-t")
    temperature = float(mark) if mark else None
    path = run.file(result_name(tag, benchmark, temperature))
    if not path.is_file():
        return None
    rows = read_records(path, Completion)
    if temperature is None:
        return summarize_results(rows)
    groups: dict[str, list[Completion]] = {}
    for row in sorted(rows, key=lambda row: row.sample):
        groups.setdefault(row.problem_id, []).append(row)
    return summarize_samples(groups, samples)
