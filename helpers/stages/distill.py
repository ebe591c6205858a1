"""Self-distillation: sample, grade, keep what is right, pair it with wrong.

The model answers each training problem ``n`` times. One right response a
problem becomes an SFT row; a problem with right and wrong responses also
becomes a preference pair. Too few pairs (``harvest.min_pairs``) call for the
next slice of problems until there are enough or the set is exhausted. The
base model answers or, where SFT trained on worked solutions, the SFT model.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from helpers.base import (
    LabError,
    Problem,
    Recipe,
    RunDir,
    group_samples,
    name_folder,
    recipe_hash,
    require_current_merge,
    require_file,
    require_space,
    require_unlocked,
    write_records,
)
from helpers.models import model_path, settle_model
from helpers.problems import hash_problems
from helpers.sampling import (
    Engine,
    Sample,
    SampleFile,
    Speed,
    describe_sampling,
    iter_requests,
    iter_samples,
    open_engine,
    open_samples,
    sample_missing,
    say_unusable,
)
from helpers.stages.guards import check_distinct_fraction
from helpers.stages.harvest import (
    Harvest,
    distinct_fraction,
    harvest_pairs,
    load_training,
    measure_samples,
)

SAMPLES = "samples/distill.jsonl"
STAGE = "distill"
PROBE_PROBLEMS = 32  # the distinct fraction is checked after these
SPACE_MB = 100


def run_distill(
    recipe: Recipe,
    run: RunDir,
    *,
    force: bool = False,
    smoke_steps: int | None = None,
) -> dict[str, Any]:
    """Sample, grade and harvest; resumable to the sample.

    Writes ``samples/distill.jsonl``, ``sft.jsonl`` and ``pairs.jsonl``.

    Args:
        force: set the old samples and harvest aside and start again.
        smoke_steps: try out only so many problems, in the folder
            ``smoke/distill`` of the run, which is emptied before.

    Returns:
        The metrics; see :func:`helpers.stages.harvest.measure_samples`.

    Raises:
        LabError: bad problem file, samples of other inputs in the folder, or
            samples that are copies of each other.
    """
    problems = load_training(recipe)
    wanted = smoke_steps or recipe.data.n_problems
    if smoke_steps is None and wanted > len(problems):
        raise LabError(
            f"data.n_problems={wanted}, but {recipe.data.train} holds "
            f"{len(problems)} problems.",
            fix=f"set data.n_problems to at most {len(problems)}",
        )
    require_space(run.path, SPACE_MB)
    recipe = settle_model(recipe, run)
    model = find_model(recipe, run)
    if smoke_steps is not None:
        run, problems = _open_smoke_run(recipe, run), problems[:wanted]
    inputs = describe_inputs(recipe, model, wanted)
    if run.is_done(STAGE, inputs, force):
        print(f"{STAGE}: done with these inputs, loaded.")
        return run.metrics()[STAGE]
    with run.stage(STAGE, inputs) as record:
        common = _sample_inputs(recipe, model)
        begun = open_samples(run, SAMPLES, common, force)
        floor = 0 if smoke_steps is not None else recipe.harvest.min_pairs
        with _Sampler(recipe, run, model, begun) as sampler:
            harvest, used = collect(sampler, problems, wanted, floor)
        metrics = measure_samples(sampler.rows_of(used), harvest)
        metrics["pair_floor"] = floor
        metrics["tokens_per_second"] = sampler.speed.tokens_per_second
        metrics["engine"] = sampler.described
        _say_unusable(metrics)
        write_records(run.file("sft.jsonl"), harvest.iter_sft())
        write_records(run.file("pairs.jsonl"), harvest.iter_pairs())
        record["outputs"] = [SAMPLES, "sft.jsonl", "pairs.jsonl"]
        record["metrics"] = metrics
    return metrics


def describe_inputs(
    recipe: Recipe, model: Path, wanted: int
) -> dict[str, str]:
    """Hashes of all that the harvest depends on."""
    return _sample_inputs(recipe, model) | {
        "harvest": recipe_hash(recipe, "harvest"),
        "n_problems": str(wanted),
    }


def _sample_inputs(recipe: Recipe, model: Path) -> dict[str, str]:
    """All that the samples depend on; the engine does not count."""
    settings = recipe.sampling
    return {
        "problems": hash_problems(recipe.data.train),
        "n": str(settings.n),
        **describe_sampling(
            recipe,
            model,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            stop=settings.stop,
        ),
    }


def find_model(recipe: Recipe, run: RunDir) -> Path:
    """The model that is sampled: the base, or the merged SFT model.

    Raises:
        LabError: SFT is to be sampled, and was not trained and merged yet.
    """
    tag = recipe.sampled_model
    path = model_path(recipe, run, tag)
    if tag != "base":
        require_current_merge(run, tag)
        require_file(path, f"mathslm merge --model {tag}", run)
    return path


def _say_unusable(metrics: dict[str, Any]) -> None:
    counts = [metrics[name]["k"] for name in ("too_long", "empty")]
    say_unusable(STAGE, *counts, metrics["samples"])


def _open_smoke_run(recipe: Recipe, run: RunDir) -> RunDir:
    folder = run.file("smoke", STAGE)
    require_unlocked(folder)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"Smoke run: everything goes to {name_folder(folder)}.")
    return RunDir.open(folder, recipe)


class _Sampler:
    """The samples so far, and the engine once it is needed.

    A context manager: the engine is closed whatever happens.
    """

    def __init__(
        self, recipe: Recipe, run: RunDir, model: Path, samples: SampleFile
    ):
        self.recipe, self.run, self.samples = recipe, run, samples
        self.model = model
        self.speed = Speed()
        self.described: dict[str, Any] | None = None
        self._stack = ExitStack()
        self._engine: Engine | None = None
        self._rows: list[Sample] = []
        self._rows_of_size = 0

    def __enter__(self) -> _Sampler:
        return self

    def __exit__(self, *error: object) -> None:
        if self._engine is not None:
            self.described = self._engine.describe()
        self._stack.close()

    def rows_of(self, problems: Sequence[Problem]) -> dict[str, list[Sample]]:
        """``{problem id: its samples in order}``, in the problems' order."""
        path = self.samples.path
        size = path.stat().st_size if path.is_file() else 0
        if size != self._rows_of_size:
            self._rows, self._rows_of_size = list(iter_samples(path)), size
        return group_samples(self._rows, problems)

    def sample(self, problems: Sequence[Problem], title: str) -> None:
        """Sample what these problems lack."""
        settings = self.recipe.sampling
        self.samples.refresh()
        if not self.samples.count_missing(problems, settings.n):
            return
        engine = self._open_engine()
        sample_missing(
            engine,
            iter_requests(
                problems,
                engine.tokenizer,
                self.recipe.data.prompt_template,
                n=settings.n,
                run_seed=self.recipe.seed,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_new_tokens=settings.max_new_tokens,
                stop=settings.stop,
            ),
            self.samples,
            {p.id: p.answer for p in problems},
            title=title,
            total=len(problems) * settings.n,
            n=settings.n,
            speed=self.speed,
        )

    def _open_engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._stack.enter_context(
                open_engine(
                    self.recipe, self.model, log_dir=self.run.file("logs")
                )
            )
        return self._engine

    def harvest(self, problems: Sequence[Problem]) -> Harvest:
        """Rows and pairs of these problems."""
        return harvest_pairs(
            self.rows_of(problems),
            pick=self.recipe.harvest.pick,
            seed=self.recipe.seed,
            run_name=self.run.path.resolve().name,
        )


