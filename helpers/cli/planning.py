"""The command ``mathslm plan``: what a tier needs before money is spent."""

from __future__ import annotations

from typing import Annotated

import typer

from helpers.experiments.options import RunFolder, Sets, Tier, load_setup, out


def plan(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    card: Annotated[
        str | None,
        typer.Option(help="Another card than the recipe's, e.g. T4 or H100."),
    ] = None,
    cards: Annotated[
        int | None, typer.Option(min=1, help="How many of them.")
    ] = None,
) -> None:
    """Say whether a run fits, how long it takes and what it costs."""
    from helpers.planner import show_plan_command

    recipe, _ = load_setup(tier, run_dir, sets)
    show_plan_command(recipe, card=card, cards=cards, out=out)
