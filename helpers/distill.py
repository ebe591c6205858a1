"""Self-distillation: sample, grade, keep what is right, pair it with wrong.

The model answers each training problem ``n`` times. One right response a
problem becomes an SFT row; a problem with right and wrong responses also
becomes a preference pair. Too few pairs (``harvest.min_pairs``) call for the
next slice of problems until there are enough or the set is exhausted.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.checkpoints import fingerprint_model
from helpers.engines import Engine, make_engine
from helpers.errors import LabError
from helpers.grading import GRADER_VERSION
from helpers.guards import check_distinct_fraction
from helpers.harvest import (
    Harvest,
    distinct_fraction,
    harvest_pairs,
    measure_samples,
)
from helpers.models import load_model, model_path
from helpers.problems import load_problems
from helpers.recipes import Recipe, recipe_hash
from helpers.records import Completion, Problem, write_records
from helpers.runs import (
    RunDir,
    hash_file,
    name_folder,
    require_space,
    resolve_data,
)
from helpers.sampling import (
    Speed,
    make_requests,
    open_samples,
    sample_missing,
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
        The metrics; see :func:`helpers.harvest.measure_samples`.

    Raises:
        LabError: bad problem file, samples of other inputs in the folder, or
            samples that are copies of each other.
    """
    problems = load_problems(recipe.data.train)
    wanted = recipe.data.n_problems
    if smoke_steps is not None:
        run, wanted = _open_smoke_run(recipe, run), smoke_steps
        problems = problems[:wanted]
    elif wanted > len(problems):
        raise LabError(
            f"data.n_problems={wanted}, but {recipe.data.train} holds "
            f"{len(problems)} problems.",
            fix=f"set data.n_problems to at most {len(problems)}",
        )
    require_space(run.path, SPACE_MB)
    inputs = describe_inputs(recipe, run, wanted)
    if run.is_done(STAGE, inputs, force):
        print(f"{STAGE}: done with these inputs, loaded.")
        return run.metrics()[STAGE]
    with run.stage(STAGE, inputs) as record:
        done = open_samples(run, SAMPLES, _sample_inputs(recipe, run), force)
        floor = 0 if smoke_steps is not None else recipe.harvest.min_pairs
        sampler = _Sampler(recipe, run, done)
        harvest, used = collect(sampler, problems, wanted, floor)
        metrics = measure_samples(sampler.rows_of(used), harvest)
        metrics["pair_floor"] = floor
        metrics["tokens_per_second"] = sampler.speed.tokens_per_second
        write_records(run.file("sft.jsonl"), harvest.sft)
        write_records(run.file("pairs.jsonl"), harvest.pairs)
        record["outputs"] = [SAMPLES, "sft.jsonl", "pairs.jsonl"]
        record["metrics"] = metrics
    return metrics


def describe_inputs(
    recipe: Recipe, run: RunDir, wanted: int
) -> dict[str, str]:
    """Hashes of all that the harvest depends on."""
    return _sample_inputs(recipe, run) | {
        "harvest": recipe_hash(recipe, "harvest"),
        "n_problems": str(wanted),
    }


def _sample_inputs(recipe: Recipe, run: RunDir) -> dict[str, str]:
    """Hashes of all that one sample depends on besides its problem."""
    base = model_path(recipe, run, "base")
    return {
        "model": fingerprint_model(base, recipe.model.revision),
        "precision": recipe_hash(recipe, "model"),
        "problems": hash_file(resolve_data(recipe.data.train)),
        "template": recipe.data.prompt_template,
        "sampling": recipe_hash(recipe, "sampling", "seed"),
        "grader": GRADER_VERSION,
    }


def _open_smoke_run(recipe: Recipe, run: RunDir) -> RunDir:
    folder = run.file("smoke", STAGE)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"Smoke run: everything goes to {name_folder(folder)}.")
    return RunDir.open(folder, recipe)


class _Sampler:
    """The samples so far, and the engine once it is needed."""

    def __init__(self, recipe: Recipe, run: RunDir, done: list[Completion]):
        self.recipe, self.run, self.done = recipe, run, done
        self.speed = Speed()
        self._engine: Engine | None = None
        self._tokenizer: Any = None

    def rows_of(
        self, problems: Sequence[Problem]
    ) -> dict[str, list[Completion]]:
        """``{problem id: its samples in order}``, in the problems' order."""
        rows: dict[str, list[Completion]] = {p.id: [] for p in problems}
        for row in self.done:
            if row.problem_id in rows:
                rows[row.problem_id].append(row)
        for samples in rows.values():
            samples.sort(key=lambda row: row.sample)
        return rows

    def sample(self, problems: Sequence[Problem], title: str) -> None:
        """Sample what these problems lack."""
        n = self.recipe.sampling.n
        if all(len(rows) == n for rows in self.rows_of(problems).values()):
            return
        if self._engine is None:
            model, self._tokenizer = load_model(self.recipe)
            self._engine = make_engine(self.recipe, model, self._tokenizer)
        requests = make_requests(
            problems,
            self._tokenizer,
            self.recipe.data.prompt_template,
            n=n,
            run_seed=self.recipe.seed,
            temperature=self.recipe.sampling.temperature,
            top_p=self.recipe.sampling.top_p,
            max_new_tokens=self.recipe.sampling.max_new_tokens,
        )
        sample_missing(
            self._engine,
            requests,
            self.done,
            {p.id: p.answer for p in problems},
            self.path,
            title=title,
            speed=self.speed,
        )

    @property
    def path(self) -> Path:
        return self.run.file(SAMPLES)

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
    while len(harvest.pairs) < floor and len(used) < len(problems):
        more = size_next_slice(len(harvest.pairs), len(used), floor)
        print(
            f"{len(harvest.pairs)} pairs of {floor} after {len(used)} "
            f"problems: going on with the next {more}."
        )
        old, used = len(used), problems[: len(used) + more]
        sampler.sample(used[old:], "distill, next slice")
        harvest = sampler.harvest(used)
    if len(harvest.pairs) < floor:
        print(
            f"The problem set is exhausted: {len(harvest.pairs)} pairs from "
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


if __name__ == "__main__":
    from helpers.cli import main_stage

    main_stage("distill")
