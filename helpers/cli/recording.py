"""The commands ``mathslm record`` and ``mathslm dpo-sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from helpers.base import LabError
from helpers.cli.base import (
    RunFolder,
    Sets,
    Tier,
    load_setup,
    open_run,
    out,
    require_run,
)


def record(
    run_dir: Annotated[Path, typer.Argument(help="A finished run folder.")],
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", help="Default: data/measured/<tier>/run."),
    ] = None,
) -> None:
    """Pack a finished run, so that RUN_MODE=replay can show it."""
    require_run(run_dir)
    recipe, _ = load_setup(None, run_dir, None)
    from helpers.base import RunDir
    from helpers.replay import record_run
    from helpers.session import list_stages

    run = RunDir.open(run_dir, recipe)
    target = record_run(run, list_stages(recipe), out_dir)
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    out.print(f"Recorded in {target}: {size / 2**20:.1f} MiB")


def dpo_sweep(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    learning_rates: Annotated[
        str, typer.Option(help="Comma-separated.")
    ] = "5e-7,5e-6,5e-5,2e-4",
    betas: Annotated[str, typer.Option(help="Comma-separated.")] = "0.1,0.3",
    steps: Annotated[str, typer.Option(help="Comma-separated.")] = "60,200",
    dev: Annotated[
        int | None, typer.Option(min=1, help="Dev problems. Default: all.")
    ] = None,
) -> None:
    """Train DPO over a grid of settings and measure each on dev."""
    grid = [
        _read_numbers("--learning-rates", learning_rates),
        _read_numbers("--betas", betas),
        _read_numbers("--steps", steps),
    ]
    recipe, run = open_run(tier, run_dir, sets)
    from helpers.experiments.dpo_sweep import build_grid, run_sweep

    settings = build_grid(grid[0], grid[1], map(int, grid[2]))
    out.print(show_sweep(run_sweep(recipe, run, settings, n_dev=dev)))
    out.print(f"Rows: {run.path / 'dpo_sweep.jsonl'}", soft_wrap=True)


def _read_numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise LabError(
            f"{option} {text!r} is not a list of positive numbers.",
            fix=f"write it as {option} 5e-6,2e-4",
        )
    return numbers


def show_sweep(rows: list[dict[str, Any]]) -> Table:
    """One row a setting: margin, KL, and what both models do on dev."""
    from helpers.results import format_p, proportion

    table = Table(
        "learning rate", "β", "steps", "margin", "KL a token",
        "unmerged: right", "won", "lost", "p", "in bf16: won", "lost",
    )  # fmt: skip
    for row in rows:
        plain, stored = row["unmerged"], row["merged_bf16"]
        table.add_row(
            f"{row['learning_rate']:g}",
            f"{row['beta']:g}",
            str(row["steps"]),
            f"{row['margin']:.4f}",
            f"{row['kl_per_token']:.2g}",
            str(proportion(plain["after"], row["n"])),
            str(plain["won"]),
            str(plain["lost"]),
            format_p(plain["p_value"]),
            str(stored["won"]),
            str(stored["lost"]),
        )
    return table
