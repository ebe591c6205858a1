"""``mathslm solutions`` and ``mathslm ablate``: SFT on worked solutions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from helpers.cli.base import (
    Force,
    RunFolder,
    Sets,
    Tier,
    open_run,
    out,
    show_metrics,
)


def solutions(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    force: Force = False,
) -> None:
    """Write worked solutions of the recipe's mix as rows for SFT."""
    recipe, run = open_run(tier, run_dir, sets)
    from helpers.stages import run_solutions

    done = run_solutions(recipe, run, force=force)
    show_metrics("solutions", done, run)


def ablate(
    tier: Annotated[
        str, typer.Option(help="A recipe with several sources of solutions.")
    ] = "smol-mix",
    run_dir: RunFolder = None,
    sets: Sets = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Repeatable; default: 42."),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="Only this arm and the first. Repeatable."),
    ] = None,
) -> None:
    """Train on worked solutions with one thing changed at a time."""
    from helpers.base import load_recipe

    load_recipe(tier, sets or ())
    folder = run_dir or Path("runs") / "ablation"
    from helpers.experiments.ablation import run_ablation

    done = run_ablation(
        tier, folder, tuple(seed or (42,)), tuple(sets or ()), arm or ()
    )
    out.print(show_arms(done["seeds"]))
    out.print(f"Run folder: {folder}", soft_wrap=True)


def show_arms(seeds: dict[str, Any]) -> Table:
    """One row an arm, seed and benchmark: score and change."""
    table = Table("seed", "arm", "set", "score", "won", "lost", "change", "p")
    for seed, row in seeds.items():
        for name, found in row.items():
            for benchmark, change in found["change"].items():
                table.add_row(
                    seed,
                    name,
                    benchmark,
                    found["sft"][benchmark]["score"],
                    str(change["won"]),
                    str(change["lost"]),
                    change["difference"],
                    f"{change['p']:.3g}",
                )
    return table
