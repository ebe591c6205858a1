"""Evaluate models on benchmarks: one line a problem, or several samples.

One graded line a problem, greedy by default, goes to
``eval/<tag>/<benchmark>.jsonl``; with ``evaluate.n`` above 1 that many
samples a problem go to a file beside it, named by their temperature. What is
on disk is never sampled again: more samples are added to those that are
there. Reading back and counting is in :mod:`helpers.results.scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from helpers.base import (
    RETIRED_INPUTS,
    Completion,
    LabError,
    Problem,
    Recipe,
    RunDir,
    iter_records,
    load_recipe,
    read_json,
    require_current_merge,
    require_space,
    write_records,
)
from helpers.models import model_path, settle_model
from helpers.problems import hash_problems, load_problems
from helpers.results import (
    choose_benchmarks,
    load_results,
    load_samples,
    measure_benchmark,
    result_name,
    stage_name,
    stats,
    summarize_results,
)
from helpers.sampling import (
    Engine,
    SampleFile,
    describe_sampling,
    iter_requests,
    open_engine,
    open_samples,
    sample_missing,
    say_unusable,
)

TAGS = ("base", "sft", "dpo")
SPACE_MB = 50
TOP_P = 1.0
SAMPLES = "samples"  # the input that may grow

__all__ = [
    "TAGS",
    "load_results",
    "load_samples",
    "run_evaluate",
    "summarize_results",
]


def run_evaluate(
    recipe: Recipe,
    run: RunDir,
    tags: Sequence[str] = TAGS,
    *,
    benchmarks: Sequence[str] | None = None,
    n: int | None = None,
    temperature: float | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Score the models ``tags`` on the recipe's benchmarks.

    A model that was scored with the same inputs is loaded; a killed run goes
    on with the samples that lack a line. The stage ``evaluate/<tag>`` grows
    when it is called for further benchmarks. Several samples a problem are a
    stage of their own, ``evaluate-t<temperature>/<tag>``, which also grows
    when more samples are asked for; nothing of one stage touches the other.

    Args:
        tags: base, sft, dpo or dpo-<variant>.
        benchmarks: names from the recipe; None for all of them.
        n, temperature: instead of the recipe's.
        force: set a model's old results aside and score it again, on all
            benchmarks that it had been scored on.

    Returns:
        ``{tag: {benchmark: {k, n, truncated_wrong, finished_wrong,
        no_answer, too_long, empty, mean_tokens}}}``; k and the three kinds
        of wrong add up to n. For several samples what
        :func:`helpers.results.summarize_samples` gives.

    Raises:
        LabError: unknown tag or benchmark, no such model or problem file,
            results of other inputs in the folder, several greedy samples.
    """
    recipe = _choose_settings(recipe, n, temperature)
    if recipe.evaluate.n > 1:
        run = _keep_settings(run, recipe)
    chosen = choose_benchmarks(recipe, benchmarks)
    sets = {b.name: load_problems(b.path, b.n) for b in chosen}
    _require_problems(sets, recipe.evaluate.n)
    for tag in tags:  # refused before a model is loaded
        _require_model(recipe, run, tag)
    require_space(run.path, SPACE_MB)
    recipe = settle_model(recipe, run)
    paths = {tag: _require_model(recipe, run, tag) for tag in tags}
    return {
        tag: _evaluate_model(recipe, run, tag, paths[tag], sets, force)
        for tag in paths
    }


def _choose_settings(
    recipe: Recipe, n: int | None, temperature: float | None
) -> Recipe:
    """The recipe with n and temperature as asked for."""
    asked = {"n": n, "temperature": temperature}
    changes = {key: value for key, value in asked.items() if value is not None}
    evaluate = recipe.evaluate.model_copy(update=changes)
    stats.require_k(1, evaluate.n)
    if evaluate.n > 1 and not evaluate.temperature > 0:
        raise LabError(
            f"{evaluate.n} samples a problem at temperature "
            f"{evaluate.temperature:g}.",
            why="greedy samples of one problem are copies of each other",
            fix="add --set evaluate.temperature=1, or set evaluate.n=1",
        )
    return recipe.model_copy(update={"evaluate": evaluate})


def _require_problems(sets: dict[str, list[Problem]], n: int) -> None:
    """Refuse a set that no score can be given on."""
    for name, problems in sets.items():
        if len(problems) >= (2 if n > 1 else 1):
            continue
        count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        raise LabError(
            f"Benchmark '{name}' has {count}.",
            why="a score needs a problem, and a mean over problems two",
            fix="look at its problem file and at n in the recipe",
        )


