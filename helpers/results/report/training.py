"""Sections about the making: harvest, curves, lengths, merges, time."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from helpers.base import Completion
from helpers.grading import GradedCompletion
from helpers.results import plots, stats
from helpers.results.published import load_published
from helpers.results.report.collect import Results
from helpers.results.report.page import Section, flatten, show_seconds

TAIL = 10  # logged steps behind a value "at the end" of a curve
KEYS = ("loss", "rewards/margins", "rewards/accuracies", "tie_fraction")


def build_harvest(results: Results) -> Section:
    """What sampling brought: all right, mixed, all wrong; rows and pairs."""
    section = Section("harvest", "Harvest of self-distillation")
    if results.samples:
        section.table(
            "Sampled problems",
            ["problems", "share"],
            _harvest_rows(results.samples),
            note="Only mixed problems, with a right and a wrong sample, give "
            "a preference pair.",
        )
    measured = flatten(results.metrics.get("distill", {}))
    if measured:
        section.table("Measured by the stage", ["measure", "value"], measured)
    if section.blocks:
        _add_published_harvest(section)
    return section


def _harvest_rows(samples: Sequence[GradedCompletion]) -> list[list[Any]]:
    by_problem: dict[str, list[bool]] = defaultdict(list)
    for row in samples:
        by_problem[row.problem_id].append(row.correct)
    n = len(by_problem)
    full = sum(all(marks) for marks in by_problem.values())
    none = sum(not any(marks) for marks in by_problem.values())
    right = sum(row.correct for row in samples)
    return [
        ["every sample right", stats.proportion(full, n)],
        ["mixed", stats.proportion(n - full - none, n)],
        ["every sample wrong", stats.proportion(none, n)],
        [
            "samples that are right",
            f"{right}/{len(samples)} ({100 * right / len(samples):.1f} %; "
            "samples of one problem are alike, so no interval)",
        ],
    ]


def _add_published_harvest(section: Section) -> None:
    theirs = load_published("math-slm")
    table = theirs.table("harvest")
    rows = [
        [
            f"run {row['run']}: temperature {row['temperature']:g}, "
            + (f"seed {row['seed']}" if row["seed"] else "no seed"),
            str(row["problems"]),
            str(row["sft_rows"]),
            str(row["pairs"]),
            stats.proportion(row["pairs"], row["problems"]),
        ]
        for row in table.rows
    ]
    section.table(
        "Published, not ours: three runs of math-slm",
        ["run", "problems", "SFT rows", "pairs", "mixed problems"],
        rows,
        note=f"{theirs.credit}; {table.note}.",
    )


def build_training(results: Results) -> Section:
    """The loss of SFT, the margin and ties of DPO, and where they end."""
    section = Section("training", "Training")
    sft = results.logs.get("sft")
    dpo = {t: log for t, log in results.logs.items() if t != "sft"}
    if sft:
        section.figure(
            plots.plot_loss({"sft": sft}, note=results.provenance("sft")),
            "Line chart of the SFT training loss by optimizer step. "
            + _describe_ends(sft, "loss"),
        )
    if dpo:
        said = " ".join(
            f"{tag}: " + " ".join(_describe_ends(log, key) for key in KEYS[1:])
            for tag, log in dpo.items()
        )
        section.figure(
            plots.plot_dpo_curves(dpo, note=results.provenance(*dpo)),
            "Line charts of the DPO reward margin, reward accuracy and tie "
            f"fraction by optimizer step. {said}",
        )
    rows = [
        [f"{tag}: {key}", *_ends(log, key)]
        for tag, log in results.logs.items()
        for key in KEYS
        if _ends(log, key)[0] is not None
    ]
    if rows:
        section.table(
            "Start and end of training",
            ["curve", "first logged step", f"mean of the last {TAIL} steps"],
            rows,
            note=f"The last {TAIL} logged steps are averaged (fewer when "
            "fewer are logged): a single step is noise, and the last one of "
            "an epoch can hold only a few examples.",
        )
    for tag in dpo:
        _describe_noop(section, tag, results.metrics.get(tag) or {})
    if dpo:
        section.text(
            "rewards/accuracies counts exact ties as wrong, so read it "
            "together with tie_fraction."
        )
    return section


def _describe_noop(
    section: Section, tag: str, measured: dict[str, Any]
) -> None:
    """What the stage itself recorded about a margin near zero, if it did."""
    if measured.get("noop") is None:
        return
    margin = measured.get("margin")
    shown = "" if margin is None else f" ({margin:+.2g})"
    if measured["noop"]:
        section.text(
            f"{tag}: the stage recorded a no-op. Its mean reward margin over "
            f"the last few steps{shown} is near zero (noop_margin of the "
            "recipe), so the training changed nothing worth measuring."
        )
    else:
        section.text(
            f"{tag}: the stage recorded no no-op. Its mean reward margin "
            f"over the last few steps{shown} is not within the recipe's "
            "noop_margin of zero."
        )


def _ends(log: Sequence[dict[str, Any]], key: str) -> list[float | None]:
    """The first logged value and the mean of the last ten."""
    values = [row[key] for row in log if row.get(key) is not None]
    if not values:
        return [None, None]
    return [values[0], statistics.fmean(values[-TAIL:])]


def _describe_ends(log: Sequence[dict[str, Any]], key: str) -> str:
    first, last = _ends(log, key)
    if first is None:
        return f"{key} was not logged."
    return (
        f"{key} goes from {first:.4g} to {last:.4g} "
        f"(mean of the last {TAIL} steps)."
    )


def build_lengths(results: Results) -> Section:
    """Token counts before and after, on the main benchmark and in a table."""
    section = Section("lengths", "Length of the responses")
    cap = results.run.recipe.evaluate.max_new_tokens
    main = results.run.recipe.evaluate.main
    rows_of = {t: b[main] for t, b in results.evals.items() if main in b}
    twins = find_twins(rows_of)
    lengths = {
        tag: [row.tokens for row in rows]
        for tag, rows in rows_of.items()
        if tag not in twins
    }
    if lengths:
        section.figure(
            plots.plot_length_histogram(
                lengths,
                cap=cap,
                title=f"Length of the responses on {main}",
                note=results.provenance(*(f"evaluate/{t}" for t in lengths)),
            ),
            f"Histograms of response length in tokens on {main}. "
            + ", ".join(
                f"{tag}: median {statistics.median(values):g}"
                for tag, values in lengths.items()
            )
            + f"; the cap is {cap}.",
        )
    for tag, twin in twins.items():
        section.text(
            f"{tag} is left out of the histogram: its responses on {main} "
            f"are identical to those of {twin}."
        )
    rows = [
        [f"{tag} · {name}", *_length_row(found)]
        for tag, benches in results.evals.items()
        for name, found in benches.items()
    ]
    if rows:
        section.table(
            "Tokens per response",
            ["model · benchmark", "mean", "median", "longest", "cut off"],
            rows,
        )
    return section


def find_twins(evals: Mapping[str, Sequence[Completion]]) -> dict[str, str]:
    """Models whose responses are, word for word, those of an earlier one."""
    seen: dict[frozenset[tuple[str, str]], str] = {}
    twins: dict[str, str] = {}
    for tag, rows in evals.items():
        key = frozenset((row.problem_id, row.response) for row in rows)
        if key in seen:
            twins[tag] = seen[key]
        else:
            seen[key] = tag
    return twins


def _length_row(rows: Sequence[Completion]) -> list[Any]:
    tokens = [row.tokens for row in rows]
    cut = sum(row.finish_reason == "length" for row in rows)
    return [
        f"{statistics.mean(tokens):.1f}",
        f"{statistics.median(tokens):g}",
        str(max(tokens)),
        stats.proportion(cut, len(rows)),
    ]


def build_merges(results: Results) -> Section:
    """How much of each update survived the merge."""
    section = Section("merges", "Merge fidelity")
    if not results.merges:
        return section
    said = "; ".join(
        f"{tag}: cosine {report.get('cosine')}, "
        f"norm kept {report.get('norm_kept')}"
        for tag, report in results.merges.items()
    )
    stages = [f"merge/{tag}" for tag in results.merges]
    section.figure(
        plots.plot_merge_fidelity(
            results.merges, note=results.provenance(*stages)
        ),
        f"Bars of cosine and kept norm per merge, 1 is perfect. {said}.",
    )
    keys = list(dict.fromkeys(k for r in results.merges.values() for k in r))
    section.table(
        "Merged weights against base + adapter",
        ["measure", *results.merges],
        [
            [key, *(r.get(key) for r in results.merges.values())]
            for key in keys
        ],
        note="cosine and norm_kept compare the change that reached the "
        "merged weights with the change the adapter asked for.",
    )
    return section


def build_ledger(results: Results) -> Section:
    """Wall time and cost per phase, with the total."""
    section = Section("ledger", "Ledger of time and cost")
    phases = results.ledger
    if not phases:
        return section
    total = sum(phase["seconds"] for phase in phases)
    usd = sum(phase.get("usd") or 0 for phase in phases)
    longest = max(phases, key=lambda phase: phase["seconds"])
    note = results.provenance(*(phase["phase"] for phase in phases))
    section.figure(
        plots.plot_ledger(phases, note=note),
        f"Bars of wall time per phase. Longest: {longest['phase']} with "
        f"{show_seconds(longest['seconds'])} of {show_seconds(total)}.",
    )
    rows = [
        [
            phase["phase"],
            show_seconds(phase["seconds"]),
            f"{100 * phase['seconds'] / total:.0f} %" if total else "–",
            f"{phase.get('usd') or 0:.2f}",
        ]
        for phase in phases
    ]
    rows.append(["total", show_seconds(total), "100 %", f"{usd:.2f}"])
    section.table(
        "Time and cost per phase", ["phase", "time", "share", "USD"], rows
    )
    return section


def build_manifest(results: Results) -> Section:
    """Versions, machine and seed, so that the run can be repeated."""
    section = Section("manifest", "How to repeat this run")
    replayed, header = results.replayed, ["what", "value"]
    if replayed.notes:
        caption = f"Manifest, {replayed.describe()}"
        section.table(caption, header, flatten(replayed.manifest))
        section.text(
            f"Replayed, not computed here: {', '.join(replayed.notes)}. To "
            "compute all of it on this machine: mathslm course --tier "
            f"{results.run.file('recipe.yaml')} -p RUN_MODE=run "
            "--run-dir runs/own"
        )
    if results.manifest and replayed.live:
        rows = flatten(results.manifest)
        section.table("Manifest", header, rows)
    section.text(
        "The resolved recipe is recipe.yaml in the run folder; the same "
        f"command on it carries on: {results.command('course')}"
    )
    return section
