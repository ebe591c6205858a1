"""Sections about the cap, and about several samples a problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from helpers.base import LabError
from helpers.results import plots, stats
from helpers.results.caps import CapPoint, measure_caps, split_change
from helpers.results.report.collect import MAIN_TAGS, Groups, Results
from helpers.results.report.page import Section
from helpers.results.report.scores import OUTCOME_NAMES, list_pairs
from helpers.results.scores import (
    BEST_OF,
    OUTCOMES,
    pass_curve,
    stage_name,
    summarize_samples,
)

FEW_POINTS = 2


def build_caps(results: Results, load_tokenizer: Callable[[], Any]) -> Section:
    """Accuracy against the cap on the main benchmark, and what it explains."""
    section = Section("caps", "Accuracy against the token cap")
    main = results.run.recipe.evaluate.main
    curves = read_curves(results, main, load_tokenizer)
    if not curves:
        return section
    section.figure(
        plots.plot_caps(
            curves,
            title=f"Accuracy on {main} against the cap",
            subtitle="stored responses cut and graded again",
            note=results.provenance(*(f"evaluate/{tag}" for tag in curves)),
        ),
        f"Stacked bars of outcomes over the token cap on {main}, one panel a "
        f"model. {_describe_curves(curves)}",
    )
    columns = ["cap", "right", *(OUTCOME_NAMES[key] for key in OUTCOMES[1:])]
    for tag, points in curves.items():
        section.table(
            f"{tag} on {main}",
            columns,
            [
                [str(p.cap), p.score]
                + [str(getattr(p, key)) for key in OUTCOMES[1:]]
                for p in points
            ],
            note=_describe_inexact(points),
        )
    section.text(
        "A response under a smaller cap is the beginning of the stored one, "
        "so no model is asked again. A cut response whose last number "
        "happens to be right counts as right."
    )
    for before, after in list_pairs(results):
        section.text(_split(results, before, after, main))
    return section


def read_curves(
    results: Results, name: str, load_tokenizer: Callable[[], Any]
) -> dict[str, list[CapPoint]]:
    """The curves of the main models; what cannot be had becomes a gap."""
    curves: dict[str, list[CapPoint]] = {}
    for tag in MAIN_TAGS:
        if name not in results.evals.get(tag, {}):
            continue
        try:
            curves[tag] = measure_caps(results.run, tag, name, load_tokenizer)
        except (LabError, ImportError) as error:
            results.gap(f"accuracy of {tag} by cap", why=str(error))
    return curves


def _describe_curves(curves: Mapping[str, list[CapPoint]]) -> str:
    parts = [
        f"{tag}: {100 * points[0].score.p:.1f} % at {points[0].cap} tokens, "
        f"{100 * points[-1].score.p:.1f} % at {points[-1].cap}"
        for tag, points in curves.items()
    ]
    return "; ".join(parts) + "."


def _describe_inexact(points: list[CapPoint]) -> str:
    worst = max(point.inexact for point in points)
    if not worst:
        return ""
    return (
        f"Up to {worst} responses of {points[0].n} were cut by tokens that "
        "are not surely those sampled: the text alone is stored, and "
        "tokenized again it has another length."
    )


def _split(results: Results, before: str, after: str, main: str) -> str:
    old = results.evals[before].get(main)
    new = results.evals[after].get(main)
    if not old or not new:
        return ""
    try:
        return split_change(old, new).sentence(before, after, main)
    except LabError:
        return ""  # named as a gap by the paired comparisons


def build_sampled(results: Results) -> Section:
    """avg@k, pass@k, majority and best-of-n of several samples."""
    section = Section(
        "sampled",
        "Several samples a problem",
        gap="No several samples were drawn. To draw some: "
        + results.command("evaluate")
        + " --set evaluate.n=4 --set evaluate.temperature=1",
    )
    for name, temperature in results.list_sampled():
        groups = cut_alike(results.sampled[name, temperature])
        stages = [stage_name(tag, temperature) for tag in groups]
        note = results.provenance(*stages)
        try:
            _add_sampled(section, name, temperature, groups, note)
        except LabError as error:
            results.gap(f"several samples on {name}", why=error.what)
    return section


def cut_alike(groups: Mapping[str, Groups]) -> dict[str, Groups]:
    """The first samples of every problem, as many for every model.

    Figure, table and sentence stand under one n, so all of them must be
    about the same samples.
    """
    n = min(len(rows) for found in groups.values() for rows in found.values())
    return {
        tag: {problem: rows[:n] for problem, rows in found.items()}
        for tag, found in groups.items()
    }


def _add_sampled(
    section: Section,
    name: str,
    temperature: float,
    groups: Mapping[str, Groups],
    note: str,
) -> None:
    """Figure, table and sentence of one benchmark at one temperature."""
    n = len(next(iter(next(iter(groups.values())).values())))
    rows = [
        _sampled_row(tag, summarize_samples(found, n))
        for tag, found in groups.items()
    ]
    if n >= FEW_POINTS:
        curves = {tag: pass_curve(found) for tag, found in groups.items()}
        section.figure(
            plots.plot_pass_at_k(
                curves,
                title=f"pass@k on {name}",
                subtitle=f"temperature {temperature:g}, {n} samples each",
                note=note,
            ),
            f"Lines of pass@k over k on {name}; the table below holds both "
            "ends.",
        )
    section.table(
        f"{name} at temperature {temperature:g}, {n} samples each",
        [
            "model",
            f"avg@{n}",
            f"pass@{n}",
            "majority vote",
            "best of n",
            "mean tokens",
        ],
        rows,
        note=f"Best of n is the {BEST_OF}. avg and pass have bootstrap "
        "intervals over problems; pass@k is Chen's unbiased estimate.",
    )
    section.text(_describe_ceiling(groups, n, name))


def _sampled_row(tag: str, found: dict[str, Any]) -> list[Any]:
    n, problems = found["samples"], found["problems"]
    best = found["best_of"]
    return [
        tag,
        str(stats.Interval(*found["avg"])),
        str(stats.Interval(*found["pass"][str(n)])),
        stats.proportion(found["majority"], problems),
        None if best is None else stats.proportion(best, problems),
        f"{found['mean_tokens']:.1f}",
    ]


def _describe_ceiling(groups: Mapping[str, Groups], n: int, name: str) -> str:
    """How far pass@1 of SFT has come towards pass@n of base."""
    if not {"base", "sft"} <= groups.keys() or n < FEW_POINTS:
        return ""
    base, sft = pass_curve(groups["base"]), pass_curve(groups["sft"])
    return (
        f"On {name} self-distillation could draw on pass@{n} of base, "
        f"{100 * base[n].value:.1f} %: pass@1 went from "
        f"{100 * base[1].value:.1f} % to {100 * sft[1].value:.1f} %, and "
        f"pass@{n} of sft is {100 * sft[n].value:.1f} %."
    )
