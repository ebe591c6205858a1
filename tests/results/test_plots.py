"""Figures: what is drawn is what was given; alt text is required."""

from __future__ import annotations

import base64
import itertools
import statistics
import struct
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from helpers.results import plots
from helpers.results.plots.style import (
    MODEL_COLOURS,
    SPARE_COLOURS,
    colours_for,
)
from helpers.results.plots.training import smooth

NOTE = "recorded on 2020-01-02 · tier pocket"


def share(p: float, low: float, high: float) -> SimpleNamespace:
    return SimpleNamespace(p=p, low=low, high=high)


GRID = {
    "base": {"easy": share(0.5, 0.4, 0.6), "main": share(0.0, 0.0, 0.1)},
    "sft": {"easy": share(1.0, 0.9, 1.0)},
}
LOGS = {
    "dpo": [
        {
            "step": i,
            "loss": 1 / i,
            "rewards/margins": 0.1 * i,
            "rewards/accuracies": 0.5,
            "tie_fraction": 0.2,
        }
        for i in range(1, 9)
    ]
    + [{"step": 8, "train_runtime": 3.0}]
}
MERGES = {"sft": {"cosine": 0.99, "norm_kept": 1.0}, "dpo": {"cosine": 0.2}}
CAPS = [
    SimpleNamespace(
        cap=cap,
        n=20,
        right=right,
        finished_wrong=4,
        truncated_wrong=15 - right,
        no_answer=1,
        score=share(right / 20, right / 20 - 0.05, right / 20 + 0.1),
    )
    for cap, right in ((10, 3), (20, 8), (40, 12))
]
REACH = {
    k: SimpleNamespace(value=v, low=v - 0.1, high=v + 0.1)
    for k, v in ((1, 0.3), (2, 0.45), (4, 0.6))
}
CHANGES = {
    "main": {
        "one source": SimpleNamespace(diff=0.02, low=-0.03, high=0.07),
        "no mask": SimpleNamespace(diff=-0.06, low=-0.1, high=-0.02),
    }
}
PHASES = [
    {"phase": "distill", "seconds": 20.0, "usd": 0},
    {"phase": "sft", "seconds": 5.0, "usd": 1.5},
]


def draw_all() -> dict[str, Figure]:
    """One of every figure, each with a provenance note where it has one."""
    return {
        "grid": plots.plot_accuracy_grid(GRID, decoding="greedy", note=NOTE),
        "outcomes": plots.plot_outcomes(
            {"base": {"right": 3, "wrong": 1}}, note=NOTE
        ),
        "differences": plots.plot_differences(CHANGES, note=NOTE),
        "curves": plots.plot_curves(
            {"a": ([1, 2], [3, 4]), "b": ([1, 2], [2, 1])},
            bands={"a": ([2, 3], [4, 5])},
            title="t",
            xlabel="x",
            ylabel="y",
            note=NOTE,
        ),
        "loss": plots.plot_loss(LOGS, note=NOTE),
        "dpo": plots.plot_dpo_curves(LOGS, note=NOTE),
        "lengths": plots.plot_length_histogram(
            {"base": [3, 5, 9], "sft": []}, cap=10, note=NOTE
        ),
        "merges": plots.plot_merge_fidelity(MERGES, note=NOTE),
        "ledger": plots.plot_ledger(PHASES, note=NOTE),
        "paired": plots.plot_paired(5, 2, 7, 6, note=NOTE),
        "caps": plots.plot_caps(
            {"base": CAPS, "sft": CAPS}, subtitle="greedy", note=NOTE
        ),
        "pass": plots.plot_pass_at_k({"base": REACH}, note=NOTE),
        "map": plots.plot_course_map(here="03"),
    }


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return draw_all()


@pytest.fixture
def shell():
    """display() needs a shell; without one it only prints."""
    from IPython.core.interactiveshell import InteractiveShell

    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def all_text(figure: Figure) -> str:
    from matplotlib.text import Text

    return "\n".join(t.get_text() for t in figure.findobj(Text))


def test_every_figure_draws_without_pyplot_and_carries_its_note(figures):
    for name, figure in figures.items():
        data = plots.figure_png(figure)
        assert data.startswith(b"\x89PNG"), name
        width, _ = struct.unpack(">II", data[16:24])
        assert width > 400
        if name != "map":
            assert NOTE in all_text(figure), name


