"""Drawn explanations: the map of the course and the paired 2×2 table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from helpers.results.plots.style import (
    AGREE,
    INK,
    MUTED,
    OKABE_ITO,
    new_figure,
    set_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class CourseStep(NamedTuple):
    """One notebook: number, title, and what it hands to the next."""

    key: str
    title: str
    hands_on: str


COURSE_STEPS = (
    CourseStep("00", "Start here", "a checked\nmachine"),
    CourseStep("01", "Grading", "one grader\nfor all"),
    CourseStep("02", "Self-distillation", "sft.jsonl\npairs.jsonl"),
    CourseStep("03", "SFT", "sft/merged"),
    CourseStep("04", "DPO", "dpo/merged"),
    CourseStep("05", "Evaluation", "paired scores"),
    CourseStep("06", "GRPO", "rewards, costs"),
    CourseStep("07", "Scaling up", ""),
)
NOT_YET = ("06",)  # in the plan of the course, not in this version
SMALL = {"ha": "center", "fontsize": 7.5, "color": INK, "style": "italic"}


def plot_course_map(
    steps: Sequence[CourseStep] = COURSE_STEPS, *, here: str | None = None
) -> Figure:
    """Boxes and arrows, four a row: each arrow names what is handed on.

    A notebook that this version does not have is dashed and says so.

    Args:
        here: number of the notebook to highlight, e.g. ``"03"``.
    """
    rows = (len(steps) + 3) // 4
    figure, (ax,) = new_figure(9.2, 1.35 * rows + 0.35)
    ax.set_axis_off()
    ax.set_xlim(-0.02, 3 * 1.5 + 0.94)
    ax.set_ylim(-rows + 0.6, 0.35)
    places = [(1.5 * (i % 4), -float(i // 4)) for i in range(len(steps))]
    for step, place in zip(steps, places, strict=True):
        _draw_box(ax, step, place, step.key == here)
    for step, start, end in zip(steps, places, places[1:], strict=False):
        _draw_arrow(ax, step.hands_on, start, end)
    for step, (x, y) in zip(steps, places, strict=True):
        if step.key in NOT_YET:
            place = (x + 0.46, y - 0.27)
            ax.annotate("not in this version", place, **SMALL, va="top")
    set_title(ax, "The course: what each notebook hands to the next")
    return figure


def _draw_box(
    ax: Axes, step: CourseStep, place: tuple[float, float], here: bool
) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = place
    missing = step.key in NOT_YET
    ax.add_patch(
        FancyBboxPatch(
            (x, y - 0.24),
            0.92,
            0.48,
            boxstyle="round,pad=0,rounding_size=0.07",
            facecolor=_fill_box(here, missing),
            linestyle="--" if missing else "-",
            edgecolor=OKABE_ITO["blue"] if here else MUTED,
            linewidth=1.3,
        )
    )
    colour = "white" if here else INK
    for text, dy, weight in (
        (step.key, 0.1, "bold"),
        (step.title, -0.1, None),
    ):
        ax.text(
            x + 0.46,
            y + dy,
            text,
            ha="center",
            va="center",
            fontsize=9,
            color=colour,
            fontweight=weight or "normal",
        )


def _fill_box(here: bool, missing: bool) -> str:
    if here:
        return OKABE_ITO["blue"]
    return "white" if missing else "#EEF2F6"


def _draw_arrow(
    ax: Axes,
    label: str,
    start: tuple[float, float],
    end: tuple[float, float],
) -> None:
    style = {
        "arrowstyle": "-|>",
        "color": MUTED,
        "linewidth": 1.2,
        "shrinkA": 0,
        "shrinkB": 1,
    }
    (x0, y0), (x1, y1) = start, end
    if y0 == y1:
        ax.annotate("", (x1, y1), (x0 + 0.92, y0), arrowprops=style)
        middle, height = (x0 + 0.92 + x1) / 2, y0 + 0.05
    else:  # to the next row: down, back to the left, down
        x0, x1, y = x0 + 0.46, x1 + 0.46, (y0 + y1) / 2
        ax.plot([x0, x0, x1], [y0 - 0.24, y, y], color=MUTED, linewidth=1.2)
        ax.annotate("", (x1, y1 + 0.24), (x1, y), arrowprops=style)
        middle, height = (x0 + x1) / 2, y + 0.03
    ax.text(
        middle,
        height,
        label,
        va="bottom",
        **SMALL,
    )


def plot_paired(
    both: int,
    only_before: int,
    only_after: int,
    neither: int,
    *,
    before: str = "before",
    after: str = "after",
    title: str = "The same problems, two models",
    note: str | None = None,
) -> Figure:
    """The paired 2×2 table as four tiles; only two of them are evidence."""
    figure, (ax,) = new_figure(4.8, 3.0, note=note)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    cells = (
        (0, 1, both, "both right", AGREE, INK),
        (1, 1, only_before, "lost", OKABE_ITO["vermillion"], "white"),
        (0, 0, only_after, "won", OKABE_ITO["green"], "white"),
        (1, 0, neither, "both wrong", AGREE, INK),
    )
    for x, y, count, label, colour, ink in cells:
        ax.fill_between([x + 0.02, x + 0.98], y + 0.02, y + 0.98, color=colour)
        ax.text(x + 0.5, y + 0.58, str(count), ha="center", size=20, color=ink)
        ax.text(x + 0.5, y + 0.25, label, ha="center", size=9, color=ink)
    ax.set_xlim(0, 2)
    ax.set_ylim(0, 2)
    ax.set_xticks([0.5, 1.5], [f"{after} right", f"{after} wrong"])
    ax.set_yticks([1.5, 0.5], [f"{before} right", f"{before} wrong"])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    set_title(ax, title)
    return figure
