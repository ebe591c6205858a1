"""Seed or temperature? One experiment that changes one thing at a time.

problems ─ sample six arms ─ grade ─ measure each ─ compare in pairs

The same problems are sampled with three seed schemes at two temperatures:

- ``one seed``: every sample of every problem has the same seed. An engine
  that copies the seed of a request to its n children does this (vLLM before
  0.7.0; its pull request 11898 mended it).
- ``seed + number``: sample j of every problem has seed + j, as vLLM gives
  the children of a request today. Samples of a problem differ, but sample j
  of all problems reads one and the same stream of random numbers.
- ``own seeds``: a seed for each problem and sample; see ``derive_seed``.

The corners ``one seed`` and ``own seeds`` are the 2×2 table that a published
harvest left out when it changed both at once. Any tier and engine; resumable.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any

import typer
from rich.table import Table

from helpers.base import (
    LabError,
    Problem,
    Recipe,
    RunDir,
    group_samples,
    open_stage,
)
from helpers.experiments.options import (
    Force,
    RunFolder,
    Sets,
    Tier,
    open_run,
    out,
)
from helpers.grading import GradedCompletion, read_graded
from helpers.problems import hash_problems
from helpers.results import (
    Comparison,
    Interval,
    Proportion,
    bootstrap_mean,
    compare,
    proportion,
)
from helpers.sampling import (
    SampleRequest,
    describe_sampling,
    iter_requests,
    open_engine,
    open_samples,
    sample_missing,
)
from helpers.stages import find_model, harvest_pairs, load_training

STAGE = "seeding"
SCHEMES = ("one seed", "seed + number", "own seeds")
TEMPERATURES = (0.7, 1.0)
OPENING_WORDS = 2
SPACE_MB = 50

Samples = Mapping[str, Sequence[GradedCompletion]]


@dataclass(frozen=True)
class Arm:
    """One cell of the table."""

    scheme: str
    temperature: float

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.scheme}, T = {self.temperature:g}"

    @property
    def file(self) -> str:
        """Its samples, a path in the run folder."""
        word = self.scheme.replace(" + ", "-plus-").replace(" ", "-")
        return f"samples/seeding/{word}-t{self.temperature:g}.jsonl"


def list_arms(temperatures: Sequence[float] = TEMPERATURES) -> list[Arm]:
    """Every scheme at every temperature."""
    return [Arm(s, float(t)) for s, t in product(SCHEMES, temperatures)]


def run_seeding(
    recipe: Recipe,
    run: RunDir,
    *,
    problems: int | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    force: bool = False,
) -> dict[str, Any]:
    """Sample all arms on the first training problems and measure them.

    Args:
        problems: how many problems of ``data.train``; None:
            ``course.seeding`` of the recipe.
        temperatures: the levels of the second factor.
        force: set the old samples aside and draw them again.

    Returns:
        ``{arm name: measures}``; see :meth:`ArmReport.summary`.

    Raises:
        LabError: fewer problems than asked for, one sample a problem, or
            samples of other inputs in the folder.
    """
    chosen = _choose_problems(recipe, problems or recipe.course.seeding)
    arms = list_arms(temperatures)
    inputs = _describe_arm(recipe, run, Arm("own seeds", 1.0))
    del inputs["temperature"], inputs["scheme"]  # those are the arms'
    inputs |= {
        "n": str(recipe.sampling.n),
        "n_problems": str(len(chosen)),
        "temperatures": repr([float(t) for t in temperatures]),
    }
    with open_stage(
        run,
        STAGE,
        inputs,
        outputs=[arm.file for arm in arms],
        megabytes=SPACE_MB,
        force=force,
    ) as stage:
        if stage.is_needed:
            _sample_arms(recipe, run, arms, chosen, force)
            drawn = load_arms(run, arms, chosen)
            stage.metrics = {
                arm.name: measure_arm(samples, run.recipe.seed).summary()
                for arm, samples in drawn.items()
            }
    return stage.metrics


def _choose_problems(recipe: Recipe, wanted: int) -> list[Problem]:
    if recipe.sampling.n < 2:
        raise LabError(
            f"sampling.n={recipe.sampling.n}: one sample a problem.",
            why="copies can only be seen among several samples",
            fix="--set sampling.n=4",
        )
    problems = load_training(recipe)
    if not 2 <= wanted <= len(problems):
        raise LabError(
            f"{wanted} problems were asked for; {recipe.data.train} holds "
            f"{len(problems)}.",
            fix=f"choose 2 to {len(problems)}",
        )
    return problems[:wanted]


def _describe_arm(recipe: Recipe, run: RunDir, arm: Arm) -> dict[str, str]:
    return describe_sampling(
        recipe, find_model(recipe, run), **_list_settings(recipe, arm)
    ) | {"scheme": arm.scheme, "problems": hash_problems(recipe.data.train)}


def _list_settings(recipe: Recipe, arm: Arm) -> dict[str, Any]:
    """The recipe's, at the temperature of the arm."""
    settings = recipe.sampling.model_dump(exclude={"n"})
    return settings | {"temperature": arm.temperature}


def _sample_arms(
    recipe: Recipe,
    run: RunDir,
    arms: Sequence[Arm],
    problems: Sequence[Problem],
    force: bool,
) -> None:
    """Sample what is missing; the model is loaded once, if at all."""
    n, golds = recipe.sampling.n, {p.id: p.answer for p in problems}
    files = {
        arm: open_samples(
            run, arm.file, _describe_arm(recipe, run, arm), force, golds
        )
        for arm in arms
    }
    if not any(f.count_missing(problems, n) for f in files.values()):
        return
    model = find_model(recipe, run)
    with open_engine(recipe, model, log_dir=run.file("logs")) as engine:
        for arm, file in files.items():
            requests = iter_requests(
                problems,
                engine.tokenizer,
                recipe.data.prompt_template,
                n=n,
                run_seed=recipe.seed,
                **_list_settings(recipe, arm),
            )
            sample_missing(
                engine,
                reseed(requests, arm.scheme, recipe.seed),
                file,
                golds,
                title=arm.name,
                total=len(problems) * n,
                n=n,
            )


