"""Figures of evaluation: accuracy against the cap, and pass@k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from helpers.plots.charts import legend_beside, plot_curves
from helpers.plots.style import (
    AGREE,
    HATCHES,
    INK,
    MUTED,
    OKABE_ITO,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# key of a point, its name in the legend, its colour
KINDS = (
    ("right", "right", OKABE_ITO["green"]),
    ("finished_wrong", "finished, wrong", OKABE_ITO["vermillion"]),
    ("truncated_wrong", "cut at the cap, wrong", OKABE_ITO["orange"]),
    ("no_answer", "finished, no answer", AGREE),
)
PANELS = "ABCDEFGH"


class Counted(Protocol):
    """Counts under one cap (``caps.CapPoint``)."""

    cap: int
    n: int
    score: Any


class Ranged(Protocol):
    """An estimate with its interval, as fractions (``stats.Interval``)."""

    value: float
    low: float
    high: float


def plot_caps(
    curves: Mapping[str, Sequence[Counted]],
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


def _draw_stack(ax: Axes, points: Sequence[Counted]) -> None:
    places, base = range(len(points)), [0.0] * len(points)
    for i, (key, label, colour) in enumerate(KINDS):
        shares = [100 * getattr(p, key) / p.n for p in points]
        ax.bar(
            places,
            shares,
            0.86,
            bottom=base,
            color=colour,
            hatch=HATCHES[i],
            edgecolor="white",
            linewidth=0.5,
            label=label,
        )
        base = [a + b for a, b in zip(base, shares, strict=True)]
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


def plot_pass_at_k(
    curves: Mapping[str, Mapping[int, Ranged]],
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
