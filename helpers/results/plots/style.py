"""What all figures share: colours, the provenance note, alt text."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008).
OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
INK, MUTED, GRID = "#1F2933", "#616E7C", "#D9DFE5"
AGREE = "#C3CAD2"
MODEL_COLOURS = {"base": "sky", "sft": "blue", "dpo": "vermillion"}
SPARE_COLOURS = ("green", "purple", "orange", "black", "yellow")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
DPI = 130


def model_colour(name: str, position: int = 0) -> str:
    """The colour of a model in every figure; others by their position."""
    spare = SPARE_COLOURS[position % len(SPARE_COLOURS)]
    return OKABE_ITO[MODEL_COLOURS.get(name.lower(), spare)]


def colours_for(names: list[str]) -> dict[str, str]:
    """One colour a name: the fixed ones, then the spare ones in order."""
    spare = [n for n in names if n.lower() not in MODEL_COLOURS]
    return {
        n: model_colour(n, spare.index(n) if n in spare else 0) for n in names
    }


def new_figure(
    width: float = 7.2,
    height: float = 3.8,
    mosaic: str = "A",
    note: str | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure outside pyplot, so that nothing is shown or kept twice.

    Args:
        mosaic: matplotlib's layout of the panels, rows divided by ``;``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.09)
    figure.patch.set_facecolor("white")
    axes = list(figure.subplot_mosaic(mosaic).values())
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(MUTED)
        ax.tick_params(colors=INK, labelsize=9)
        ax.grid(axis="y", color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
    add_note(figure, note)
    return figure, axes


def add_note(figure: Figure, note: str | None) -> None:
    """Write where the numbers come from under the figure."""
    if note:
        figure.supxlabel(note, fontsize=7.5, color=MUTED, x=0.995, ha="right")


def set_title(ax: Axes, title: str, subtitle: str = "") -> None:
    """A left-aligned title; the subtitle carries settings such as n."""
    text = f"{title}\n" if subtitle else title
    ax.set_title(text, loc="left", fontsize=11, color=INK, fontweight="bold")
    if subtitle:
        ax.annotate(
            subtitle,
            (0, 1),
            xytext=(0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=8.5,
            color=MUTED,
        )


def recorded_on(manifest: Mapping[str, Any]) -> str:
    """Provenance note of a run: when, which tier, on which machine."""
    parts = [f"recorded on {str(manifest.get('created', '?'))[:10]}"]
    if manifest.get("recipe"):
        parts.append(f"tier {manifest['recipe']}")
    if manifest.get("processor"):
        parts.append(str(manifest["processor"]))
    return " · ".join(parts)


def figure_png(figure: Figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def figure_data(figure: Figure, alt: str) -> str:
    """The PNG as a data URI, for a page that names it with this alt text."""
    _require_alt(alt)
    data = base64.b64encode(figure_png(figure)).decode()
    return f"data:image/png;base64,{data}"


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook, with alt text for screen readers.

    The output holds the PNG, with the alt text in its metadata, and the same
    picture as an HTML ``<img alt=…>``: notebook front ends and nbconvert
    prefer the HTML, and nbconvert's page ignores the metadata.
    """
    from IPython.display import display

    _require_alt(alt)
    data = base64.b64encode(figure_png(figure)).decode()
    width = round(figure.get_size_inches()[0] * 96)
    image = (
        f'<img alt="{html.escape(alt, quote=True)}" '
        f'src="data:image/png;base64,{data}" width="{width}">'
    )
    bundle = {
        "image/png": data,
        "text/html": image,
        "text/plain": f"<Figure: {alt}>",
    }
    facts = {"image/png": {"alt": alt, "width": width}}
    display(bundle, metadata=facts, raw=True)


def _require_alt(alt: str) -> None:
    if not alt.strip():
        raise ValueError("a figure needs alt text: say what it shows")
