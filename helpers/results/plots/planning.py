"""Figures of a plan: what fills a card, and what happens when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helpers.results.plots.charts import draw_stack
from helpers.results.plots.style import (
    INK,
    MUTED,
    OKABE_ITO,
    new_figure,
    set_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PART_COLOURS = (
    *("blue", "orange", "sky", "green"),
    *("yellow", "purple", "black", "vermillion"),
)


def plot_memory_bar(
    jobs: Sequence[Mapping[str, Any]],
    *,
    capacity: float | None = None,
    card: str = "",
    title: str = "Memory of one card",
    note: str | None = None,
) -> Figure:
    """One stacked bar a job; a line marks the card's memory.

    Args:
        jobs: ``{"job": name, "parts": {part: GiB}}`` each.
        capacity: memory of the card in GiB.
        card: its name, for the line's label.
    """
    figure, (ax,) = new_figure(8.0, 1.9 + 0.42 * len(jobs), note=note)
    names = list(dict.fromkeys(part for job in jobs for part in job["parts"]))
    places = range(len(jobs))
    parts = {
        name: [float(job["parts"].get(name, 0.0)) for job in jobs]
        for name in names
    }
    colours = [OKABE_ITO[name] for name in PART_COLOURS]
    sums = draw_stack(ax, places, parts, colours, 0.62)
    for place, total in zip(places, sums, strict=True):
        ax.text(total, place, f" {total:.1f}", va="center", size=8, color=INK)
    reach = max([*sums, capacity or 0.0, 1e-9])
    if capacity:
        _mark_capacity(ax, capacity, card)
    ax.set_xlim(0, 1.12 * reach)
    ax.set_yticks(list(places), [str(job["job"]) for job in jobs])
    ax.invert_yaxis()
    _finish_bars(ax, "GiB")
    figure.legend(
        loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    set_title(ax, title)
    return figure


def _mark_capacity(ax: Axes, capacity: float, card: str) -> None:
    ax.axvline(capacity, color=OKABE_ITO["vermillion"], linewidth=1.6)
    label = f"{card} {capacity:.0f} GiB ".lstrip()
    ax.annotate(
        label,
        (capacity, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=OKABE_ITO["vermillion"],
    )


def plot_gantt(
    phases: Sequence[Mapping[str, Any]],
    *,
    title: str = "What happens when",
    note: str | None = None,
) -> Figure:
    """Phases one after another, with their hours and dollars.

    Args:
        phases: ``{"phase": name, "start": hours, "hours": …, "usd": …}``.
    """
    figure, (ax,) = new_figure(8.0, 1.3 + 0.34 * len(phases), note=note)
    end = max([float(p["start"]) + float(p["hours"]) for p in phases] or [1.0])
    for place, phase in enumerate(phases):
        start, hours = float(phase["start"]), float(phase["hours"])
        ax.barh(place, hours, left=start, color=OKABE_ITO["blue"], height=0.6)
        usd = float(phase.get("usd") or 0.0)
        label = f"{hours:.2f} h" if hours >= 0.1 else f"{60 * hours:.1f} min"
        label += f", ${usd:.2f}" if usd else ""
        late = start + hours > 0.72 * end
        ax.text(
            start if late else start + hours,
            place,
            f"{label} " if late else f" {label}",
            ha="right" if late else "left",
            va="center",
            size=8,
            color=INK,
        )
    ax.set_xlim(0, 1.05 * end)
    ax.set_yticks(range(len(phases)), [str(p["phase"]) for p in phases])
    ax.invert_yaxis()
    _finish_bars(ax, "hours from the start")
    set_title(ax, title)
    return figure


def _finish_bars(ax: Axes, label: str) -> None:
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color=MUTED, alpha=0.3, linewidth=0.6)
    ax.set_xlabel(label, fontsize=9, color=INK)
