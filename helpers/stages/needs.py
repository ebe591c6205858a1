"""Which stages a stage goes on from."""

from __future__ import annotations

from helpers.base import LabError, Recipe

# Stage: the stages that it needs.
NEEDS: dict[str, tuple[str, ...]] = {
    "solutions": (),
    "distill": (),
    "seeding": (),
    "sft": ("distill",),
    "merge/sft": ("sft",),
    "dpo": ("distill", "merge/sft"),
    "dpo-published": ("distill", "merge/sft"),
    "merge/dpo": ("dpo",),
    "merge/dpo-published": ("dpo-published",),
    "evaluate/base": (),
    "evaluate/sft": ("merge/sft",),
    "evaluate/dpo": ("merge/dpo",),
    "evaluate/dpo-published": ("merge/dpo-published",),
    "evaluate-t1/base": (),
    "evaluate-t1/sft": ("merge/sft",),
}


# The same where SFT trains on worked solutions and is sampled then.
NEEDS_OF_SOLUTIONS: dict[str, tuple[str, ...]] = {
    "sft": ("solutions",),
    "distill": ("merge/sft",),
    "seeding": ("merge/sft",),
}


def list_needs(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The stages that a stage goes on from.

    Raises:
        LabError: no such stage.
    """
    if stage not in NEEDS:
        raise LabError(f"There is no stage '{stage}'.")
    if recipe.solutions and stage in NEEDS_OF_SOLUTIONS:
        return NEEDS_OF_SOLUTIONS[stage]
    return NEEDS[stage]
