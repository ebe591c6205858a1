"""Figures: what is drawn is what was given; alt text is required."""

from __future__ import annotations

import itertools
import struct
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from helpers import plots
from helpers.plots.style import MODEL_COLOURS, SPARE_COLOURS, colours_for

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
        "map": plots.plot_course_map(here="03"),
    }


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return draw_all()


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


def test_loss_skips_rows_without_a_loss(figures):
    (line,) = figures["loss"].axes[0].lines
    assert list(line.get_xdata()) == list(range(1, 9))
    assert list(line.get_ydata()) == [row["loss"] for row in LOGS["dpo"][:8]]


def test_dpo_shows_margin_ties_and_accuracy(figures):
    left, right = figures["dpo"].axes
    drawn = [list(line.get_ydata()) for line in left.lines]
    assert [row["rewards/margins"] for row in LOGS["dpo"][:8]] in drawn
    levels = {
        line.get_ydata()[0] for line in right.lines if len(line.get_ydata())
    }
    assert levels == {0.2, 0.5}


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


def test_figure_html_inlines_and_escapes(figures):
    page = plots.figure_html(figures["paired"], 'a "b" <c>', "d & e")
    image = BeautifulSoup(page, "html.parser").img
    assert image["alt"] == 'a "b" <c>'
    assert image["src"].startswith("data:image/png;base64,")
    assert "d &amp; e" in page


def test_alt_text_is_required(figures):
    for use in (plots.figure_html, plots.show):
        with pytest.raises(ValueError, match="alt text"):
            use(figures["map"], " ")


def test_show_passes_alt_text_to_the_notebook(figures, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.show(figures["map"], "the course map")
    data, metadata = shown[0]._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "the course map"
    assert "image/png" in data


def test_provenance_notes():
    note = plots.recorded_on(
        {"created": "2020-01-02T03:04", "recipe": "pocket", "processor": "X"}
    )
    assert note == "recorded on 2020-01-02 · tier pocket · X"
    assert plots.recorded_on({}) == "recorded on ?"
    assert plots.published_by("someone") == "published by someone"
