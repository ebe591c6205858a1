"""The command ``mathslm record``: pack a finished run for replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helpers.cli.base import require_run
from helpers.experiments.options import (
    load_setup,
    out,
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
