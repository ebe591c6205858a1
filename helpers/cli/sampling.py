"""The command ``mathslm seeding``: seed or temperature?"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from helpers.cli.base import Force, RunFolder, Sets, Tier, open_run, out


def seeding(
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
    from helpers.experiments.seeding import run_seeding

    arms = run_seeding(recipe, run, problems=problems, force=force)
    out.print(show_arms(arms))
    out.print(f"Run folder: {run.path}", soft_wrap=True)


def show_arms(arms: dict[str, dict[str, Any]]) -> Table:
    """One row an arm: distinct fraction, mixed, pairs, shared openings."""
    from helpers.results import Interval, proportion

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
