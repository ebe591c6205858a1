"""Several sources as one training set, with an account of every row."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from helpers.base import LabError, Problem
from helpers.problems.contamination import ContaminationIndex
from helpers.problems.load import (
    STEPS,
    LoadReport,
    Seen,
    collect_problems,
    load_problems,
    require_rows,
)
from helpers.problems.sources import SOURCES, Source, find_source


@dataclass
class Mix:
    """The problems of a mix in training order, and one report a source."""

    problems: list[Problem]
    reports: dict[str, LoadReport] = field(default_factory=dict)
    against: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Rows of each source after each step, and every reason."""
        width = max(len(name) for name in (*self.reports, "source"))
        sizes = [max(len(step), 9) for step in STEPS]
        heads = [step.rjust(w) for step, w in zip(STEPS, sizes, strict=True)]
        lines = ["  ".join(["source".ljust(width), *heads])]
        for name, report in self.reports.items():
            cells = [
                f"{report.steps[step]:,}".rjust(w)
                for step, w in zip(STEPS, sizes, strict=True)
            ]
            lines.append("  ".join([name.ljust(width), *cells]))
        total = f"{len(self.problems):,} problems"
        beside = ", ".join(self.against) or "nothing: not asked for"
        lines.append(f"{total}; compared with {beside}")
        lines += [str(r) for r in self.reports.values() if r.n_dropped]
        return "\n".join(lines)


def build_index(
    sets: Iterable[str], *, masked: bool = True, words: bool = True
) -> ContaminationIndex | None:
    """An index of evaluation sets by name or file; None without any."""
    names = tuple(sets)
    if not names:
        return None
    return ContaminationIndex(
        {name: load_problems(name) for name in names}, masked, words
    )


def load_mix(
    parts: Mapping[str, int],
    seed: int,
    *,
    against: Iterable[str] = (),
    cap: int | None = None,
    least: float = 0.5,
    masked: bool = True,
    words: bool = True,
    sources: Mapping[str, Source] | None = None,
) -> Mix:
    """Draw ``n`` problems from each source, shuffle them, and account.

    Args:
        parts: number of problems wanted by name of the source, or by file
            (JSON lines with id, problem and answer).
        seed: decides which rows are drawn and their order.
        against: evaluation sets that no problem may overlap with.
        cap: most problems of the whole mix; None for no limit.
        least: a source that gives less than this share of what was wanted
            is lost, and a mix without it is not the mix that was asked for.
        masked, words: see :class:`ContaminationIndex`.
        sources: sources by name that are not in ``SOURCES``, or replace
            one of it.

    Raises:
        LabError: an unknown or evaluation source, nothing asked for, a
            changed schema, or a source that is lost at some step.
    """
    against = tuple(against)
    own = sources or {}
    found = {name: own.get(name) or pick_source(name) for name in parts}
    _check_parts(parts, found, cap, least)
    index = build_index(against, masked=masked, words=words)
    seen = Seen()
    mix = Mix([], {}, against)
    for name, wanted in parts.items():
        source = found[name]
        rows, report = collect_problems(
            source, wanted, seed=seed, index=index, seen=seen
        )
        mix.reports[name] = report
        mix.problems += rows
    for report in mix.reports.values():
        require_rows(report)
        _require_share(report, least)
    random.Random(seed).shuffle(mix.problems)
    _apply_cap(mix, cap)
    return mix


def pick_source(name: str) -> Source:
    """A source by name, or one that reads a problem file.

    A file of a registered set keeps that set's role.
    """
    if not name.endswith(".jsonl"):
        return find_source(name)
    known = [s.role for s in SOURCES.values() if s.file == name]
    return Source(
        name,
        role=known[0] if known else "train",
        solution="solution",
        id_field="id",
        file=name,
    )


def _check_parts(
    parts: Mapping[str, int],
    found: Mapping[str, Source],
    cap: int | None,
    least: float,
) -> None:
    """Refuse what cannot be a training mix, before anything is read."""
    if not parts:
        raise LabError("The mix names no source.", fix="name one or more")
    for name, wanted in parts.items():
        if found[name].name != name:
            raise ValueError(f"{name} is the source {found[name].name}")
        if wanted < 1:
            raise LabError(
                f"{wanted} problems of {name} were asked for.",
                fix="ask for 1 or more, or leave the source out",
            )
        if found[name].role == "evaluation":
            raise LabError(
                f"{name} is an evaluation set and cannot be trained on.",
                why="every score on it would be worthless afterwards",
                fix="leave it out, or use a training set"
                + (" (gsm8k-train)" if name == "gsm8k" else ""),
            )
    if cap is not None and cap < len(parts):
        raise LabError(
            f"A cap of {cap} leaves no room for {len(parts)} sources.",
            fix="raise the cap",
        )
    if not 0 <= least <= 1:
        raise ValueError(f"least must be in [0, 1], got {least}")


def _require_share(report: LoadReport, least: float) -> None:
    """LabError when a source shrank so far that the mix is another one."""
    wanted = report.asked or 0
    if report.kept < least * wanted:
        raise LabError(
            f"{report.name}: {report.kept:,} of the {wanted:,} problems "
            "that were asked for are left.",
            why="; ".join(report.list_reasons())
            or f"the source has {report.total} rows",
            fix="ask for fewer, mend the source, or lower `least` "
            f"(now {least:g})",
        )


def _apply_cap(mix: Mix, cap: int | None) -> None:
    """Cut the shuffled mix; each report then counts what stayed."""
    if cap is None or len(mix.problems) <= cap:
        return
    for problem in mix.problems[cap:]:
        report = mix.reports[problem.source]
        report.drop("cap", "over the cap of the mix", problem.id)
        report.steps["cap"] -= 1
    mix.problems = mix.problems[:cap]
    for report in mix.reports.values():
        require_rows(report)
