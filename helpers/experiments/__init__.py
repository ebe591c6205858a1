"""Experiments: questions that are put to the stages, each with a command.

``EXPERIMENTS`` is what the command line offers of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helpers.experiments.ablation import run_ablation, start_ablation
from helpers.experiments.dpo_sweep import run_sweep, start_sweep
from helpers.experiments.seeding import run_seeding, start_seeding


@dataclass(frozen=True)
class Experiment:
    """``run`` is for Python, ``command`` for the command line (typer)."""

    name: str
    summary: str
    run: Callable[..., Any]
    command: Callable[..., None]


EXPERIMENTS = {
    each.name: each
    for each in (
        Experiment(
            "seeding",
            "Sample with three seed schemes at two temperatures.",
            run_seeding,
            start_seeding,
        ),
        Experiment(
            "dpo-sweep",
            "Train DPO over a grid of settings and measure each on dev.",
            run_sweep,
            start_sweep,
        ),
        Experiment(
            "ablate",
            "Train on worked solutions with one thing changed at a time.",
            run_ablation,
            start_ablation,
        ),
    )
}
