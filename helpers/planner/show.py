"""A plan as tables on the terminal, and as plain data for figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from helpers.base import Recipe
from helpers.planner.cards import GIB
from helpers.planner.memory import PARTS
from helpers.planner.plan import Plan, plan


def show_plan_command(
    recipe: Recipe,
    *,
    card: str | None = None,
    cards: int | None = None,
    out: Console | None = None,
) -> Plan:
    """Plan a recipe and print it: what ``mathslm plan`` does.

    Raises:
        LabError: see :func:`helpers.planner.plan`.
    """
    found = plan(recipe, card=card, cards=cards)
    print_plan(found, out or Console(highlight=False))
    return found


def print_plan(found: Plan, out: Console) -> None:
    """Print all tables, warnings and assumptions."""
    out.print(describe_machine(found), soft_wrap=True)
    for table in (
        make_steps_table(found),
        make_memory_table(found),
        make_fits_table(found),
        make_phase_table(found),
    ):
        out.print(table)
    if found.replicas:
        out.print(f"Serving: {found.replicas.why}", soft_wrap=True)
    _print_list("Good to know", found.facts, out)
    _print_list("Assumed", found.assumptions, out)
    _print_list("Warnings", found.warnings, out, style="bold yellow")


def describe_machine(found: Plan) -> str:
    """Model and machine in one line."""
    work = found.workload
    where = "a CPU"
    if work.card:
        where = f"{work.cards} × {work.card.name}, {work.strategy.upper()}"
    bits = work.quantization or work.dtype
    return (
        f"Plan of '{work.name}': {work.shape.name}, {found.parameters:,} "
        f"parameters in {bits}, on {where}."
    )


def make_steps_table(found: Plan) -> Table:
    """Parameters, batch and steps of every training job."""
    table = _table("Training", "job", "trainable of all", "batch", "steps")
    for name, steps in found.steps.items():
        trained, total = found.trainable[name]
        count = steps.count
        table.add_row(
            name,
            f"{trained:,} of {total:,} ({trained / total:.4%})",
            str(steps.batch),
            f"{count.rows} rows: {count.per_epoch} an epoch, {count.total} "
            f"in all (by floor {count.floor_per_epoch} and "
            f"{count.floor_total})",
        )
    return table


def make_memory_table(found: Plan) -> Table:
    """GiB of one card, by part, a column for each job."""
    names = [estimate.title for estimate in found.memory]
    table = _table("Memory of one card, GiB", "part", *names)
    for part in PARTS:
        values = [m.parts[part] / GIB for m in found.memory]
        if any(values):
            table.add_row(part, *(f"{value:.2f}" for value in values))
    table.add_section()
    sums = [sum(m.parts.values()) / GIB for m in found.memory]
    table.add_row("all", *(f"{value:.2f}" for value in sums))
    if any(m.loading for m in found.memory):
        loads = [m.loading / GIB for m in found.memory]
        cells = (f"{value:.2f}" if value else "" for value in loads)
        table.add_row("before, loading", *cells)
    return table


def make_fits_table(found: Plan) -> Table:
    """Which job fits on which card."""
    names = [estimate.title for estimate in found.memory]
    cards = found.workload.cards
    title = f"Does it fit, on {cards} of each?" if cards > 1 else "Does it fit"
    table = _table(title, "card", *names)
    for card, jobs in found.fits.items():
        table.add_row(card, *("yes" if jobs[n] else "no" for n in names))
    return table


def make_phase_table(found: Plan) -> Table:
    """Tokens, hours and dollars of every phase, and the total."""
    names = ("phase", "tokens", "hours", "USD", "how")
    table = _table("Time and money", *names)
    for phase in found.phases:
        table.add_row(*_phase_cells(phase))
    table.add_section()
    table.add_row(*_phase_cells(found.total))
    return table


def _phase_cells(phase: Any) -> tuple[str, ...]:
    tokens = f"{phase.tokens:,.0f}" if phase.tokens else ""
    if phase.hours is None:
        return phase.name, tokens, "unknown", "", phase.how
    usd = f"{phase.usd:.2f}" if phase.usd else ""
    return phase.name, tokens, f"{phase.hours:.2f}", usd, phase.how


def _table(title: str, first: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in names:
        wide = name in ("batch", "steps", "how")
        table.add_column(name, justify="left" if wide else "right")
    return table


def _print_list(
    title: str, lines: Iterable[str], out: Console, style: str = "bold"
) -> None:
    lines = list(lines)
    if lines:
        out.print(f"{title}:", style=style)
    for line in lines:
        out.print(f"  - {line}", markup=False, soft_wrap=True)


def memory_rows(found: Plan) -> list[dict[str, Any]]:
    """For ``plots.plot_memory_bar``: one row a job, parts in GiB."""
    used = [p for p in PARTS if any(m.parts[p] for m in found.memory)]
    return [
        {"job": m.title, "parts": {p: m.parts[p] / GIB for p in used}}
        for m in found.memory
    ]


def phase_rows(found: Plan) -> list[dict[str, Any]]:
    """For ``plots.plot_gantt``: phases with their start, in hours."""
    rows, start = [], 0.0
    for phase in found.phases:
        if not phase.hours:
            continue
        rows.append(
            {
                "phase": phase.name,
                "start": start,
                "hours": phase.hours,
                "usd": phase.usd or 0.0,
            }
        )
        start += phase.hours
    return rows
