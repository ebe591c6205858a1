"""What the planner says of a recipe before it starts: sizes and steps."""

from __future__ import annotations

from helpers.base import LabError, Recipe
from helpers.doctor import Line
from helpers.machine import Machine
from helpers.planner import JobSteps, Plan, check_steps_per_epoch, plan
from helpers.preflight.lines import blame, try_guard

# Said by other lines, for the machine that is really there.
ELSEWHERE = ("is gated", "GiB a card and", "has no bf16")


def judge_plan(recipe: Recipe, machine: Machine) -> list[Line]:
    """Tensor parallelism, steps and the planner's warnings."""
    try:
        found = plan(recipe, has_token=True)
    except LabError as error:
        return [blame("plan", error)]
    lines = [
        judge_steps(found.steps[name])
        for name in found.steps
        if found.steps[name].job.min_steps_per_epoch
    ]
    if found.replicas:
        lines.append(Line("OK", "serving", found.replicas.why.split(". ")[0]))
    return lines + list_warnings(found)


def judge_steps(steps: JobSteps) -> Line:
    """Steps an epoch of the rows that are expected: the packing trap.

    Only a warning: how many rows there will be is estimated here. The stage
    counts the real ones, and refuses.
    """
    job, count = steps.job, steps.count
    rows = job.rows if job.packing else None
    return try_guard(
        f"steps of {job.title}",
        lambda: check_steps_per_epoch(
            count, job.min_steps_per_epoch, unpacked_rows=rows
        ),
        f"about {count.per_epoch} an epoch, {count.total} in all",
        status="WARN",
    )


def list_warnings(found: Plan) -> list[Line]:
    """The planner's other warnings, one line each."""
    return [
        Line("WARN", "plan", text)
        for text in found.warnings
        if not any(part in text for part in ELSEWHERE)
        and "steps an epoch, fewer than" not in text
    ]
