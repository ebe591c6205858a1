"""Evaluation: models answer the recipe's benchmarks.

problems ─ sample what is missing ─ grade ─ count ─ record

One line a problem, greedy by default, goes to
``eval/<tag>/<benchmark>.jsonl``; with ``evaluate.n`` above 1 that many
samples a problem go to a file beside it, named by their temperature. What is
on disk is never sampled again: more samples are added to those that are
there. Reading back and counting is in :mod:`helpers.results.scores`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.base import (
    RETIRED_INPUTS,
    BenchmarkConfig,
    Completion,
    LabError,
    Problem,
    Recipe,
    RunDir,
    Tag,
    iter_records,
    load_recipe,
    open_stage,
    read_json,
    require_current_merge,
    stage_file,
    write_records,
)
from helpers.models import fix_model, model_path
from helpers.problems import hash_problems, is_local, load_problems
from helpers.results import (
    Interval,
    choose_benchmarks,
    measure_benchmark,
    proportion,
    require_k,
    result_name,
    stage_name,
)
from helpers.sampling import (
    Engine,
    SampleFile,
    describe_sampling,
    iter_requests,
    open_engine,
    open_samples,
    report_unusable,
    sample_missing,
)

TAGS = ("base", "sft", "dpo")
SPACE_MB = 50
TOP_P = 1.0
SAMPLES = "samples"  # the input that may grow

ProblemSets = dict[str, list[Problem]]  # benchmark: its problems


def run_evaluate(
    recipe: Recipe,
    run: RunDir,
    tags: Sequence[str] = TAGS,
    *,
    benchmarks: Sequence[str] | None = None,
    n: int | None = None,
    temperature: float | None = None,
    force: bool = False,
    check: bool = False,
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
        check: refuse what can be refused now; load and write nothing. A
            benchmark that would come from the hub is not fetched.

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
    sets = _load_sets(choose_benchmarks(recipe, benchmarks), check)
    _require_problems(sets, recipe.evaluate.n)
    for tag in tags:  # refused before a model is loaded
        _require_model(recipe, run, tag)
    recipe = fix_model(recipe, run, check)
    return {
        tag: evaluate_model(recipe, run, tag, sets, force, check)
        for tag in tags
    }


def _choose_settings(
    recipe: Recipe, n: int | None, temperature: float | None
) -> Recipe:
    """The recipe with n and temperature as asked for."""
    asked = {"n": n, "temperature": temperature}
    changes = {key: value for key, value in asked.items() if value is not None}
    evaluate = recipe.evaluate.model_copy(update=changes)
    require_k(1, evaluate.n)
    if evaluate.n > 1 and not evaluate.temperature > 0:
        raise LabError(
            f"{evaluate.n} samples a problem at temperature "
            f"{evaluate.temperature:g}.",
            why="greedy samples of one problem are copies of each other",
            fix="add --set evaluate.temperature=1, or set evaluate.n=1",
        )
    return recipe.model_copy(update={"evaluate": evaluate})


def _keep_settings(run: RunDir, recipe: Recipe) -> RunDir:
    """The run, so that its recipe.yaml keeps its own n and temperature.

    Several samples stand beside the evaluation of the recipe. Were they
    written there, the next ``mathslm evaluate`` would draw several again.
    """
    stored = load_recipe(run.file("recipe.yaml")).evaluate
    changes = {"n": stored.n, "temperature": stored.temperature}
    evaluate = recipe.evaluate.model_copy(update=changes)
    return RunDir(run.path, recipe.model_copy(update={"evaluate": evaluate}))


def _load_sets(
    benchmarks: Sequence[BenchmarkConfig], check: bool
) -> ProblemSets:
    """The problems by benchmark; a check leaves out those of the hub."""
    return {
        b.name: load_problems(b.path, b.n)
        for b in benchmarks
        if not check or is_local(b.path)
    }


def _require_problems(sets: ProblemSets, n: int) -> None:
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


def _require_model(recipe: Recipe, run: RunDir, tag: str) -> Path:
    path = model_path(recipe, run, tag)
    if tag != "base" and not (path / "config.json").is_file():
        raise LabError(
            f"There is no merged model '{tag}' at {path}.",
            fix=f"mathslm merge --model {Tag.parse(tag).options} "
            f"--run-dir {run.label}",
        )
    require_current_merge(run, tag)
    return path


def evaluate_model(
    recipe: Recipe,
    run: RunDir,
    tag: str,
    sets: ProblemSets,
    force: bool,
    check: bool,
) -> dict[str, Any]:
    """Score one model; ``{benchmark: counts}`` of the benchmarks ``sets``."""
    model = _require_model(recipe, run, tag)
    evaluation = Evaluation(recipe, run, tag, model, force)
    name, asked = evaluation.stage, list(sets)
    # Step 1: what was the stage finished with? It may be asked for more now.
    recorded = _read_inputs(run, name)
    known = recipe.evaluate.benchmarks
    scored = [b for b in known if f"benchmark {b.name}" in recorded]
    before = 0 if force else int(recorded.get(SAMPLES, 0))
    n = max(recipe.evaluate.n, before)
    if recorded and (force or n > before > 0):
        # All its benchmarks are scored again, or get more samples: scores
        # of before and after must not stand side by side.
        sets = _load_sets(scored, check) | sets
    inputs = evaluation.describe({*sets, *(b.name for b in scored)})
    if evaluation.several:
        inputs[SAMPLES] = str(n)
    # Step 2: scores of benchmarks that are not asked for now are kept.
    kept = run.metrics().get(name, {}) if recorded and not force else {}
    names = [b.name for b in known if b.name in kept or b.name in sets]
    # Step 3: more than last time goes on with the stage, a change is refused.
    with open_stage(
        run,
        name,
        inputs,
        outputs=[evaluation.file(benchmark) for benchmark in names],
        megabytes=SPACE_MB,
        grown=not force and _extends(recorded, inputs),
        force=force,
        check=check,
    ) as stage:
        if stage.is_needed:
            scores = kept | evaluation.score(sets, n)
            stage.metrics = {b: scores[b] for b in names}
    return {b: stage.metrics[b] for b in asked if stage.metrics}


def _read_inputs(run: RunDir, stage: str) -> dict[str, str]:
    path = stage_file(run.path, stage)
    inputs = read_json(path)["inputs"] if path.is_file() else {}
    return {k: v for k, v in inputs.items() if k not in RETIRED_INPUTS}


def _extends(recorded: dict[str, str], inputs: dict[str, str]) -> bool:
    """More benchmarks or samples than last time; a change is no extension."""
    same = {key: value for key, value in recorded.items() if key != SAMPLES}
    return recorded != inputs and same.items() <= inputs.items()


@dataclass
class Evaluation:
    """One model, and how the recipe asks it."""

    recipe: Recipe
    run: RunDir
    tag: str
    model: Path
    force: bool

    @property
    def several(self) -> float | None:
        """The temperature, where several samples a problem are drawn."""
        asked = self.recipe.evaluate
        return asked.temperature if asked.n > 1 else None

    @property
    def stage(self) -> str:
        """The name in the run."""
        return stage_name(self.tag, self.several)

    def file(self, benchmark: str) -> str:
        """The completions, a path in the run."""
        return result_name(self.tag, benchmark, self.several)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides about a completion besides its prompt."""
        asked = self.recipe.evaluate
        return {
            "temperature": asked.temperature,
            "top_p": TOP_P,
            "max_new_tokens": asked.max_new_tokens,
        }

    def describe(self, benchmarks: Iterable[str]) -> dict[str, str]:
        """Hashes of all that the completions on benchmarks depend on."""
        inputs = describe_sampling(self.recipe, self.model, **self.settings)
        return inputs | {
            f"benchmark {b.name}": f"{hash_problems(b.path)} n={b.n}"
            for b in self.recipe.evaluate.benchmarks
            if b.name in benchmarks
        }

    def score(self, sets: ProblemSets, n: int) -> dict[str, Any]:
        """Sample what is missing; ``{benchmark: counts}``."""
        scores: dict[str, Any] = {}
        engine: Engine | None = None  # one for all sets, if any
        with ExitStack() as stack:
            for name, problems in sets.items():
                samples = self._open_samples(name, problems)
                title = f"{self.tag} on {name}"
                if samples.count_missing(problems, n):
                    engine = engine or stack.enter_context(
                        open_engine(
                            self.recipe,
                            self.model,
                            log_dir=self.run.file("logs"),
                        )
                    )
                    self._sample(engine, samples, problems, n, title)
                scores[name] = (
                    measure_benchmark(self.run, self.stage, name, n) or {}
                )
                _report_score(title, scores[name])
        return scores

    def _open_samples(
        self, benchmark: str, problems: Sequence[Problem]
    ) -> SampleFile:
        """The completions that are there.

        One that was drawn alone with these inputs is the first of several.
        """
        inputs = self.describe([benchmark])
        golds = {p.id: p.answer for p in problems}
        name = self.file(benchmark)
        samples = open_samples(self.run, name, inputs, self.force, golds)
        single = self.run.file(result_name(self.tag, benchmark))
        stamp = single.with_suffix(".inputs.json")
        if (
            self.several
            and not samples.rows
            and single.is_file()
            and stamp.is_file()
            and read_json(stamp) == inputs
        ):
            write_records(samples.path, iter_records(single, Completion))
            samples.refresh()
        return samples

    def _sample(
        self,
        engine: Engine,
        samples: SampleFile,
        problems: Sequence[Problem],
        n: int,
        title: str,
    ) -> None:
        requests = iter_requests(
            problems,
            engine.tokenizer,
            self.recipe.data.prompt_template,
            n=n,
            run_seed=self.recipe.seed,
            **self.settings,
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


def _report_score(title: str, counts: dict[str, Any]) -> None:
    if "k" in counts:
        report_unusable(
            title, counts["too_long"], counts["empty"], counts["n"]
        )
        print(f"{title}: {proportion(counts['k'], counts['n'])}")
        return
    n = counts["samples"]
    average = Interval(*counts["avg"])
    best = Interval(*counts["pass"][str(n)])
    print(f"{title}: avg@{n} {average}, pass@{n} {best}")
