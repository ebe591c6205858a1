"""From rows to problems: every row is kept, or counted with its reason."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from helpers.base import (
    LabError,
    Problem,
    did_you_mean,
    read_records,
    resolve_data,
)
from helpers.problems.contamination import ContaminationIndex, text_digest
from helpers.problems.golds import FILTERS, BadGold, read_gold
from helpers.problems.rows import GYM_ROWS, ROW, Row, open_source
from helpers.problems.sources import GYM_PREFIX, SOURCES, Source, find_source

STEPS = (
    "read",
    "schema",
    "filter",
    "gold",
    "duplicates",
    "decontamination",
    "cap",
)
MAX_EXAMPLES = 3


@dataclass
class LoadReport:
    """Rows of one source that survive each of ``STEPS``.

    ``total`` is the size of the source where it is known; ``read`` is less
    when enough rows were found before its end. ``dropped`` counts reasons
    per step, ``examples`` has the first ids of each, ``golds`` says which
    field and rule gave the answers, ``unused`` names columns that are not
    read, ``notes`` what else differs from ``sources.yaml``.
    """

    name: str
    where: str = ""
    asked: int | None = None
    total: int | None = None
    steps: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(STEPS, 0)
    )
    dropped: dict[str, Counter[str]] = field(
        default_factory=lambda: {step: Counter() for step in STEPS}
    )
    examples: dict[str, list[str]] = field(default_factory=dict)
    golds: Counter[str] = field(default_factory=Counter)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """Rows that survived everything."""
        return self.steps["cap"]

    @property
    def n_dropped(self) -> int:
        """Rows that were read and left out for a reason, the cap aside."""
        counts = (c for s, c in self.dropped.items() if s != "cap")
        return sum(sum(count.values()) for count in counts)

    def drop(self, step: str, reason: str, row_id: str) -> None:
        """Count a row that ends at ``step``, and why."""
        self.dropped[step][reason] += 1
        shown = self.examples.setdefault(f"{step}: {reason}", [])
        if len(shown) < MAX_EXAMPLES:
            shown.append(row_id)

    def find_loss(self) -> str:
        """The step that left nothing, or "" when something is left."""
        for step in STEPS:
            if not self.steps[step]:
                return step
        return ""

    def list_reasons(self) -> list[str]:
        """One line per reason: step, count, reason, first ids."""
        return [
            f"{step}: {count:,} × {reason} "
            f"(e.g. {', '.join(self.examples[f'{step}: {reason}'])})"
            for step, counts in self.dropped.items()
            for reason, count in counts.most_common()
        ]

    def __str__(self) -> str:
        of = f" of {self.total:,}" if self.total is not None else ""
        lines = [
            f"{self.name}: {self.steps['read']:,}{of} rows read, "
            f"{self.kept:,} kept ({self.where})"
        ]
        lines += [f"  {line}" for line in self.list_reasons()]
        lines += [f"  note: {line}" for line in self.notes]
        return "\n".join(lines)


@dataclass
class Seen:
    """Problems met so far, in one source or in a whole mix."""

    texts: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)

    def refuse(self, problem: Problem) -> str:
        """Why this problem is a duplicate, or ""; else it is remembered."""
        key = text_digest(problem.problem)
        if key in self.texts:
            where, answer = self.texts[key]
            how = "" if answer == problem.answer else ", with another answer"
            return f"the same problem is in {where}{how}"
        if problem.id in self.ids:
            return "another problem has this id"
        self.texts[key] = (problem.source, problem.answer)
        self.ids.add(problem.id)
        return ""


def load_problems(
    name_or_path: str | Path, n: int | None = None
) -> list[Problem]:
    """The first ``n`` problems of a registered set or a JSONL file.

    Args:
        name_or_path: a name of :data:`SOURCES`, for example ``gsm8k`` or
            ``reasoning-gym:chain_sum``; or a file, absolute or relative to
            ``data/`` (``MATHSLM_DATA_DIR`` is looked in first).
        n: how many; None for all.

    Rows of a registered set that cannot be used are counted and named in a
    warning (see :func:`load_source` for the report itself); a file must be
    right in every line.

    Raises:
        LabError: no such set or file, a changed schema, nothing usable in
            it, or fewer than ``n`` problems; for a file also a line that
            lacks a field, an empty problem or answer, and an id used twice.
    """
    name = str(name_or_path)
    if name in SOURCES or name.startswith(GYM_PREFIX):
        problems, report = load_source(name, n)
        _warn_of_losses(report)
        return problems
    if "/" not in name and "\\" not in name and "." not in name:
        hint = did_you_mean(name, SOURCES)
        if hint:
            find_source(name)  # raises, with the list of names
    return load_file(name_or_path, n)


def load_up_to(name: str, most: int) -> list[Problem]:
    """As :func:`load_problems`, but of a streamed set only the first ones.

    Args:
        name: a registered set or a file.
        most: how many of a streamed set, which is too large to be held; all
            that it has when there are fewer.
    """
    source = SOURCES.get(name)
    if source is None or not source.stream:
        return load_problems(name)
    problems, report = collect_problems(source, most)
    require_rows(report)
    _warn_of_losses(report)
    return problems


def _warn_of_losses(report: LoadReport) -> None:
    """Warn of what was left out, where the caller of the caller reads it."""
    if report.n_dropped or report.notes:
        warnings.warn(str(report), stacklevel=3)


def load_source(
    source: str | Source,
    n: int | None = None,
    *,
    seed: int | None = None,
    index: ContaminationIndex | None = None,
) -> tuple[list[Problem], LoadReport]:
    """Problems of a registered set, and the account of all its rows.

    Args:
        source: a name of :data:`SOURCES`, or a Source of one's own.
        n: how many; None for all. Reading stops when they are found.
        seed: shuffle before taking ``n``; None keeps the order.
        index: leave out what overlaps with these evaluation sets.

    Raises:
        LabError: see :func:`load_problems`.
    """
    source = find_source(source) if isinstance(source, str) else source
    if n is not None and n < 1:
        raise LabError(
            f"{n} problems of {source.name} were asked for.",
            fix="ask for 1 or more",
        )
    problems, report = collect_problems(source, n, seed=seed, index=index)
    require_rows(report)
    if n is not None and len(problems) < n:
        raise LabError(
            f"{source.name} holds {len(problems)} usable problems, "
            f"{n} were asked for.",
            why="; ".join(report.list_reasons()) or report.where,
            fix=f"ask for at most {len(problems)}",
        )
    return problems, report


def collect_problems(
    source: Source,
    n: int | None,
    *,
    seed: int | None = None,
    index: ContaminationIndex | None = None,
    seen: Seen | None = None,
) -> tuple[list[Problem], LoadReport]:
    """As :func:`load_source`, but also with too few problems or none."""
    if n is None and source.name.startswith(GYM_PREFIX):
        n = GYM_ROWS  # a generator has no end
    report = LoadReport(source.name, asked=n)
    opened = open_source(source, seed, n)
    report.where, report.total = opened.where, opened.total
    report.unused = sorted(set(opened.columns) - set(source.columns))
    bar = tqdm(
        opened.rows,
        desc=Path(source.name).name,  # of a file without its folders
        total=opened.total,
        unit=" rows",
        leave=False,
        delay=2,
    )
    problems: list[Problem] = []
    for problem in _sift(source, bar, report, seen or Seen(), index):
        problems.append(problem)
        if len(problems) == n:
            break
    bar.close()
    report.steps["cap"] = len(problems)
    _note_size(source, report)
    return problems, report


def require_rows(report: LoadReport) -> None:
    """LabError that names the step at which a source lost its last row."""
    step = report.find_loss()
    if step:
        raise LabError(
            f"{report.name}: no row is left after the step '{step}'.",
            why="; ".join(report.list_reasons()) or "it holds no row at all",
            fix=f"look at the rows of {report.where}; the fields that are "
            f"read are shown by: mathslm problems {report.name}",
        )


def _note_size(source: Source, report: LoadReport) -> None:
    """A set of another size than published is another set."""
    if source.rows and report.total and report.total != source.rows:
        report.notes.append(
            f"{report.total:,} rows instead of the published "
            f"{source.rows:,}: scores are not comparable"
        )


def _sift(
    source: Source,
    rows: Iterator[Row],
    report: LoadReport,
    seen: Seen,
    index: ContaminationIndex | None,
) -> Iterator[Problem]:
    """Yield what survives; count the rest at its step."""
    steps = report.steps
    for row in rows:
        row_id = _name_row(source, row)
        steps["read"] += 1
        if reason := check_row(source, row):
            report.drop("schema", reason, row_id)
            continue
        steps["schema"] += 1
        if source.keep and (reason := FILTERS[source.keep](row)):
            report.drop("filter", reason, row_id)
            continue
        steps["filter"] += 1
        try:
            answer, rule = read_gold(source, row)
        except BadGold as error:
            report.drop("gold", str(error), row_id)
            continue
        steps["gold"] += 1
        report.golds[rule] += 1
        problem = _make_problem(source, row, row_id, answer)
        if reason := seen.refuse(problem):
            report.drop("duplicates", reason, row_id)
            continue
        steps["duplicates"] += 1
        if index and (hits := index.find_all(problem)):
            found = [f"{hit.kind} as in {hit.reference_set}" for hit in hits]
            report.drop("decontamination", " and ".join(found), row_id)
            continue
        steps["decontamination"] += 1
        yield problem


def check_row(source: Source, row: Row) -> str:
    """What is wrong with the fields of a row, or ""."""
    text = row.get(source.problem)
    if text is None:
        return f"no {source.problem}"
    if not isinstance(text, str):
        return f"{source.problem} is of type {type(text).__name__}"
    if not text.strip():
        return f"{source.problem} is empty"
    for name in source.uses:
        if row.get(name) is None:
            return f"no {name}"
    return ""


def _name_row(source: Source, row: Row) -> str:
    """The row's own id where it has one, else its place in the source."""
    own = row.get(source.id_field) if source.id_field else None
    if source.file and own is not None:
        return str(own)
    return f"{source.name}-{row[ROW] if own is None else own}"


