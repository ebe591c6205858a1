"""The command ``mathslm grade``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from helpers.experiments.options import out

if TYPE_CHECKING:
    from helpers.grading import Case, Grade, KindCount

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
