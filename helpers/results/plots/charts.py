"""Charts of scores, curves, lengths and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helpers.results.plots.style import (
    AGREE,
    HATCHES,
    INK,
    OKABE_ITO,
    colours_for,
    new_figure,
    set_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from helpers.results.stats import Proportion

MARKERS = "osD^vPX*"
Curve = tuple[Sequence[float], Sequence[float]]


def plot_accuracy_grid(
    grid: Mapping[str, Mapping[str, Proportion]],
    *,
    decoding: str,
    title: str = "Accuracy by benchmark",
    note: str | None = None,
) -> Figure:
    """Grouped bars with error bars: models × benchmarks.

    Args:
        grid: ``grid[model][benchmark]``; a missing cell leaves a gap.
        decoding: the decoding settings, written under the title.
        note: provenance, e.g. from ``recorded_on``.
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
    ax: Axes,
    x: float,
    share: Proportion,
    width: float,
    colour: str,
    series: int,
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
    parts = {k: [outcomes[row].get(k, 0) for row in rows] for k in kinds}
    palette = [OKABE_ITO["green"], OKABE_ITO["vermillion"]]
    palette += [OKABE_ITO["orange"], AGREE, OKABE_ITO["purple"]]
    draw_stack(ax, rows, parts, palette)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("problems", fontsize=9, color=INK)
    legend_beside(ax)
    set_title(ax, title, decoding)
    return figure


def draw_stack(
    ax: Axes,
    places: Sequence[Any],
    parts: Mapping[str, Sequence[float]],
    colours: Sequence[str],
    size: float = 0.8,
    *,
    upright: bool = False,
) -> list[float]:
    """Stacked bars: each of ``parts`` has one value a place.

    Args:
        size: width of a bar, 1 leaves no gap.

    Returns:
        the sum at each place.
    """
    draw, base = (ax.bar, "bottom") if upright else (ax.barh, "left")
    sums = [0.0] * len(places)
    for i, (label, values) in enumerate(parts.items()):
        draw(
            places,
            values,
            size,
            **{base: sums},
            label=label,
            color=colours[i % len(colours)],
            hatch=HATCHES[i % len(HATCHES)],
            edgecolor="white",
            linewidth=0.5,
        )
        sums = [a + b for a, b in zip(sums, values, strict=True)]
    return sums


def legend_beside(ax: Axes) -> None:
    """A legend to the right of the axes, where it hides no bar."""
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
