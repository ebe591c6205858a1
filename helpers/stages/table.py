"""The stages of a run: what each does, what it needs, how to start it.

The command line, the notebooks' session, the course and the doctor all read
:data:`STAGES`. A stage has one name (``merge``) and, in a run, a full name
for each model it is done to (``merge/sft``, ``evaluate-t1/base``,
``dpo-published``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helpers.base import LabError, Recipe, RunDir, Tag, did_you_mean
from helpers.stages.distill import run_distill
from helpers.stages.dpo import run_dpo
from helpers.stages.evaluate import run_evaluate
from helpers.stages.merge import run_merge
from helpers.stages.sft import run_sft
from helpers.stages.solutions import run_solutions


@dataclass(frozen=True)
class StageInfo:
    """One kind of stage.

    ``summary`` is its help text; ``several_processes``: a launcher may spread
    it over cards.
    """

    name: str
    summary: str
    run: Callable[..., dict[str, Any]]
    several_processes: bool = False


STAGES = {
    info.name: info
    for info in (
        StageInfo(
            "solutions",
            "Turn worked solutions of problem sets into SFT rows.",
            run_solutions,
        ),
        StageInfo(
            "distill",
            "Sample and grade completions; keep the right ones and the pairs.",
            run_distill,
        ),
        StageInfo(
            "sft",
            "Train a LoRA adapter on the kept completions.",
            run_sft,
            several_processes=True,
        ),
        StageInfo(
            "merge",
            "Add an adapter to its base weights and prove that nothing was "
            "lost.",
            run_merge,
        ),
        StageInfo(
            "dpo",
            "Train on the preference pairs, from the merged SFT model.",
            run_dpo,
            several_processes=True,
        ),
        StageInfo(
            "evaluate",
            "Measure the models on the recipe's benchmarks.",
            run_evaluate,
        ),
    )
}


def list_stages(recipe: Recipe) -> list[str]:
    """Full names of the stages of a whole run, in an order that works."""
    tags = ["sft", *(str(Tag("dpo", v)) for v in (None, *recipe.dpo_variants))]
    first = ["solutions"] if recipe.solutions else ["distill"]
    names = [*first, "sft", "merge/sft"]
    names += ["distill"] if recipe.solutions else []
    for tag in tags[1:]:
        names += [tag, f"merge/{tag}"]
    names += [f"evaluate/{tag}" for tag in ("base", *tags)]
    return [*names, "evaluate-t1/base", "evaluate-t1/sft"]


def list_dependencies(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """Full names of the stages that a stage goes on from.

    Raises:
        LabError: no such stage.
    """
    kind, _, tag = stage.partition("/")
    sampled = ("merge/sft",) if recipe.solutions else ()
    if stage == "solutions":
        return ()
    if stage == "distill":
        return sampled
    if stage == "sft":
        return ("solutions",) if recipe.solutions else ("distill",)
    if kind.partition("-")[0] == "dpo":
        recipe.dpo_variant(Tag.parse(kind).variant)
        return ("distill", "merge/sft")
    if kind == "merge" and tag:
        return (tag,)
    if kind == "evaluate" or kind.startswith("evaluate-t"):
        return () if tag == "base" else (f"merge/{tag}",)
    known = list_stages(recipe)
    raise LabError(
        f"There is no stage '{stage}'.{did_you_mean(stage, known)}",
        fix="choose one of: " + ", ".join(known),
    )


def run_stage(
    recipe: Recipe, run: RunDir, stage: str, **options: Any
) -> dict[str, Any]:
    """Run one stage by its full name; a finished one is loaded.

    ``evaluate-t1/<tag>`` draws ``course.samples`` samples a problem of the
    main benchmark at that temperature.
    """
    list_dependencies(recipe, stage)  # LabError for a name that is none
    kind, _, tag = stage.partition("/")
    if kind.startswith("dpo"):
        variant = Tag.parse(kind).variant
        return run_dpo(recipe, run, variant=variant, **options)
    if kind == "merge":
        return run_merge(recipe, run, tag, **options)
    if kind == "evaluate":
        return run_evaluate(recipe, run, (tag,), **options)
    if kind.startswith("evaluate-t"):
        options = {
            "benchmarks": [recipe.evaluate.main],
            "n": recipe.course.samples,
            "temperature": float(kind.removeprefix("evaluate-t")),
        } | options
        return run_evaluate(recipe, run, (tag,), **options)
    return STAGES[stage].run(recipe, run, **options)
