"""Everything about one tier that can be known before it costs anything.

``mathslm doctor --tier X``: the guards of :mod:`helpers.stages.guards` that need no
model in memory, on this machine, for this recipe and this run folder.
Nothing is downloaded, no network is touched, no run folder is made. Lines
start with [OK], [WARN] or [FAIL]; a line that is not OK ends on its remedy.
"""

from __future__ import annotations

from pathlib import Path

from helpers.base import GUARDS, LabError, Recipe
from helpers.doctor import Report, judge_basics, judge_gpus
from helpers.machine import Machine, inspect_machine
from helpers.preflight.inputs import judge_inputs
from helpers.preflight.lines import blame
from helpers.preflight.machine import judge_hardware
from helpers.preflight.model import judge_model
from helpers.preflight.plan import judge_plan
from helpers.preflight.results import judge_results

__all__ = ["list_later", "run_preflight"]


def run_preflight(
    recipe: Recipe,
    folder: str | Path,
    *,
    force: bool = False,
    machine: Machine | None = None,
) -> Report:
    """Check a recipe on this machine, for a run in ``folder``.

    Args:
        folder: the run folder; it need not exist, and is not made.
        force: results of other inputs are to be set aside.
        machine: what was found; None: look now.
    """
    machine = machine or inspect_machine(folder)
    lines = [*judge_basics(machine), *judge_gpus(machine)]
    for judge in (judge_hardware, judge_plan, judge_model, judge_inputs):
        try:
            lines += judge(recipe, machine)
        except LabError as error:
            lines.append(blame(judge.__name__.removeprefix("judge_"), error))
    lines += judge_results(recipe, Path(folder), machine, force=force)
    return Report(tuple(lines))


def list_later() -> dict[str, list[str]]:
    """``{when: titles}`` of the guards that only the stages can run."""
    later: dict[str, list[str]] = {}
    for guard in GUARDS:
        if not guard.doctor:
            later.setdefault(guard.when, []).append(guard.title)
    return later
