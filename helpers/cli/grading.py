"""The commands ``mathslm grade`` and ``mathslm regrade``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from helpers.base import LabError, RunDir
from helpers.cli.base import require_run
from helpers.experiments.options import (
    DEFAULT_TIER,
    RunFolder,
    load_setup,
    out,
)

if TYPE_CHECKING:
    from helpers.grading import Case, Grade, KindCount
    from helpers.regrade import Regraded
    from helpers.results import FileChange

MAX_IDS = 20  # wrong verdicts listed a kind of error
MAX_CHANGED = 5  # changed verdicts listed a file


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


def regrade(
    run: Annotated[
        Path | None, typer.Argument(help="Run folder, as with --run-dir.")
    ] = None,
    run_dir: RunFolder = None,
    harvest: Annotated[
        bool,
        typer.Option(
            "--harvest",
            help="Also write sft.jsonl and pairs.jsonl anew; the old ones "
            "are set aside.",
        ),
    ] = False,
) -> None:
    """Grade a run again with the installed grader, without sampling."""
    if run and run_dir and run != run_dir:
        raise LabError(
            f"Two run folders are named: {run} and {run_dir}.",
            fix="name one of them",
        )
    folder = run or run_dir or Path("runs") / DEFAULT_TIER
    require_run(folder)
    recipe, folder = load_setup(None, folder, None)
    opened = RunDir.open(folder, recipe)
    from helpers.regrade import run_regrade

    show_regraded(opened, run_regrade(opened, harvest=harvest))


def show_regraded(run: RunDir, done: Regraded) -> None:
    """Print what changed, what did not, and what is stale now."""
    show_files(done.files)
    for change in done.files:
        show_ids(f"{change.name}", change.changed, MAX_CHANGED)
    if not any(change.changed for change in done.files):
        out.print("Nothing changed: every verdict is what it was.")
    show_changed_scores(done)
    if done.metrics:
        names = ", ".join(done.metrics)
        out.print(f"metrics.json: renewed for {names}.", soft_wrap=True)
    show_harvest(run, done)
    for line in done.stale:
        out.print(f"Stale now: {line}", markup=False, soft_wrap=True)
    if done.aside is not None:
        where = done.aside.relative_to(run.path)
        out.print(
            f"The files of before are in {run.label}/{where}.",
            markup=False,
            soft_wrap=True,
        )


def show_changed_scores(done: Regraded) -> None:
    """Print the scores of before and now, where they differ."""
    from helpers.results import proportion

    for model, benchmark, before, now, n in done.scores:
        out.print(
            f"{model} on {benchmark}: {proportion(before, n)} → "
            f"{proportion(now, n)}",
            markup=False,
            soft_wrap=True,
        )


def show_files(files: list[FileChange]) -> None:
    """Print one line a file: rows, flipped verdicts, versions."""
    from helpers.grading import GRADER_VERSION

    table = Table()
    table.add_column("file", overflow="fold")
    for name in ("rows", "to wrong", "to right", "reworded"):
        table.add_column(name, justify="right")
    table.add_column("grader", no_wrap=True)
    for one in files:
        cells = (one.rows, len(one.to_wrong), len(one.to_right), one.reworded)
        old = sorted(one.versions - {GRADER_VERSION})
        versions = f"{', '.join(old)} → " if old else ""
        table.add_row(one.name, *map(str, cells), versions + GRADER_VERSION)
    out.print(table)


def show_harvest(run: RunDir, done: Regraded) -> None:
    """Print how the training rows would differ under the new verdicts."""
    if done.no_harvest:
        out.print(
            f"The harvest was not compared: {done.no_harvest}.",
            markup=False,
            soft_wrap=True,
        )
    if not done.harvest:
        return
    if not any(done.harvest):
        out.print("The harvest is the same by the new verdicts.")
        return
    table = Table("file")
    for name in ("rows", "by the new verdicts", "added", "dropped", "other"):
        table.add_column(name, justify="right")
    for one in done.harvest:
        cells = (one.there, one.anew, one.added, one.dropped, one.other)
        table.add_row(one.name, *map(str, cells))
    out.print(table)
    if done.harvest_written:
        out.print("sft.jsonl and pairs.jsonl were written anew.")
    else:
        out.print(
            "sft.jsonl and pairs.jsonl stay: the models were trained on "
            "them. To write them anew: mathslm regrade --harvest --run-dir "
            f"{run.label}",
            markup=False,
            soft_wrap=True,
        )
