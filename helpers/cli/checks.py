"""The command ``mathslm doctor``: what this machine can run."""

from __future__ import annotations

import typer

from helpers.experiments.options import (
    Force,
    RunFolder,
    Sets,
    Tier,
    load_setup,
    out,
)


def doctor(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    force: Force = False,
) -> None:
    """Say what this machine has and which tiers it can run.

    With --tier, --run-dir or --set: check one recipe, by every guard that
    needs no model in memory, and end with 1 where one fails.
    """
    from helpers.doctor import run_doctor

    if tier is None and run_dir is None and not sets:
        report = run_doctor()
        out.print(str(report), markup=False, soft_wrap=True)
        raise typer.Exit(0 if report.ok else 1)
    from helpers.preflight import list_later, run_preflight

    recipe, folder = load_setup(tier, run_dir, sets)
    report = run_preflight(recipe, folder, force=force)
    out.print(str(report), markup=False, soft_wrap=True)
    out.print("The stages themselves check:")
    for when, titles in list_later().items():
        text = f"  {when}: {'; '.join(titles)}"
        out.print(text, markup=False, soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)
