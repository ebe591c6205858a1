"""Options that every command with a recipe and a run folder has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from helpers.base import Recipe, RunDir, load_recipe, ranks

DEFAULT_TIER = "pocket"
out = Console(highlight=False)

Tier = Annotated[
    str | None,
    typer.Option(
        help="Recipe: a shipped name or a .yaml file. Default: the run "
        "folder's own recipe, else pocket."
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Run folder. Default: runs/<tier>."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value of the recipe, e.g. sft.epochs=1. Repeatable.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Compute again; the old output is set aside."
    ),
]


def load_setup(
    tier: str | None, run_dir: Path | None, sets: list[str] | None
) -> tuple[Recipe, Path]:
    """The recipe and the folder that the options name; creates nothing.

    Without ``tier`` a run folder's own recipe is used, else ``pocket``.
    """
    stored = run_dir / "recipe.yaml" if run_dir else None
    if tier is None and stored and stored.is_file():
        recipe = load_recipe(stored, sets or ())
    else:
        recipe = load_recipe(tier or DEFAULT_TIER, sets or ())
    return recipe, run_dir or Path("runs") / recipe.name


def open_run(
    tier: str | None, run_dir: Path | None, sets: list[str] | None
) -> tuple[Recipe, RunDir]:
    """Check recipe and run folder; the folder is created when new."""
    from helpers.planner import check_engine

    recipe, folder = load_setup(tier, run_dir, sets)
    check_engine(recipe)
    ranks.require_one_process()
    return recipe, RunDir.open(folder, recipe)
