"""Evaluate models on benchmarks: greedy, one graded line a problem.

Every model writes into its own folder, ``eval/<tag>/<benchmark>.jsonl``. A
wrong answer is one of three kinds that call for different remedies: cut at
the token cap (``truncated_wrong``), finished without an answer
(``no_answer``), or finished with a wrong one (``finished_wrong``).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from helpers import stats
from helpers.checkpoints import require_current_merge
from helpers.engines import Engine, open_engine
from helpers.errors import LabError, did_you_mean
from helpers.models import model_path
from helpers.problems import load_problems
from helpers.recipes import Recipe
from helpers.recipes.schema import BenchmarkConfig
from helpers.records import Completion, Problem, read_json, read_records
from helpers.runs import (
    RETIRED_INPUTS,
    RunDir,
    hash_file,
    require_space,
    resolve_data,
)
from helpers.sample_file import SampleFile, is_empty
from helpers.sample_store import describe_sampling, open_samples
from helpers.sampling import iter_requests, sample_missing, say_unusable
from helpers.verdicts import load_graded, say_old_grades

TAGS = ("base", "sft", "dpo")
SPACE_MB = 50
TOP_P = 1.0


def run_evaluate(
    recipe: Recipe,
    run: RunDir,
    tags: Sequence[str] = TAGS,
    *,
    benchmarks: Sequence[str] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Score the models ``tags`` on the recipe's benchmarks.

    A model that was scored with the same inputs is loaded; a killed run goes
    on with the problems that lack a line. The stage ``evaluate/<tag>`` grows
    when it is called for further benchmarks.

    Args:
        tags: base, sft, dpo or dpo-<variant>.
        benchmarks: names from the recipe; None for all of them.
        force: set a model's old results aside and score it again, on all
            benchmarks that it had been scored on.

    Returns:
        ``{tag: {benchmark: {k, n, truncated_wrong, finished_wrong,
        no_answer, too_long, empty, mean_tokens}}}``; k and the three kinds
        of wrong add up to n.

    Raises:
        LabError: unknown tag or benchmark, no such model or problem file,
            results of other inputs in the folder.
    """
    if recipe.evaluate.n > 1:
        raise LabError(
            f"evaluate.n={recipe.evaluate.n}: this stage draws one sample a "
            "problem.",
            fix="set evaluate.n=1; mathslm plan counts more",
        )
    chosen = _choose_benchmarks(recipe, benchmarks)
    sets = {b.name: load_problems(b.path, b.n) for b in chosen}
    paths = {tag: _require_model(recipe, run, tag) for tag in tags}
    require_space(run.path, SPACE_MB)
    return {
        tag: _evaluate_model(recipe, run, tag, paths[tag], sets, force)
        for tag in paths
    }


def load_results(run: RunDir, tag: str, benchmark: str) -> list[Completion]:
    """The lines of one model on one benchmark, in the problems' order.

    Raises:
        LabError: this model has not been run on it, or not to the end, or
            models were graded on it by different versions of the grader.
    """
    config = _choose_benchmarks(run.recipe, [benchmark])[0]
    command = f"mathslm evaluate --model {tag} --benchmark {benchmark}"
    path = run.file("eval", tag, f"{benchmark}.jsonl")
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


def summarize_results(rows: Sequence[Completion]) -> dict[str, Any]:
    """Counts of one benchmark: right, and wrong by kind; mean tokens.

    ``no_answer`` holds those that were not drawn at all (``too_long``: the
    prompt and the cap exceed the context) and most ``empty`` ones.
    """
    wrong = [row for row in rows if not row.correct]
    cut = [row for row in wrong if row.finish_reason == "length"]
    ended = [row for row in wrong if row.finish_reason != "length"]
    silent = [row for row in ended if row.extracted is None]
    return {
        "k": len(rows) - len(wrong),
        "n": len(rows),
        "truncated_wrong": len(cut),
        "finished_wrong": len(ended) - len(silent),
        "no_answer": len(silent),
        "too_long": sum(row.finish_reason == "too_long" for row in rows),
        "empty": sum(map(is_empty, rows)),
        "mean_tokens": statistics.fmean(row.tokens for row in rows),
    }


def _choose_benchmarks(
    recipe: Recipe, names: Sequence[str] | None
) -> list[BenchmarkConfig]:
    known = {b.name: b for b in recipe.evaluate.benchmarks}
    for name in names or ():
        if name not in known:
            raise LabError(
                f"There is no benchmark '{name}'.{did_you_mean(name, known)}",
                fix="choose from: " + ", ".join(known),
            )
    return [known[name] for name in dict.fromkeys(names or known)]


def _require_model(recipe: Recipe, run: RunDir, tag: str) -> Path:
    path = model_path(recipe, run, tag)
    if tag != "base" and not (path / "config.json").is_file():
        kind, _, variant = tag.partition("-")
        option = f" --variant {variant}" if variant else ""
        raise LabError(
            f"There is no merged model '{tag}' at {path}.",
            fix=f"mathslm merge --model {kind}{option} --run-dir {run.label}",
        )
    require_current_merge(run, tag)
    return path


