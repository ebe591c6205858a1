"""``mathslm solutions``: worked solutions as rows for SFT."""

from __future__ import annotations

from helpers.cli.base import show_metrics
from helpers.experiments.options import Force, RunFolder, Sets, Tier, open_run


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
