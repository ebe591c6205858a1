"""Seed or temperature? One experiment that changes one thing at a time.

The same problems are sampled in six arms: three seed schemes (see
:mod:`helpers.experiments.seed_arms`) times two temperatures. The corners ``one seed`` and
``own seeds`` are the 2×2 table that a published harvest left out when it
changed both at once. It runs on any tier and engine, and is resumable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from helpers.base import (
    Completion,
    LabError,
    Problem,
    Recipe,
    RunDir,
    group_samples,
    read_records,
    require_space,
)
from helpers.experiments.seed_arms import (
    SCHEMES,
    ArmReport,
    measure_arm,
    reseed,
)
from helpers.problems import hash_problems
from helpers.sampling import (
    SampleRequest,
    describe_sampling,
    iter_requests,
    open_engine,
    open_samples,
    sample_missing,
)
from helpers.stages import find_model, load_training

STAGE = "seeding"
TEMPERATURES = (0.7, 1.0)
SPACE_MB = 50


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


def list_arms(
    temperatures: Sequence[float] = TEMPERATURES,
    schemes: Sequence[str] = SCHEMES,
) -> list[Arm]:
    """Every scheme at every temperature."""
    return [Arm(s, float(t)) for s, t in product(schemes, temperatures)]


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
        ``{arm name: measures}``; see ``seed_arms.ArmReport.summary``.

    Raises:
        LabError: fewer problems than asked for, one sample a problem, or
            samples of other inputs in the folder.
    """
    problems = problems or recipe.course.seeding
    chosen = _choose_problems(recipe, problems)
    require_space(run.path, SPACE_MB)
    inputs = _describe_inputs(recipe, run, problems, temperatures)
    if run.is_done(STAGE, inputs, force):
        print(f"{STAGE}: done with these inputs, loaded.")
        return run.metrics()[STAGE]
    arms = list_arms(temperatures)
    with run.stage(STAGE, inputs) as record:
        _sample_arms(recipe, run, arms, chosen, force)
        reports = measure_arms(run, arms, chosen)
        metrics = {arm.name: r.summary() for arm, r in reports.items()}
        record["outputs"] = [arm.file for arm in arms]
        record["metrics"] = metrics
    return metrics


def load_arms(
    run: RunDir, arms: Sequence[Arm], problems: Sequence[Problem]
) -> dict[Arm, dict[str, list[Completion]]]:
    """``{arm: {problem id: its samples in order}}``."""
    return {
        arm: group_samples(
            read_records(run.file(arm.file), Completion), problems
        )
        for arm in arms
    }


def measure_arms(
    run: RunDir, arms: Sequence[Arm], problems: Sequence[Problem]
) -> dict[Arm, ArmReport]:
    """Every arm measured from its file."""
    return {
        arm: measure_arm(samples, run.recipe.seed)
        for arm, samples in load_arms(run, arms, problems).items()
    }


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
        recipe,
        find_model(recipe, run),
        temperature=arm.temperature,
        top_p=recipe.sampling.top_p,
        max_new_tokens=recipe.sampling.max_new_tokens,
        stop=recipe.sampling.stop,
    ) | {"scheme": arm.scheme, "problems": hash_problems(recipe.data.train)}


def _describe_inputs(
    recipe: Recipe,
    run: RunDir,
    problems: int,
    temperatures: Sequence[float],
) -> dict[str, str]:
    arm = Arm("own seeds", 1.0)
    common = _describe_arm(recipe, run, arm)
    return {
        name: text
        for name, text in common.items()
        if name not in ("temperature", "scheme")
    } | {
        "n": str(recipe.sampling.n),
        "n_problems": str(problems),
        "temperatures": repr([float(t) for t in temperatures]),
    }


def _sample_arms(
    recipe: Recipe,
    run: RunDir,
    arms: Sequence[Arm],
    problems: Sequence[Problem],
    force: bool,
) -> None:
    """Sample what is missing; the model is loaded once, if at all."""
    n = recipe.sampling.n
    files = {
        arm: open_samples(
            run, arm.file, _describe_arm(recipe, run, arm), force
        )
        for arm in arms
    }
    if not any(f.count_missing(problems, n) for f in files.values()):
        return
    golds = {p.id: p.answer for p in problems}
    model = find_model(recipe, run)
    with open_engine(recipe, model, log_dir=run.file("logs")) as engine:
        for arm, file in files.items():
            sample_missing(
                engine,
                iter_arm_requests(recipe, engine.tokenizer, arm, problems),
                file,
                golds,
                title=arm.name,
                total=len(problems) * n,
                n=n,
            )


def iter_arm_requests(
    recipe: Recipe, tokenizer: Any, arm: Arm, problems: Sequence[Problem]
) -> Iterator[SampleRequest]:
    """What one arm asks: the recipe's settings, its own seeds and T."""
    requests = iter_requests(
        problems,
        tokenizer,
        recipe.data.prompt_template,
        n=recipe.sampling.n,
        run_seed=recipe.seed,
        temperature=arm.temperature,
        top_p=recipe.sampling.top_p,
        max_new_tokens=recipe.sampling.max_new_tokens,
        stop=recipe.sampling.stop,
    )
    return reseed(requests, arm.scheme, recipe.seed)
