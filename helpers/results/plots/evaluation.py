"""Figures of evaluation: accuracy against the cap, and pass@k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from helpers.results.plots.charts import (
    draw_stack,
    legend_beside,
    plot_curves,
)
from helpers.results.plots.style import (
    AGREE,
    INK,
    MUTED,
    OKABE_ITO,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from helpers.results.caps import CapPoint
    from helpers.results.stats import Difference, Interval

# key of a point, its name in the legend, its colour
KINDS = (
    ("right", "right", OKABE_ITO["green"]),
    ("finished_wrong", "finished, wrong", OKABE_ITO["vermillion"]),
    ("truncated_wrong", "cut at the cap, wrong", OKABE_ITO["orange"]),
    ("no_answer", "finished, no answer", AGREE),
)
PANELS = "ABCDEFGH"


def plot_caps(
    curves: Mapping[str, Sequence[CapPoint]],
    *,
    title: str = "Accuracy against the token cap",
    subtitle: str = "",
    note: str | None = None,
) -> Figure:
    """One panel a model: stacked outcomes over the cap, 100 % a bar.

    The accuracy is the height of the lowest part; its 95 % interval is drawn
    on it.

    Args:
        curves: ``curves[model]``, its points by rising cap.
    """
    if not 0 < len(curves) <= len(PANELS):
        raise ValueError(f"1 to {len(PANELS)} models can be drawn")
    width = max(5.2, 3.1 * len(curves) + 1.4)
    mosaic = PANELS[: len(curves)]
    figure, axes = new_figure(width, 3.8, mosaic, note=note)
    for ax, (model, points) in zip(axes, curves.items(), strict=True):
        _draw_stack(ax, points)
        ax.set_title(model, fontsize=9.5, color=INK)
    axes[0].set_ylabel("share of the problems (%)", fontsize=9, color=INK)
    text = f"{title}\n" if subtitle else title
    figure.suptitle(
        text, x=0.01, ha="left", fontsize=11, color=INK, fontweight="bold"
    )
    if subtitle:
        figure.text(0.01, 0.905, subtitle, fontsize=8.5, color=MUTED)
    legend_beside(axes[-1])
    return figure


def _draw_stack(ax: Axes, points: Sequence[CapPoint]) -> None:
    places, colours = range(len(points)), [colour for *_, colour in KINDS]
    parts = {
        label: [100 * getattr(p, key) / p.n for p in points]
        for key, label, _ in KINDS
    }
    draw_stack(ax, places, parts, colours, 0.86, upright=True)
    values = [100 * p.score.p for p in points]
    low = [100 * (p.score.p - p.score.low) for p in points]
    high = [100 * (p.score.high - p.score.p) for p in points]
    ax.errorbar(
        places,
        values,
        yerr=[low, high],
        color=INK,
        marker="o",
        markersize=3.5,
        linewidth=1.2,
        capsize=2.5,
        label="accuracy, 95 % interval",
    )
    ax.set_xticks(places, [str(p.cap) for p in points], fontsize=8)
    ax.set_ylim(0, 100)
    ax.set_xlabel("cap in tokens", fontsize=9, color=INK)


def plot_differences(
    panels: Mapping[str, Mapping[str, Difference]],
    *,
    title: str = "What changed, and how surely",
    subtitle: str = "",
    note: str | None = None,
) -> Figure:
    """One panel a benchmark, one line a comparison: points with 95 % bars.

    A bar that crosses the line at zero tells nothing from noise.

    Args:
        panels: benchmark -> name of the comparison -> its difference; the
            same comparisons everywhere.
    """
    names = list(next(iter(panels.values())))
    height = 1.9 + 0.4 * len(names)
    mosaic = PANELS[: len(panels)]
    figure, axes = new_figure(8.2, height, mosaic, note=note)
    changes = [c for rows in panels.values() for c in rows.values()]
    reach = 110 * max(abs(edge) for c in changes for edge in (c.low, c.high))
    for ax, (benchmark, rows) in zip(axes, panels.items(), strict=True):
        for place, change in enumerate(rows[name] for name in names):
            ends = [100 * change.low, 100 * change.high]
            ax.plot(ends, [place, place], color=INK, linewidth=1.6)
            ax.plot(100 * change.diff, place, "o", color=OKABE_ITO["blue"])
        ax.axvline(0, color=MUTED, linewidth=1, linestyle="--")
        ax.set_xlim(-reach, reach)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_yticks(range(len(names)), names if ax is axes[0] else "")
        ax.set_xlabel("change (points)", fontsize=9, color=INK)
        ax.set_title(benchmark, fontsize=9.5, color=INK)
    text = f"{title}\n{subtitle}" if subtitle else title
    figure.suptitle(text, x=0.01, ha="left", fontsize=10.5, color=INK)
    return figure


def plot_pass_at_k(
    curves: Mapping[str, Mapping[int, Interval]],
    *,
    title: str = "What k samples can reach",
    subtitle: str = "",
    note: str | None = None,
) -> Figure:
    """pass@k over k, one line a model, with 95 % bands."""
    drawn = {
        name: (list(points), [100 * p.value for p in points.values()])
        for name, points in curves.items()
    }
    bands = {
        name: (
            [100 * p.low for p in points.values()],
            [100 * p.high for p in points.values()],
        )
        for name, points in curves.items()
    }
    figure = plot_curves(
        drawn,
        bands=bands,
        title=title,
        subtitle=subtitle,
        xlabel="k, samples of each problem",
        ylabel="pass@k (%), bands: 95 % interval",
        note=note,
    )
    (ax,) = figure.axes
    ax.set_xticks(sorted({k for points in curves.values() for k in points}))
    return figure