def collect(
    sampler: _Sampler, problems: Sequence[Problem], wanted: int, floor: int
) -> tuple[Harvest, Sequence[Problem]]:
    """Sample ``wanted`` problems, then more until ``floor`` pairs are there.

    Returns:
        (the harvest, the problems it comes from).
    """
    probe = problems[: min(PROBE_PROBLEMS, wanted)]
    sampler.sample(probe, "first problems")
    _check_samples_differ(sampler, probe)
    used = problems[:wanted]
    sampler.sample(used, "distill")
    harvest = sampler.harvest(used)
    while len(harvest.matched) < floor and len(used) < len(problems):
        more = size_next_slice(len(harvest.matched), len(used), floor)
        print(
            f"{len(harvest.matched)} pairs of {floor} after {len(used)} "
            f"problems: going on with the next {more}."
        )
        old, used = len(used), problems[: len(used) + more]
        sampler.sample(used[old:], "distill, next slice")
        harvest = sampler.harvest(used)
    if len(harvest.matched) < floor:
        print(
            f"The problem set is exhausted: {len(harvest.matched)} pairs from "
            f"all {len(used)} problems, {floor} were asked for "
            "(harvest.min_pairs)."
        )
    return harvest, used


def size_next_slice(pairs: int, problems: int, floor: int) -> int:
    """How many more problems should bring the missing pairs.

    At the rate so far plus a fifth; at least the size of the probe, at most
    as many as were sampled already.
    """
    rate = max(pairs, 1) / problems
    need = math.ceil(1.2 * (floor - pairs) / rate)
    return max(PROBE_PROBLEMS, min(need, problems))


def _check_samples_differ(
    sampler: _Sampler, problems: Sequence[Problem]
) -> None:
    """Stop early when the samples of a problem are copies.

    A smoke run has too few problems for a verdict: it only says what it saw.
    """
    if sampler.recipe.sampling.n < 2:
        return
    fraction = distinct_fraction(sampler.rows_of(problems))
    try:
        check_distinct_fraction(
            fraction,
            sampler.recipe.harvest.min_distinct_fraction,
            sampler.recipe.sampling.temperature,
        )
    except LabError as error:
        if len(problems) >= PROBE_PROBLEMS:
            raise
        print(f"Only {len(problems)} problems, so not refused: {error.what}")
