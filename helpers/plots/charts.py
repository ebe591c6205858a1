"""Charts of scores, curves, lengths and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from helpers.plots.style import (
    AGREE,
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

MARKERS = "osD^vPX*"
Curve = tuple[Sequence[float], Sequence[float]]


class Share(Protocol):
    """A score with its interval, as fractions (``stats.Proportion``)."""

    p: float
    low: float
    high: float


def plot_accuracy_grid(
    grid: Mapping[str, Mapping[str, Share]],
    *,
    decoding: str,
    title: str = "Accuracy by benchmark",
    note: str | None = None,
) -> Figure:
    """Grouped bars with error bars: models × benchmarks.

    Args:
        grid: ``grid[model][benchmark]``; a missing cell leaves a gap.
        decoding: the decoding settings, written under the title.
        note: provenance, e.g. from ``recorded_on`` or ``published_by``.
    """
    models = list(grid)
    names = list(dict.fromkeys(b for row in grid.values() for b in row))
    figure, (ax,) = new_figure(max(5.2, 1.9 * len(names) + 1), 4.0, note=note)
    colours, width = colours_for(models), 0.8 / max(len(models), 1)
    for i, model in enumerate(models):
        for j, name in enumerate(names):
            if name in grid[model]:
                x = j + (i - (len(models) - 1) / 2) * width
                _draw_share(ax, x, grid[model][name], width, colours[model], i)
        ax.bar(0, 0, color=colours[model], label=model, hatch=HATCHES[i % 8])
    ax.set_xticks(range(len(names)), names)
    ax.set_ylim(0, 118)
    ax.set_yticks(range(0, 101, 20))
    ax.set_ylabel("correct (%), bars: 95 % interval", color=INK, fontsize=9)
    if models:
        ax.legend(frameon=False, fontsize=9, ncols=4, loc="upper right")
    set_title(ax, title, decoding)
    return figure


def _draw_share(
    ax: Axes, x: float, share: Share, width: float, colour: str, series: int
) -> None:
    value = 100 * share.p
    below, above = value - 100 * share.low, 100 * share.high - value
    ax.bar(
        x,
        value,
        width * 0.94,
        color=colour,
        hatch=HATCHES[series % 8],
        edgecolor="white",
        linewidth=0.5,
    )
    ax.errorbar(
        x,
        value,
        yerr=[[max(below, 0)], [max(above, 0)]],
        color=INK,
        capsize=3,
        linewidth=1,
    )
    ax.annotate(
        f"{value:.1f}",
        (x, 100 * share.high),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=INK,
    )


def plot_outcomes(
    outcomes: Mapping[str, Mapping[str, int]],
    *,
    title: str = "Right, and how the rest went wrong",
    decoding: str = "",
    note: str | None = None,
) -> Figure:
    """Stacked bars of counts: ``outcomes[row][kind]``, one bar a row."""
    rows = list(outcomes)
    kinds = list(dict.fromkeys(k for row in outcomes.values() for k in row))
    figure, (ax,) = new_figure(7.2, 1.4 + 0.34 * len(rows), note=note)
    palette = [OKABE_ITO["green"], OKABE_ITO["vermillion"]]
    palette += [OKABE_ITO["orange"], AGREE, OKABE_ITO["purple"]]
    start = [0] * len(rows)
    for i, kind in enumerate(kinds):
        counts = [outcomes[row].get(kind, 0) for row in rows]
        ax.barh(
            rows,
            counts,
            left=start,
            label=kind,
            color=palette[i % 5],
            hatch=HATCHES[i % 8],
            edgecolor="white",
            linewidth=0.5,
        )
        start = [a + b for a, b in zip(start, counts, strict=True)]
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("problems", fontsize=9, color=INK)
    _legend_beside(ax)
    set_title(ax, title, decoding)
    return figure


def _legend_beside(ax: Axes) -> None:
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    ax.legend(frameon=False, fontsize=8, **place)


def plot_curves(
    curves: Mapping[str, Curve],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    subtitle: str = "",
    bands: Mapping[str, Curve] | None = None,
    note: str | None = None,
) -> Figure:
    """Lines: ``curves[name] = (xs, ys)``.

    Args:
        bands: optional ``bands[name] = (lows, highs)`` drawn as error bars.
    """
    figure, (ax,) = new_figure(note=note)
    _draw_curves(ax, curves, bands or {})
    ax.set_xlabel(xlabel, fontsize=9, color=INK)
    ax.set_ylabel(ylabel, fontsize=9, color=INK)
    set_title(ax, title, subtitle)
    return figure


def _draw_curves(
    ax: Axes,
    curves: Mapping[str, Curve],
    bands: Mapping[str, Curve] | None = None,
) -> None:
    colours = colours_for(list(curves))
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        ax.plot(
            xs,
            ys,
            color=colours[name],
            label=name,
            linewidth=1.6,
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            markevery=max(1, len(ys) // 12),
        )
        if bands and name in bands:
            low, high = bands[name]
            ax.fill_between(xs, low, high, color=colours[name], alpha=0.18)
    if len(curves) > 1:
        ax.legend(frameon=False, fontsize=9)


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
    """Reward margin (left), tie fraction and accuracy (right) by step."""
    figure, (left, right) = new_figure(8.6, 3.6, columns=2, note=note)
    margins = {n: read_curve(r, "rewards/margins") for n, r in logs.items()}
    _draw_curves(left, margins)
    left.axhline(0, color=MUTED, linewidth=1, linestyle=":")
    left.set_ylabel("rewards/margins (nats)", fontsize=9, color=INK)
    _draw_shares_of_pairs(right, logs)
    right.set_ylim(-0.05, 1.05)
    right.set_ylabel("share of pairs", fontsize=9, color=INK)
    for ax in (left, right):
        ax.set_xlabel("optimizer step", fontsize=9, color=INK)
    set_title(left, title)
    return figure


def _draw_shares_of_pairs(
    ax: Axes, logs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Ties solid, accuracy dashed; colour and marker tell the run."""
    colours = colours_for(list(logs))
    lines = (("tie_fraction", "-"), ("rewards/accuracies", "--"))
    for key, line in lines:
        for i, (name, rows) in enumerate(logs.items()):
            steps, values = read_curve(rows, key)
            shape = {"marker": MARKERS[i % 8], "markersize": 4}
            shape["markevery"] = max(1, len(steps) // 8)
            ax.plot(steps, values, line, color=colours[name], **shape)
        ax.plot([], [], line, color=INK, label=key)
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1)}
    ax.legend(frameon=False, fontsize=8, ncols=2, **place)


