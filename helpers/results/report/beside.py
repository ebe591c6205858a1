"""The section beside the published run, whose figures are not ours."""

from __future__ import annotations

from helpers.results import plots, stats
from helpers.results.published import load_published
from helpers.results.report.blocks import Section
from helpers.results.report.collect import Results
from helpers.results.report.scores import bare_p
from helpers.results.stats import Proportion, format_points


def build_published(
    results: Results, grid: dict[str, dict[str, Proportion]]
) -> Section:
    """The published grid of math-slm beside ours, clearly labelled."""
    section = Section("published", "Beside the published run")
    theirs = load_published("math-slm")
    roles = {b.role: b.name for b in results.run.recipe.evaluate.benchmarks}
    tags = ("base", "sft", "dpo")
    shares = {
        tag: {n: stats.proportion(s.k, s.n) for n, s in row.items()}
        for tag, row in theirs.grid().items()
    }
    section.figure(
        plots.plot_accuracy_grid(
            shares,
            decoding=theirs.decoding,
            title=f"Published, not ours: {theirs.model}",
            note=theirs.credit,
        ),
        f"Bar chart of the scores {theirs.credit}.",
    )
    rows = []
    for name in shares["base"]:
        rows.append([f"{name}, published"] + [shares[t][name] for t in tags])
        ours = roles.get(name)
        if ours and any(ours in grid.get(tag, {}) for tag in tags):
            cells = [grid.get(tag, {}).get(ours) for tag in tags]
            rows.append([f"{ours}, this run", *cells])
    section.table(
        "Another model on other problems: compare the pattern, not the level",
        ["benchmark", *tags],
        rows,
        note=f"Published rows are {theirs.credit}, {theirs.model}, "
        f"{theirs.decoding}.",
    )
    section.table(
        "What the published counts can show (unpaired)",
        [
            "change",
            "points (95 % CI)",
            "unpaired p",
            "smallest possible paired p",
            "verdict",
        ],
        [
            _published_row(name, a, b, shares)
            for name in shares["base"]
            for a, b in (("base", "sft"), ("sft", "dpo"))
        ],
        note="Newcombe's interval; per-problem results would be needed for "
        "the paired test, and it cannot go below the smallest possible p.",
    )
    return section


def _published_row(
    name: str,
    before: str,
    after: str,
    shares: dict[str, dict[str, Proportion]],
) -> list[str]:
    first, second = shares[before][name], shares[after][name]
    claim = stats.judge_claim(first, second)
    change = claim.change
    low, high = format_points(change.low), format_points(change.high)
    return [
        f"{name}, {before} → {after}",
        f"{format_points(change.diff)} ({low} to {high})",
        bare_p(claim.z_p),
        bare_p(claim.bound.smallest_p),
        stats.WORDS[claim.verdict],
    ]
