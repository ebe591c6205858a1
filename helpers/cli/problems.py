"""The command ``mathslm problems``: which sets there are, and check one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from helpers.base import LabError
from helpers.experiments.options import out

if TYPE_CHECKING:
    from helpers.problems import LoadReport, Source


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