def test_grid_draws_the_given_values(figures):
    ax = figures["grid"].axes[0]
    bars = [b.get_height() for b in ax.patches if b.get_height()]
    assert sorted(bars) == [50, 100]
    text = all_text(figures["grid"])
    assert "greedy" in text
    assert {"easy", "main"} <= {t.get_text() for t in ax.get_xticklabels()}
    ends = [
        tuple(segment[:, 1])
        for line in ax.collections
        for segment in line.get_segments()
    ]
    for expected in ((40, 60), (0, 10), (90, 100)):
        assert any(end == pytest.approx(expected) for end in ends)


def test_caps_stack_to_a_hundred_and_carry_the_accuracy(figures):
    left, right = figures["caps"].axes
    assert [ax.get_title() for ax in (left, right)] == ["base", "sft"]
    heights = [bar.get_height() for bar in left.patches]
    assert len(heights) == 12
    for place in range(3):
        assert sum(heights[place::3]) == pytest.approx(100)
    assert heights[:3] == pytest.approx([15, 40, 60])
    assert [15, 40, 60] in [pytest.approx(y) for y in drawn_values(left)]
    labels = [t.get_text() for t in left.get_xticklabels()]
    assert labels == ["10", "20", "40"]
    text = all_text(figures["caps"])
    assert "greedy" in text and "cut at the cap, wrong" in text
    for wrong in ({}, {str(i): CAPS for i in range(9)}):
        with pytest.raises(ValueError, match="can be drawn"):
            plots.plot_caps(wrong)


def test_pass_at_k_draws_values_and_bands(figures):
    (ax,) = figures["pass"].axes
    assert drawn_values(ax) == [pytest.approx([30, 45, 60])]
    (band,) = ax.collections
    ys = band.get_paths()[0].vertices[:, 1]
    assert (min(ys), max(ys)) == pytest.approx((20, 70))
    assert list(ax.get_xticks()) == [1, 2, 4]


def test_loss_skips_rows_without_a_loss(figures):
    (line,) = figures["loss"].axes[0].lines
    assert list(line.get_xdata()) == list(range(1, 9))
    assert list(line.get_ydata()) == [row["loss"] for row in LOGS["dpo"][:8]]


def drawn_values(ax) -> list[list[float]]:
    return [list(line.get_ydata()) for line in ax.lines]


def test_dpo_shows_margin_ties_and_accuracy(figures):
    left, upper, lower = figures["dpo"].axes
    margins = [row["rewards/margins"] for row in LOGS["dpo"][:8]]
    assert margins in drawn_values(left)
    assert {y for ys in drawn_values(upper) for y in ys} == {0.5}
    for ys in drawn_values(lower):
        assert ys == pytest.approx([0.2] * 8)


def test_smooth_is_the_mean_of_the_last_values():
    values = [float(i) for i in range(30)]
    found = smooth(values, window=10)
    for i, mean in enumerate(found):
        assert mean == pytest.approx(
            statistics.fmean(values[max(0, i - 9) : i + 1])
        )
    # one ragged last step moves the line by a tenth of its distance
    assert smooth([1.0] * 20 + [0.0])[-1] == pytest.approx(0.9)
    assert smooth([]) == []


