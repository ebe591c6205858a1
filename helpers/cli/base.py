"""What the commands share: options, messages, recipe and run folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from helpers.base import LabError, Recipe, RunDir, ranks
from helpers.experiments.options import (
    load_setup,
    out,
)

err = Console(stderr=True, highlight=False)


class LabGroup(TyperGroup):
    """Print a LabError as one message instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; LabError ends with 2, Ctrl-C with 130.

        Of several processes one tells what happened.
        """
        ranks.mute_others()
        try:
            return super().invoke(ctx)
        except LabError as error:
            if ranks.may_report():
                err.print("Error:", style="bold red", end=" ")
                err.print(str(error), markup=False, soft_wrap=True)
            raise typer.Exit(getattr(error, "exit_code", 2)) from None
        except KeyboardInterrupt:
            if ranks.may_report():
                err.print(
                    "Stopped. What was finished is kept; the same command "
                    "carries on from there."
                )
            raise typer.Exit(130) from None
        except typer.Exit:
            raise
        except Exception:
            if ranks.may_report():
                raise
            raise typer.Exit(1) from None


SmokeSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Stop after this many steps: a trial run."),
]
Variant = Annotated[
    str | None, typer.Option(help="A name under dpo_variants of the recipe.")
]


@contextmanager
def open_shared(
    stage: str,
    tier: str | None,
    run_dir: Path | None,
    sets: list[str] | None,
) -> Iterator[tuple[Recipe, RunDir]]:
    """:func:`open_run` for a stage that several processes run together."""
    recipe, folder = load_setup(tier, run_dir, sets)
    from helpers.models import pick_device

    ranks.connect(recipe, stage, pick_device)
    yield recipe, ranks.run_first(lambda: RunDir.open(folder, recipe))
    ranks.leave()


def require_run(folder: Path) -> None:
    """LabError when the folder holds no run."""
    if not (folder / "recipe.yaml").is_file():
        raise LabError(
            f"There is no run in {folder}.",
            fix="make one first: mathslm course, or name another --run-dir",
        )


def show_metrics(title: str, metrics: Mapping[str, Any], run: RunDir) -> None:
    """Print what a stage measured as a small table."""
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in flatten(metrics):
        table.add_row(name, value)
    if table.row_count:
        out.print(table)
    out.print(f"Run folder: {run.path}", soft_wrap=True)


def flatten(
    metrics: Mapping[str, Any], prefix: str = ""
) -> Iterable[tuple[str, str]]:
    """Yield ``("a.b", "text")`` for every plain value in nested dicts."""
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, float):
            yield name, f"{value:.4g}"
        elif isinstance(value, str | int) or value is None:
            yield name, str(value)
