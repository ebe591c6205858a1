"""Sections about scores: headline, grid, wrong answers, paired, published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helpers.base import LabError
from helpers.grading import GradedCompletion
from helpers.results import plots, stats
from helpers.results.published import load_published
from helpers.results.report.collect import Results
from helpers.results.report.page import Section
from helpers.results.scores import count_outcomes
from helpers.results.stats import (
    Comparison,
    Proportion,
    format_p,
    format_points,
)

OUTCOME_NAMES = {
    "right": "right",
    "finished_wrong": "finished, wrong answer",
    "truncated_wrong": "cut off at the cap, wrong",
    "no_answer": "finished without an answer",
}
NOT_AFTER_HOLM = "*"  # a mark, so that the table fits the page
Pair = tuple[str, str]


def describe_decoding(results: Results) -> str:
    """The decoding settings, as they stand in every title of a score."""
    settings = results.run.recipe.evaluate
    how = (
        f"temperature {settings.temperature:g}"
        if settings.temperature
        else "greedy"
    )
    return f"{how}, max_new_tokens = {settings.max_new_tokens}, one sample"


def right_by_problem(rows: Sequence[GradedCompletion]) -> dict[str, bool]:
    """Right or wrong by problem id."""
    return {row.problem_id: row.correct for row in rows}


def score_grid(results: Results) -> dict[str, dict[str, Proportion]]:
    """``grid[tag][benchmark]`` of the scores in the folder."""
    grid: dict[str, dict[str, Proportion]] = {}
    for tag, benches in results.evals.items():
        for name, rows in benches.items():
            right = right_by_problem(rows)
            score = stats.proportion(sum(right.values()), len(right))
            grid.setdefault(tag, {})[name] = score
    return grid


def list_pairs(results: Results) -> list[Pair]:
    """base→sft, sft→dpo, base→dpo, and sft→ every DPO variant."""
    pairs = [("base", "sft"), ("sft", "dpo"), ("base", "dpo")]
    pairs += [("sft", t) for t in results.evals if t.startswith("dpo-")]
    have = results.evals
    return [(a, b) for a, b in pairs if a in have and b in have]


def compare_all(results: Results) -> dict[Pair, dict[str, Comparison]]:
    """All paired comparisons; a mismatch of problems becomes a gap."""
    out: dict[Pair, dict[str, Comparison]] = {}
    for before, after in list_pairs(results):
        for name, rows in results.evals[before].items():
            other = results.evals[after].get(name)
            if not other:
                continue
            what = f"{after} against {before} on {name}"
            try:
                found = stats.compare(
                    right_by_problem(rows), right_by_problem(other)
                )
            except LabError as error:
                results.gap(what, f"evaluate --model {after}", error.what)
                continue
            out.setdefault((before, after), {})[name] = found
    return out


def build_headline(
    results: Results, pairs: dict[Pair, dict[str, Comparison]]
) -> Section:
    """One sentence a pair on the main benchmark, then the macro means."""
    section = Section(
        "headline",
        "What came out",
        gap="Two evaluated models are needed for a comparison: "
        + results.command("evaluate"),
    )
    main = results.run.recipe.evaluate.main
    for (before, after), found in pairs.items():
        if main in found:
            one = found[main]
            section.text(one.sentence(before, after, main), one.verdict)
    variants = [tag for tag in results.evals if tag.startswith("dpo-")]
    if variants:
        section.text(
            f"{', '.join(variants)}: trained in this run with other DPO "
            "settings (dpo_variants of the recipe)."
        )
    for (before, after), found in pairs.items():
        if len(found) > 1:
            section.text(_describe_macro(results, before, after, found))
    return section


def _describe_macro(
    results: Results, before: str, after: str, found: dict[str, Comparison]
) -> str:
    """The mean over benchmarks in words; what has no mean is a gap."""
    try:
        mean = stats.macro_compare(list(found.values()))
    except LabError as error:
        what = f"the mean over benchmarks, {after} against {before}"
        results.gap(what, why=error.what)
        return ""
    return mean.sentence(before, after)


def build_scores(
    results: Results, grid: dict[str, dict[str, Proportion]]
) -> Section:
    """The grid as chart and table."""
    section = Section("scores", "Scores")
    if not grid:
        return section
    names = [b.name for b in results.run.recipe.evaluate.benchmarks]
    said = "; ".join(
        f"{tag}: "
        + ", ".join(f"{n} {100 * s.p:.1f} %" for n, s in row.items())
        for tag, row in grid.items()
    )
    section.figure(
        plots.plot_accuracy_grid(
            grid,
            decoding=describe_decoding(results),
            note=results.provenance(*(f"evaluate/{tag}" for tag in grid)),
        ),
        f"Bar chart of accuracy with 95 % intervals. {said}.",
    )
    rows = [
        [name, *(grid[tag].get(name) for tag in grid)]
        for name in names
        if any(name in grid[tag] for tag in grid)
    ]
    section.table(
        f"Right answers ({describe_decoding(results)})",
        ["benchmark", *grid],
        rows,
        note="Intervals are Wilson's. They say how far one score can be "
        "trusted; whether two models differ is the paired table's question.",
    )
    return section


def build_outcomes(results: Results) -> Section:
    """How the wrong answers went wrong: cut off, finished, no answer."""
    section = Section("outcomes", "How answers went wrong")
    counts = {
        f"{tag} · {name}": count_outcomes(rows)
        for tag, benches in results.evals.items()
        for name, rows in benches.items()
    }
    if not counts:
        return section
    named = {
        row: {label: c[key] for key, label in OUTCOME_NAMES.items()}
        for row, c in counts.items()
    }
    decoding = describe_decoding(results)
    section.figure(
        plots.plot_outcomes(
            named,
            decoding=decoding,
            note=results.provenance(*(f"evaluate/{t}" for t in results.evals)),
        ),
        "Stacked bars of right, wrong, cut-off and missing answers per model "
        "and benchmark; the table below holds the counts.",
    )
    rows = [
        [row, *(str(c[key]) for key in OUTCOME_NAMES), str(sum(c.values()))]
        for row, c in counts.items()
    ]
    section.table(
        "Every answer counted once",
        ["model · benchmark", *OUTCOME_NAMES.values(), "n"],
        rows,
        note="Cut off: the response reached max_new_tokens before it ended. "
        "A gain that comes from fewer cut-off answers is a gain in length, "
        "not in mathematics.",
    )
    return section


def build_paired(
    results: Results, pairs: dict[Pair, dict[str, Comparison]]
) -> Section:
    """The paired 2×2 counts with exact McNemar p, plain and Holm-adjusted."""
    section = Section("paired", "Paired comparisons")
    flat = [c for found in pairs.values() for c in found.values()]
    adjusted = iter(stats.holm([c.p_value for c in flat]))
    section.tiles(_draw_tiles(results, pairs))
    for (before, after), found in pairs.items():
        rows = [
            paired_row(name, one, next(adjusted))
            for name, one in found.items()
        ]
        section.table(
            f"{before} → {after}",
            [
                "benchmark",
                "both right",
                "lost",
                "won",
                "both wrong",
                "change in points (95 % CI)",
                "exact McNemar p",
                "Holm p",
                "smallest possible p",
                "verdict",
            ],
            rows,
            note=f"{NOT_AFTER_HOLM} not after Holm's adjustment."
            if any(row[-1].endswith(NOT_AFTER_HOLM) for row in rows)
            else "",
        )
    if flat:
        section.text(
            "Lost: only the first model is right; won: only the second. The "
            "interval is Tango's score interval for paired proportions. "
            "Smallest possible p: the smallest that any paired table with "
            "this difference in totals can have. Helps or hurts is said only "
            "when the interval excludes zero and the exact p is below 0.05."
        )
        section.text(_describe_family(pairs))
    return section


def _describe_family(pairs: dict[Pair, dict[str, Comparison]]) -> str:
    """Over which tests Holm's p is adjusted, in one sentence."""
    count = sum(map(len, pairs.values()))
    models = ", ".join(f"{before} → {after}" for before, after in pairs)
    names = dict.fromkeys(name for found in pairs.values() for name in found)
    return (
        f"Holm p is adjusted over one family: all {count} exact tests in the "
        f"tables above, that is {models}, on {', '.join(names)} as far as a "
        "table lists them."
    )