def _make_problem(
    source: Source, row: Row, row_id: str, answer: str
) -> Problem:
    solution: Any = row.get(source.solution) if source.solution else None
    if solution is not None and not isinstance(solution, str):
        solution = json.dumps(solution, ensure_ascii=False)
    return Problem(
        id=row_id,
        problem=row[source.problem].strip(),
        answer=answer,
        source=source.name,
        solution=solution,
    )


def load_file(path: str | Path, n: int | None = None) -> list[Problem]:
    """The first ``n`` problems of a JSONL file, or all of them.

    Args:
        path: absolute, or relative to ``data/`` (``MATHSLM_DATA_DIR`` is
            looked in first).
        n: how many; None for all.

    Raises:
        LabError: no such file, no problem in it, a line that lacks a field,
            an empty problem or answer, two problems with one id, or fewer
            than ``n`` problems.
    """
    path = resolve_data(path)
    problems = read_records(path, Problem)
    if not problems:
        raise LabError(
            f"{path} holds no problem.",
            fix="it must have one JSON object a line, with id, problem "
            "and answer",
        )
    for problem in problems:
        if not problem.problem.strip() or not problem.answer.strip():
            raise LabError(
                f"{path}: '{problem.id}' has an empty problem or answer.",
                why="a response to it could not be graded",
                fix="mend or delete that line",
            )
    ids = Counter(problem.id for problem in problems)
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise LabError(
            f"{path}: {len(twice)} ids occur more than once, "
            f"for example '{twice[0]}'.",
            why="results are compared problem by problem, by id",
            fix="give every problem an id of its own",
        )
    if n is not None and n > len(problems):
        raise LabError(
            f"{path} holds {len(problems)} problems, {n} were asked for.",
            fix=f"ask for at most {len(problems)}",
        )
    return problems if n is None else problems[:n]
