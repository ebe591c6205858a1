"""The commands ``mathslm grade`` and ``mathslm problems``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from helpers.base import LabError
from helpers.experiments.options import out

if TYPE_CHECKING:
    from helpers.grading import Case, Grade, KindCount
    from helpers.problems import LoadReport, Source

MAX_IDS = 20  # wrong verdicts listed a kind of error


def grade(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON lines with a response and a gold answer; id, label "
            "(true or false) and kind are optional."
        ),
    ],
    response_field: Annotated[
        str, typer.Option(help="The field that holds the response.")
    ] = "response",
    gold_field: Annotated[
        str, typer.Option(help="The field that holds the reference answer.")
    ] = "gold",
    label_field: Annotated[
        str, typer.Option(help="The field that says whether it is right.")
    ] = "label",
    explain: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Show every step of one case."),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--out", help="Write the graded lines to this file."),
    ] = None,
) -> None:
    """Grade a file of responses; with labels, measure the grader."""
    from helpers.grading import files as grade_file

    if target is not None:
        grade_file.check_target(target, file)
    fields = grade_file.Fields(response_field, gold_field, label_field)
    cases = grade_file.read_cases(file, fields)
    if explain is not None:
        show_steps(grade_file.find_case(cases, explain))
        return
    grades = grade_file.grade_cases(cases)
    if target is not None:
        grade_file.write_graded(target, cases, grades)
    show_grades(cases, grades)
    if target is not None:
        out.print(f"Graded lines: {target}", markup=False, soft_wrap=True)


def show_steps(case: Case) -> None:
    """Print how one verdict comes about, step by step."""
    from helpers.grading import GRADER_VERSION, explain_grade

    table = Table("part", "step", "outcome")
    for step in explain_grade(case.response, case.gold):
        table.add_row(step.part, step.what, Text(step.outcome))
    out.print(table)
    out.print(f"Grader {GRADER_VERSION}.", markup=False)


def show_grades(cases: list[Case], grades: list[Grade]) -> None:
    """Print the score, how verdicts came about, and the confusion."""
    from helpers.grading import GRADER_VERSION, count_kinds, count_reasons
    from helpers.results import proportion

    table = Table("verdict", "reason")
    table.add_column("n", justify="right")
    for correct, reason, n in count_reasons(grades):
        table.add_row("right" if correct else "wrong", Text(reason), str(n))
    out.print(table)
    kinds = count_kinds(cases, grades)
    if kinds:
        show_confusion(kinds)
    score = proportion(sum(g.correct for g in grades), len(grades))
    out.print(f"Graded right: {score}. Grader {GRADER_VERSION}.")


def show_confusion(kinds: dict[str, KindCount]) -> None:
    """Print verdicts against labels by kind, and the ids of wrong ones."""
    from helpers.grading import KindCount, escape_text
    from helpers.results import proportion

    total = KindCount(
        sum(count.n for count in kinds.values()),
        [i for count in kinds.values() for i in count.accepts],
        [i for count in kinds.values() for i in count.rejects],
    )
    table = Table("kind")
    for name in ("n", "right verdicts", "false accepts", "false rejects"):
        table.add_column(name, justify="right")
    for kind, count in [*sorted(kinds.items()), ("all kinds", total)]:
        cells = (count.n, count.right, len(count.accepts), len(count.rejects))
        if kind == "all kinds":
            table.add_section()
        table.add_row(Text(escape_text(kind)), *map(str, cells))
    out.print(table)
    show_ids("False accepts", total.accepts, MAX_IDS)
    show_ids("False rejects", total.rejects, MAX_IDS)
    score = proportion(total.right, total.n)
    out.print(f"Verdicts that agree with the label: {score}.")


def show_ids(title: str, ids: list[str], most: int) -> None:
    """Print the first ids of a list, and how many more there are."""
    from helpers.grading import escape_text

    if not ids:
        return
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    shown = ", ".join(map(escape_text, ids[:most]))
    out.print(f"{title}: {shown}{more}", markup=False, soft_wrap=True)


def problems(
    name: Annotated[
        str | None,
        typer.Argument(help="A problem set to load and check."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", min=1, help="Only the first N usable problems."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Report what overlaps with this evaluation set or file. "
            "Repeatable."
        ),
    ] = None,
    template: Annotated[
        bool,
        typer.Option(
            "--template",
            help="Problems made from templates: changed numbers are no hit.",
        ),
    ] = False,
) -> None:
    """List the problem sets, or load one and say what became of its rows."""
    if name is None:
        if against or n or template:
            raise LabError(
                "-n, --against and --template need the name of a set.",
                fix="mathslm problems gsm8k-train --against gsm8k",
            )
        out.print(list_sources())
        return
    from helpers.problems import (
        SOURCES,
        build_index,
        decontaminate,
        find_source,
        load_problems,
        load_source,
    )

    for other in against or ():
        if "." not in other:
            find_source(other)
    if name in SOURCES or "." not in name:
        source = find_source(name)
        rows, report = load_source(name, n)
        out.print(describe_source(source), markup=False, soft_wrap=True)
        out.print(count_steps(report))
        out.print(str(report), markup=False, soft_wrap=True)
        if report.unused:
            unused = ", ".join(report.unused)
            out.print(f"  columns not read: {unused}", markup=False)
    else:
        rows = load_problems(name, n)
        out.print(f"{name}: {len(rows):,} problems, all usable")
    index = build_index(against or (), masked=not template)
    if index is not None:
        _, found = decontaminate(rows, index)
        out.print(str(found), markup=False, soft_wrap=True)


def list_sources() -> Table:
    """One row a set: name, role, size, licence, where, note."""
    from helpers.problems import SOURCES, find_kept

    table = Table("name", "role", "rows", "licence", "where", "revision")
    for source in SOURCES.values():
        revision = (source.revision or "newest")[:8] if source.hub_id else ""
        if revision == "newest" and (kept := find_kept(source)):
            revision = f"{kept['commit'][:8]} (kept)"
        table.add_row(
            source.name,
            source.role,
            f"{source.rows:,}" if source.rows else source.size,
            source.licence or "none stated",
            name_place(source),
            revision,
        )
    return table


def name_place(source: Source) -> str:
    """Hub id with configs and split, or the shipped file."""
    if not source.hub_id:
        return source.file or "reasoning-gym"
    configs = f" ({' + '.join(source.configs)})" if source.configs else ""
    return f"{source.hub_id}{configs}, {source.split}"


def describe_source(source: Source) -> str:
    """How a row of the set is read."""
    golds = ", else ".join(f"{f} ({rule})" for f, rule in source.golds)
    lines = [
        f"{source.name}: {name_place(source)}",
        f"  problem: {source.problem}; gold: {golds}",
        f"  licence: {source.licence or 'none stated'}",
    ]
    if source.hub_id:
        lines.append(f"  revision: {describe_revision(source)}")
    if source.keep:
        lines.append(f"  rows kept: {source.keep}")
    if source.note:
        lines.append(f"  note: {source.note}")
    return "\n".join(lines)


def describe_revision(source: Source) -> str:
    """The pinned commit, or the kept one and how to take a newer."""
    from helpers.problems import find_kept, kept_file

    if source.revision:
        return source.revision
    kept = find_kept(source)
    if kept is None:
        return "not pinned: the newest, kept when it is first read"
    return (
        f"{kept['commit']}, the newest of {kept['since']}; for a newer one "
        f"take its entry out of {kept_file()}"
    )


def count_steps(report: LoadReport) -> Table:
    """How many rows survive each step."""
    table = Table("step", "rows left")
    table.columns[1].justify = "right"
    for step, count in report.steps.items():
        table.add_row(step, f"{count:,}")
    return table