def reseed(
    requests: Iterable[SampleRequest], scheme: str, seed: int
) -> Iterator[SampleRequest]:
    """The requests with the seeds of a scheme; own seeds are theirs.

    Raises:
        ValueError: no such scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"no seed scheme '{scheme}': {', '.join(SCHEMES)}")
    for request in requests:
        if scheme == "one seed":
            yield replace(request, seed=seed)
        elif scheme == "seed + number":
            yield replace(request, seed=seed + request.sample)
        else:
            yield request


def load_arms(
    run: RunDir, arms: Sequence[Arm], problems: Sequence[Problem]
) -> dict[Arm, dict[str, list[GradedCompletion]]]:
    """``{arm: {problem id: its samples in order}}``."""
    golds = {p.id: p.answer for p in problems}
    return {
        arm: group_samples(read_graded(run.file(arm.file), golds), problems)
        for arm in arms
    }


@dataclass(frozen=True)
class ArmReport:
    """What one arm gave.

    ``distinct`` is the share of different texts among a problem's samples,
    mean over problems. ``mixed`` counts problems with right and wrong
    samples, ``pairs`` those that give a preference pair. ``alike`` is the
    chance that two problems' samples of the same number begin with the same
    words, ``unlike`` that of different numbers: where they differ, problems
    share random numbers.
    """

    problems: int
    distinct: Interval
    mixed: Proportion
    pairs: Proportion
    right: int
    samples: int
    alike: float
    unlike: float

    def summary(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``."""
        distinct = self.distinct
        return vars(self) | {
            "distinct": [distinct.value, distinct.low, distinct.high],
            "mixed": self.mixed.k,
            "pairs": self.pairs.k,
        }


def measure_arm(samples: Samples, seed: int) -> ArmReport:
    """Measure one arm; ``seed`` is that of the bootstrap.

    Raises:
        ValueError: fewer than two problems.
    """
    groups = [rows for rows in samples.values() if rows]
    if len(groups) < 2:
        raise ValueError("an arm needs two problems or more")
    different = [len({r.response for r in g}) / len(g) for g in groups]
    kept = harvest_pairs(samples, pick="first", seed=seed, run_name="")
    alike, unlike = share_openings(groups)
    return ArmReport(
        problems=len(groups),
        distinct=bootstrap_mean(different, seed),
        mixed=proportion(sum(map(is_mixed, groups)), len(groups)),
        pairs=proportion(len(kept.matched), len(groups)),
        right=sum(row.correct for rows in groups for row in rows),
        samples=sum(map(len, groups)),
        alike=alike,
        unlike=unlike,
    )


def is_mixed(rows: Sequence[GradedCompletion]) -> bool:
    """Right and wrong samples of one problem."""
    return len({row.correct for row in rows}) == 2


def share_openings(
    groups: Sequence[Sequence[GradedCompletion]],
) -> tuple[float, float]:
    """Chance that samples of two problems begin alike.

    Returns:
        (for samples of the same number, for samples of different numbers);
        each over all pairs of different problems, as a fraction.
    """
    by_number: dict[int, Counter[str]] = {}
    total, own = Counter(), 0
    for rows in groups:
        words = Counter(open_with(row.response) for row in rows)
        own += _count_pairs(words)
        total += words
        for row in rows:
            tally = by_number.setdefault(row.sample, Counter())
            tally[open_with(row.response)] += 1
    same = sum(_count_pairs(c) for c in by_number.values())
    same_all = sum(math.comb(c.total(), 2) for c in by_number.values())
    every = _count_pairs(total) - own
    every_all = math.comb(total.total(), 2) - sum(
        math.comb(len(rows), 2) for rows in groups
    )
    rest = every_all - same_all
    return same / same_all, (every - same) / rest if rest else float("nan")


def open_with(text: str) -> str:
    """The first words of a response: the part before the problem matters."""
    return " ".join(text.split()[:OPENING_WORDS])


def _count_pairs(tally: Counter[str]) -> int:
    """Pairs that begin alike."""
    return sum(math.comb(k, 2) for k in tally.values())


def compare_mixed(before: Samples, after: Samples) -> Comparison:
    """Paired by problem: which became mixed, which stopped being so."""
    return compare(
        {name: is_mixed(rows) for name, rows in before.items()},
        {name: is_mixed(rows) for name, rows in after.items()},
    )


def start_seeding(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    problems: Annotated[
        int, typer.Option(min=2, help="How many training problems.")
    ] = 100,
    force: Force = False,
) -> None:
    """Sample with three seed schemes at two temperatures and compare."""
    recipe, run = open_run(tier, run_dir, sets)
    arms = run_seeding(recipe, run, problems=problems, force=force)
    out.print(show_arms(arms))
    out.print(f"Run folder: {run.path}", soft_wrap=True)


def show_arms(arms: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row an arm: distinct fraction, mixed, pairs, shared openings."""
    table = Table("arm", "distinct", "mixed", "pairs", "alike", "unlike")
    for name, arm in arms.items():
        table.add_row(
            name,
            str(Interval(*arm["distinct"])),
            str(proportion(arm["mixed"], arm["problems"])),
            str(proportion(arm["pairs"], arm["problems"])),
            f"{arm['alike']:.0%}",
            f"{arm['unlike']:.0%}",
        )
    return table