def paired_row(name: str, one: Comparison, holm_p: float) -> list[str]:
    """The cells of one benchmark; a verdict lost to Holm gets a mark."""
    low, high = format_points(one.low), format_points(one.high)
    verdict: str = one.verdict
    if verdict != "undecided" and holm_p >= stats.ALPHA:
        verdict += NOT_AFTER_HOLM
    return [
        name,
        str(one.both),
        str(one.only_before),
        str(one.only_after),
        str(one.neither),
        f"{format_points(one.diff)} ({low} to {high})",
        bare_p(one.p_value),
        bare_p(holm_p),
        bare_p(one.smallest_p),
        verdict,
    ]


def bare_p(p_value: float) -> str:
    """A p value as a table cell: ``0.031``, ``< 0.0001``."""
    return format_p(p_value).removeprefix("p ").removeprefix("= ")


def _draw_tiles(
    results: Results, pairs: dict[Pair, dict[str, Comparison]]
) -> list[tuple[Any, str]]:
    """The paired 2×2 table of every pair on the main set, with alt texts."""
    drawn, name = [], results.run.recipe.evaluate.main
    for (before, after), found in pairs.items():
        if name not in found:
            continue
        one = found[name]
        figure = plots.plot_paired(
            one.both,
            one.only_before,
            one.only_after,
            one.neither,
            before=before,
            after=after,
            title=f"{before} → {after} on {name}",
            note=results.provenance(f"evaluate/{before}", f"evaluate/{after}"),
        )
        alt = (
            f"Paired table of {before} and {after} on {name}: both right "
            f"{one.both}, lost {one.only_before}, won {one.only_after}, "
            f"both wrong {one.neither}."
        )
        drawn.append((figure, alt))
    return drawn


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