def _describe_inputs(recipe: Recipe, path: Path) -> dict[str, str]:
    """What every line depends on besides its own problem."""
    return describe_sampling(
        recipe,
        path,
        temperature=recipe.evaluate.temperature,
        top_p=TOP_P,
        max_new_tokens=recipe.evaluate.max_new_tokens,
    )


def _describe_benchmarks(recipe: Recipe, names: set[str]) -> dict[str, str]:
    return {
        f"benchmark {b.name}": f"{hash_file(resolve_data(b.path))} n={b.n}"
        for b in recipe.evaluate.benchmarks
        if b.name in names or f"benchmark {b.name}" in names
    }


def _read_stage_inputs(run: RunDir, stage: str) -> dict[str, str]:
    path = run.file("stages", f"{stage.replace('/', '-')}.json")
    inputs = read_json(path)["inputs"] if path.is_file() else {}
    return {k: v for k, v in inputs.items() if k not in RETIRED_INPUTS}


def _load_earlier(
    recipe: Recipe, earlier: dict[str, str]
) -> dict[str, list[Problem]]:
    """The problems of the benchmarks that a stage's inputs name."""
    return {
        b.name: load_problems(b.path, b.n)
        for b in recipe.evaluate.benchmarks
        if f"benchmark {b.name}" in earlier
    }


def _evaluate_model(
    recipe: Recipe,
    run: RunDir,
    tag: str,
    path: Path,
    sets: dict[str, list[Problem]],
    force: bool,
) -> dict[str, Any]:
    stage = f"evaluate/{tag}"
    common = _describe_inputs(recipe, path)
    earlier, asked = _read_stage_inputs(run, stage), list(sets)
    if force:
        # Scores of before and after must not stand side by side.
        sets = _load_earlier(recipe, earlier) | sets
    inputs = common | _describe_benchmarks(recipe, {*sets, *earlier})
    # Other benchmarks than last time extend the stage; a change is refused.
    extends = not force and earlier.items() < inputs.items()
    if not extends and run.is_done(stage, inputs, force):
        print(f"{stage}: done with these inputs, loaded.")
        say_old_grades(run, [_result_name(tag, name) for name in asked])
        saved = run.metrics()[stage]
        return {name: saved[name] for name in asked}
    saved = run.metrics().get(stage, {}) if earlier and not force else {}
    with run.stage(stage, inputs) as record:
        scores = _score_sets(recipe, run, tag, path, sets, common, force)
        names = [b.name for b in recipe.evaluate.benchmarks]
        merged = saved | scores
        record["metrics"] = {n: merged[n] for n in names if n in merged}
        record["outputs"] = [_result_name(tag, n) for n in record["metrics"]]
        say_old_grades(run, record["outputs"])
    return {name: scores[name] for name in asked}


def _score_sets(
    recipe: Recipe,
    run: RunDir,
    tag: str,
    path: Path,
    sets: dict[str, list[Problem]],
    common: dict[str, str],
    force: bool,
) -> dict[str, Any]:
    """Sample what is missing, benchmark by benchmark; return the counts."""
    scores: dict[str, Any] = {}
    engine: Engine | None = None
    with ExitStack() as stack:
        for name, problems in sets.items():
            inputs = common | _describe_benchmarks(recipe, {name})
            samples = open_samples(run, _result_name(tag, name), inputs, force)
            if samples.count_missing(problems, 1):
                engine = engine or stack.enter_context(
                    open_engine(recipe, path, log_dir=run.file("logs"))
                )
                _answer(recipe, f"{tag} on {name}", problems, samples, engine)
            rows = read_records(samples.path, Completion)
            scores[name] = summarize_results(rows)
            _say_score(f"{tag} on {name}", scores[name])
    return scores


def _say_score(title: str, counts: dict[str, Any]) -> None:
    say_unusable(title, counts["too_long"], counts["empty"], counts["n"])
    print(f"{title}: {stats.proportion(counts['k'], counts['n'])}")


def _answer(
    recipe: Recipe,
    title: str,
    problems: Sequence[Problem],
    samples: SampleFile,
    engine: Engine,
) -> None:
    requests = iter_requests(
        problems,
        engine.tokenizer,
        recipe.data.prompt_template,
        n=1,
        run_seed=recipe.seed,
        temperature=recipe.evaluate.temperature,
        top_p=TOP_P,
        max_new_tokens=recipe.evaluate.max_new_tokens,
    )
    sample_missing(
        engine,
        requests,
        samples,
        {p.id: p.answer for p in problems},
        title=title,
        total=len(problems),
    )


def _result_name(tag: str, benchmark: str) -> str:
    return f"eval/{tag}/{benchmark}.jsonl"


if __name__ == "__main__":
    from helpers.cli import main_stage

    main_stage("evaluate")