def test_merge_bars_and_labels_fit_without_a_warning():
    reports = {
        "dpo-published, merged in the recipe's format": {
            "cosine": 0.1,
            "norm_kept": 7.5,
        },
        "dpo-published, bf16": {"cosine": -0.2, "norm_kept": 1.1},
    }
    figure = plots.plot_merge_fidelity(reports, note=NOTE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.figure_png(figure)
        figure.axes[0].set_xlim(0, 0.5)  # a reader may set other limits
        plots.figure_png(figure)
    ax = plots.plot_merge_fidelity(reports).axes[0]
    low, high = ax.get_xlim()
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert low < min(ends) and max(ends) < high
    box = figure.bbox
    figure.draw_without_rendering()
    for label in figure.axes[0].get_yticklabels():
        assert label.get_window_extent().x0 >= box.x0


def test_paired_shows_the_four_counts(figures):
    text = all_text(figures["paired"]).split("\n")
    for count in ("5", "2", "7", "6", "won", "lost"):
        assert count in text


def test_course_map_names_all_notebooks(figures):
    text = all_text(figures["map"])
    for step in plots.COURSE_STEPS:
        assert step.key in text and step.title in text
        assert step.hands_on in text
    assert [s.key for s in plots.COURSE_STEPS] == [
        f"{i:02d}" for i in range(8)
    ]


def test_course_map_marks_what_this_version_lacks():
    here = Path(__file__).resolve().parents[2] / "notebooks"
    present = {p.name[:2] for p in here.glob("[0-9][0-9]_*.ipynb")}
    ax = plots.plot_course_map().axes[0]
    dashed = {
        step.key
        for step, box in zip(plots.COURSE_STEPS, ax.patches, strict=False)
        if box.get_linestyle() in ("--", "dashed")
    }
    assert dashed == {s.key for s in plots.COURSE_STEPS} - present
    said = [t.get_text() for t in ax.texts].count("not in this version")
    assert said == len(dashed)


def test_empty_data_still_draws():
    for figure in (
        plots.plot_accuracy_grid({}, decoding="greedy"),
        plots.plot_loss({"sft": []}),
        plots.plot_dpo_curves({"dpo": [{"loss": 1.0}]}),
        plots.plot_length_histogram({"base": []}),
        plots.plot_merge_fidelity({}),
        plots.plot_ledger([]),
    ):
        assert plots.figure_png(figure)


def test_a_model_keeps_its_colour():
    for names in (["base", "sft"], ["sft", "dpo", "x"], ["x", "base", "y"]):
        found = colours_for(names)
        assert len(set(found.values())) == len(names)
        for name in set(names) & set(MODEL_COLOURS):
            assert found[name] == plots.model_colour(name)


def simulate_deuteranopia(colour: str) -> tuple[float, ...]:
    """Machado, Oliveira and Fernandes (2009), severity 1, linear RGB."""
    rows = (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    )
    linear = [x**2.2 for x in to_rgb(colour)]
    mixed = (sum(a * b for a, b in zip(r, linear, strict=True)) for r in rows)
    return tuple(max(x, 0.0) ** (1 / 2.2) for x in mixed)


def test_colours_differ_for_a_colour_blind_reader():
    used = [*MODEL_COLOURS.values(), *SPARE_COLOURS]
    seen = [simulate_deuteranopia(plots.OKABE_ITO[c]) for c in used]
    for a, b in itertools.combinations(seen, 2):
        distance = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
        assert distance > 0.1


def test_a_figure_is_png_in_the_page(figures):
    data = plots.figure_data(figures["paired"], "the paired table")
    kind, _, text = data.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(text).startswith(b"\x89PNG")


def test_alt_text_is_required(figures):
    for use in (plots.figure_data, plots.show):
        with pytest.raises(ValueError, match="alt text"):
            use(figures["map"], " ")


def capture_shown(figure: Figure, alt: str):
    from IPython.utils.capture import capture_output

    with capture_output() as captured:
        plots.show(figure, alt)
    (output,) = captured.outputs
    return output.data, output.metadata


def test_show_passes_alt_text_to_the_notebook(figures, shell):
    alt = 'the "map" <of> the course'
    data, metadata = capture_shown(figures["map"], alt)
    assert metadata["image/png"]["alt"] == alt
    image = BeautifulSoup(data["text/html"], "html.parser").img
    assert image["alt"] == alt
    assert image["width"] == str(metadata["image/png"]["width"])
    assert image["src"] == f"data:image/png;base64,{data['image/png']}"


def test_exported_notebook_shows_the_figure_once_with_alt(figures, shell):
    nbconvert = pytest.importorskip("nbconvert")
    from nbformat import v4

    data, metadata = capture_shown(figures["map"], "the course map")
    output = v4.new_output("display_data", data=data, metadata=metadata)
    cell = v4.new_code_cell("show", outputs=[output])
    page, _ = nbconvert.HTMLExporter().from_notebook_node(
        v4.new_notebook(cells=[cell])
    )
    images = BeautifulSoup(page, "html.parser").find_all("img")
    assert [image["alt"] for image in images] == ["the course map"]


def test_provenance_notes():
    note = plots.recorded_on(
        {"created": "2020-01-02T03:04", "recipe": "pocket", "processor": "X"}
    )
    assert note == "recorded on 2020-01-02 · tier pocket · X"
    assert plots.recorded_on({}) == "recorded on ?"


def test_a_difference_is_drawn_at_its_points_with_its_interval():
    panels = {**CHANGES, "gsm8k": dict(reversed(CHANGES["main"].items()))}
    figure = plots.plot_differences(panels)
    assert [ax.get_title() for ax in figure.axes] == list(panels)
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names == list(CHANGES["main"])
    for ax in figure.axes:  # the same line, whatever the order given
        bars = [x for x in ax.lines if len(x.get_xdata()) == 2][:2]
        assert list(bars[1].get_xdata()) == pytest.approx([-10, -2])
        dots = [x for x in ax.lines if x.get_marker() == "o"]
        assert float(dots[1].get_xdata()[0]) == pytest.approx(-6)
        low, high = ax.get_xlim()
        assert low == -high and low < -10