def plot_length_histogram(
    lengths: Mapping[str, Sequence[int]],
    *,
    cap: int | None = None,
    title: str = "Length of the responses",
    subtitle: str = "",
    note: str | None = None,
) -> Figure:
    """Outlined histograms of token counts on common bins.

    Args:
        cap: ``max_new_tokens``, drawn as a line where responses are cut.
    """
    import numpy as np

    figure, (ax,) = new_figure(note=note)
    top = max([cap or 1, *(max(v, default=1) for v in lengths.values())])
    bins = np.linspace(0, top, min(40, top) + 1)
    colours = colours_for(list(lengths))
    for (name, values), line in zip(
        lengths.items(), ["-", "--", "-.", ":"] * len(lengths), strict=False
    ):
        ax.hist(
            values,
            bins=bins,
            histtype="step",
            color=colours[name],
            label=name,
            linestyle=line,
            linewidth=1.8,
        )
    if cap:
        ax.axvline(cap, color=INK, linestyle=":", label=f"cap {cap}")
    ax.set_xlabel("tokens", fontsize=9, color=INK)
    ax.set_ylabel("responses", fontsize=9, color=INK)
    ax.legend(frameon=False, fontsize=9)
    set_title(ax, title, subtitle)
    return figure


def plot_merge_fidelity(
    reports: Mapping[str, Mapping[str, Any]],
    *,
    title: str = "How much of the update survives the merge",
    note: str | None = None,
) -> Figure:
    """Bars of cosine and norm kept per merge; 1 is a perfect merge."""
    keys = ("cosine", "norm_kept")
    figure, (ax,) = new_figure(
        6.4, 1.5 + 0.55 * max(len(reports), 1), note=note
    )
    for i, key in enumerate(keys):
        values = [float(r.get(key) or 0) for r in reports.values()]
        places = [j + (i - 0.5) * 0.38 for j in range(len(reports))]
        colour = OKABE_ITO[("blue", "orange")[i]]
        ax.barh(
            places, values, 0.34, color=colour, hatch=HATCHES[i], label=key
        )
        for place, value in zip(places, values, strict=True):
            ax.text(value + 0.02, place, f"{value:.4g}", va="center", size=8)
    ax.axvline(1, color=INK, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(reports)), list(reports))
    ax.set_xlim(0, 1.2)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    _legend_beside(ax)
    set_title(ax, title)
    return figure


def plot_ledger(
    phases: Sequence[Mapping[str, Any]],
    *,
    title: str = "Where the time went",
    note: str | None = None,
) -> Figure:
    """Bars of wall time per phase, from rows of ``ledger.json``."""
    names = [str(p["phase"]) for p in phases]
    seconds = [float(p["seconds"]) for p in phases]
    figure, (ax,) = new_figure(7.2, 1.3 + 0.32 * len(names), note=note)
    ax.barh(names, seconds, color=OKABE_ITO["blue"])
    for place, phase in enumerate(phases):
        usd = float(phase.get("usd") or 0)
        label = f" {seconds[place]:.1f} s" + (f", ${usd:.2f}" if usd else "")
        ax.text(seconds[place], place, label, va="center", size=8, color=INK)
    ax.set_xlim(0, 1.18 * max([*seconds, 1e-9]))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("seconds of wall time", fontsize=9, color=INK)
    set_title(ax, title)
    return figure