def _keep_settings(run: RunDir, recipe: Recipe) -> RunDir:
    """The run, so that its recipe.yaml keeps its own n and temperature.

    Several samples stand beside the evaluation of the recipe. Were they
    written there, the next ``mathslm evaluate`` would draw several again.
    """
    stored = load_recipe(run.file("recipe.yaml")).evaluate
    changes = {"n": stored.n, "temperature": stored.temperature}
    evaluate = recipe.evaluate.model_copy(update=changes)
    return RunDir(run.path, recipe.model_copy(update={"evaluate": evaluate}))


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
        f"benchmark {b.name}": f"{hash_problems(b.path)} n={b.n}"
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
    stage = stage_name(tag, _mark(recipe))
    common = _describe_inputs(recipe, path)
    earlier, asked = _read_stage_inputs(run, stage), list(sets)
    before = 0 if force else int(earlier.get(SAMPLES, 0))
    n = max(recipe.evaluate.n, before)
    if force or (earlier and n > before > 0):
        # Scores of before and after must not stand side by side.
        sets = _load_earlier(recipe, earlier) | sets
    inputs = common | _describe_benchmarks(recipe, {*sets, *earlier})
    if recipe.evaluate.n > 1:
        inputs[SAMPLES] = str(n)
    # More than last time goes on with the stage; a change is refused.
    extends = not force and _extends(earlier, inputs)
    if not extends and run.is_done(stage, inputs, force):
        print(f"{stage}: done with these inputs, loaded.")
        saved = run.metrics()[stage]
        return {name: saved[name] for name in asked}
    saved = run.metrics().get(stage, {}) if earlier and not force else {}
    with run.stage(stage, inputs) as record:
        scores = _score_sets(recipe, run, tag, path, sets, common, n, force)
        names = [b.name for b in recipe.evaluate.benchmarks]
        merged = saved | scores
        record["metrics"] = {n: merged[n] for n in names if n in merged}
        record["outputs"] = [_file(recipe, tag, x) for x in record["metrics"]]
    return {name: scores[name] for name in asked}


def _extends(earlier: dict[str, str], inputs: dict[str, str]) -> bool:
    """More benchmarks or samples than last time; a change is no extension."""
    same = {key: value for key, value in earlier.items() if key != SAMPLES}
    return earlier != inputs and same.items() <= inputs.items()


def _mark(recipe: Recipe) -> float | None:
    """The temperature that names the files of several samples."""
    return recipe.evaluate.temperature if recipe.evaluate.n > 1 else None


def _file(recipe: Recipe, tag: str, benchmark: str) -> str:
    return result_name(tag, benchmark, _mark(recipe))


def _score_sets(
    recipe: Recipe,
    run: RunDir,
    tag: str,
    path: Path,
    sets: dict[str, list[Problem]],
    common: dict[str, str],
    n: int,
    force: bool,
) -> dict[str, Any]:
    """Sample what is missing, benchmark by benchmark; return the counts."""
    scores: dict[str, Any] = {}
    stage = stage_name(tag, _mark(recipe))
    engine: Engine | None = None
    with ExitStack() as stack:
        for name, problems in sets.items():
            inputs = common | _describe_benchmarks(recipe, {name})
            single = run.file(result_name(tag, name))
            samples = open_samples(
                run, _file(recipe, tag, name), inputs, force
            )
            if n > 1 and not samples.rows:
                _take_single(single, inputs, samples)
            title = f"{tag} on {name}"
            if samples.count_missing(problems, n):
                engine = engine or stack.enter_context(
                    open_engine(recipe, path, log_dir=run.file("logs"))
                )
                _answer(recipe, title, problems, samples, engine, n)
            scores[name] = measure_benchmark(run, stage, name, n) or {}
            _say_score(title, scores[name])
    return scores


def _take_single(
    single: Path, inputs: dict[str, str], samples: SampleFile
) -> None:
    """Sample 0 of each problem, where it was drawn alone with these inputs."""
    stamp = single.with_suffix(".inputs.json")
    if single.is_file() and stamp.is_file() and read_json(stamp) == inputs:
        write_records(samples.path, iter_records(single, Completion))
        samples.refresh()


def _say_score(title: str, counts: dict[str, Any]) -> None:
    if "k" in counts:
        say_unusable(title, counts["too_long"], counts["empty"], counts["n"])
        print(f"{title}: {stats.proportion(counts['k'], counts['n'])}")
        return
    n = counts["samples"]
    average = stats.Interval(*counts["avg"])
    best = stats.Interval(*counts["pass"][str(n)])
    print(f"{title}: avg@{n} {average}, pass@{n} {best}")


def _answer(
    recipe: Recipe,
    title: str,
    problems: Sequence[Problem],
    samples: SampleFile,
    engine: Engine,
    n: int,
) -> None:
    requests = iter_requests(
        problems,
        engine.tokenizer,
        recipe.data.prompt_template,
        n=n,
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
        total=n * len(problems),
        n=n,
    )
