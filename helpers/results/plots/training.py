"""Charts of training: loss, DPO curves, and what a merge keeps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helpers.results.plots.charts import Curve, place_legend, plot_curves
from helpers.results.plots.style import (
    HATCHES,
    INK,
    MUTED,
    OKABE_ITO,
    colours_for,
    new_figure,
    set_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW = 10
LINES = ("-", "--", "-.", ":")


def read_curve(rows: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """``(steps, values)`` of the log rows that have ``key``."""
    kept = [
        (row.get("step", i), row[key])
        for i, row in enumerate(rows, 1)
        if row.get(key) is not None
    ]
    return [step for step, _ in kept], [value for _, value in kept]


def plot_loss(
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    title: str = "Training loss",
    subtitle: str = "",
    note: str | None = None,
) -> Figure:
    """Loss against optimizer step, one line a log of the trainer."""
    curves = {name: read_curve(rows, "loss") for name, rows in logs.items()}
    return plot_curves(
        curves,
        title=title,
        subtitle=subtitle,
        xlabel="optimizer step",
        ylabel="loss (nats per token)",
        note=note,
    )


def plot_dpo_curves(
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    title: str = "DPO: watch the margin, not the accuracy",
    note: str | None = None,
) -> Figure:
    """Reward margin (left), accuracy and tie fraction (right) by step.

    Single steps are faint dots; the line is their running mean over the
    last ``WINDOW`` steps (fewer at the start), because one step, above all
    a last one with few pairs, is noise.
    """
    figure, (left, upper, lower) = new_figure(
        8.6, 4.2, mosaic="MA;MT", note=note
    )
    panels = (
        (left, "rewards/margins", "rewards/margins (β·nats)"),
        (upper, "rewards/accuracies", "rewards/accuracies"),
        (lower, "tie_fraction", "tie_fraction"),
    )
    for ax, key, label in panels:
        _draw_smoothed(ax, logs, key)
        ax.set_ylabel(label, fontsize=9, color=INK)
    left.axhline(0, color=MUTED, linewidth=1, linestyle=":")
    if logs:
        left.legend(frameon=False, fontsize=9, loc="upper left")
    for ax in (upper, lower):
        ax.set_ylim(-0.06, 1.06)
    upper.tick_params(labelbottom=False)
    for ax in (left, lower):
        ax.set_xlabel("optimizer step", fontsize=9, color=INK)
    upper.set_title("share of pairs", loc="left", fontsize=9, color=INK)
    how = f"dots: single steps; lines: mean of the last {WINDOW} steps"
    set_title(left, title, how)
    return figure


def plot_dpo_sweep(
    groups: Mapping[str, Sequence[tuple[float, int]]],
    *,
    threshold: float,
    silent: int,
    title: str,
    subtitle: str = "",
    note: str | None = None,
) -> Figure:
    """Projected margin against dev verdicts that changed, a dot a run.

    Args:
        groups: ``{label: (margin in nats, changed verdicts) of its runs}``.
        threshold: margin below which the rule stops a run.
        silent: most changed verdicts that no test could call an effect.
    """
    figure, (ax,) = new_figure(7.4, 4.0, note=note)
    for i, (name, dots) in enumerate(groups.items()):
        colour = list(OKABE_ITO.values())[1:][i % 7]
        margins = [max(margin, 1e-6) for margin, _ in dots]
        changed = [count for _, count in dots]
        ax.plot(
            margins,
            changed,
            "osD^v<>"[i % 7],
            color=colour,
            label=name,
            markeredgecolor=INK,
            markeredgewidth=0.5,
        )
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=5)
    ax.set_ylim(bottom=-0.5)
    ax.axvline(threshold, color=INK, linestyle="--", linewidth=1)
    ax.axhline(silent + 0.5, color=MUTED, linestyle=":", linewidth=1)
    label = "margin at the end, projected early (nats)"
    ax.set_xlabel(label, fontsize=9, color=INK)
    ax.set_ylabel("verdicts changed on dev", fontsize=9, color=INK)
    place_legend(ax)
    set_title(ax, title, subtitle)
    return figure


def _draw_smoothed(
    ax: Axes, logs: Mapping[str, Sequence[Mapping[str, Any]]], key: str
) -> None:
    """Dots of the steps and their running mean, one line style a run."""
    colours = colours_for(list(logs))
    for i, (name, rows) in enumerate(logs.items()):
        steps, values = read_curve(rows, key)
        dots = {"marker": "o", "markersize": 2.5, "markeredgewidth": 0}
        ax.plot(steps, values, color=colours[name], ls="", alpha=0.35, **dots)
        ax.plot(
            steps,
            smooth(values),
            LINES[i % len(LINES)],
            color=colours[name],
            label=name,
            linewidth=1.8,
        )


def smooth(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Running mean of each value and up to ``window - 1`` before it."""
    parts = [
        values[max(0, i - window + 1) : i + 1] for i in range(len(values))
    ]
    return [sum(part) / len(part) for part in parts]


def plot_merge_fidelity(
    reports: Mapping[str, Mapping[str, Any]],
    *,
    title: str = "How much of the update survives the merge",
    note: str | None = None,
) -> Figure:
    """Bars of cosine and norm kept per merge; 1 is a perfect merge."""
    names = [textwrap.fill(name, 18) for name in reports]
    figure, (ax,) = new_figure(7.2, 1.6 + 0.6 * max(len(names), 1), note=note)
    lowest, longest = 0.0, 1.0
    for i, key in enumerate(("cosine", "norm_kept")):
        values = [float(r.get(key) or 0) for r in reports.values()]
        places = [j + (i - 0.5) * 0.38 for j in range(len(names))]
        colour = OKABE_ITO[("blue", "orange")[i]]
        ax.barh(
            places, values, 0.34, color=colour, hatch=HATCHES[i], label=key
        )
        lowest, longest = min([lowest, *values]), max([longest, *values])
        for place, value in zip(places, values, strict=True):
            _write_value(ax, value, place)
    ax.axvline(1, color=INK, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_xlim(1.2 * lowest, 1.2 * longest)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    place_legend(ax)
    set_title(ax, title)
    return figure


def _write_value(ax: Axes, value: float, place: float) -> None:
    """The number behind its bar; clipped to the axes, out of the layout."""
    text = ax.annotate(
        f"{value:.4g}",
        (max(value, 0), place),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        size=8,
    )
    # a value outside the limits must not squeeze the axes to nothing
    text.set_in_layout(False)
