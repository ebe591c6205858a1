"""Stored verdicts: which grader gave them, and how they are given again.

Every graded line carries the version of its grader in ``grader``. Verdicts
of two versions never mix in one file and are never compared; what an older
grader decided is decided again from the stored response, without sampling.
However large a file is, a few lines are in memory at a time. No torch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from helpers.base import (
    Completion,
    LabError,
    RunDir,
    choose_aside,
    disk_errors,
    iter_records,
    read_records,
    write_records,
)
from helpers.grading import grade as grading
from helpers.grading import grade_many, read_answer
from helpers.problems import load_problems

CHUNK = 1024  # responses graded at a time
BAR_AFTER_S = 1.0
UNKNOWN = "unversioned"
NOT_DRAWN = "too_long"  # no response: the reason is not the grader's
_SAID: set[tuple[str, str]] = set()


@dataclass
class FileChange:
    """What grading again did to one file.

    ``versions`` are those of before; ``to_right`` and ``to_wrong`` the ids
    of rows whose verdict flipped; ``reworded`` counts rows that only got
    another answer or reason.
    """

    name: str
    rows: int = 0
    versions: set[str] = field(default_factory=set)
    to_right: list[str] = field(default_factory=list)
    to_wrong: list[str] = field(default_factory=list)
    reworded: int = 0
    written: bool = False

    @property
    def changed(self) -> list[str]:
        """Ids of all rows whose verdict flipped."""
        return [*self.to_right, *self.to_wrong]

    def count(self, old: Completion, new: Completion) -> None:
        """Take one row into account."""
        self.rows += 1
        self.versions.add(old.grader or UNKNOWN)
        self.written |= old != new
        if new.correct != old.correct:
            found = self.to_right if new.correct else self.to_wrong
            several = self.name.startswith("samples/")
            mark = f" #{old.sample}" if several else ""
            found.append(f"{old.problem_id}{mark}")
        elif (new.extracted, new.reason) != (old.extracted, old.reason):
            self.reworded += 1


def regrade_command(run: RunDir) -> str:
    """The command that grades this run again."""
    return f"mathslm regrade --run-dir {run.label}"


def regrade_file(run: RunDir, name: str, aside: Path) -> FileChange:
    """Give a graded file of the run the verdicts of the installed grader.

    The file is replaced in one step, after a copy of the old one was put
    into ``aside``; when no row changes it stays as it is.

    Args:
        name: the graded file, as a path in the run.

    Raises:
        LabError: a damaged line, or a row whose reference answer is lost.
    """
    path, change = run.file(name), FileChange(name)
    fresh = path.with_name(path.name + ".regraded")
    write_records(fresh, _iter_regraded(path, find_golds(run, name), change))
    with disk_errors(path):
        if change.written:
            keep_copy(run, name, aside)
            os.replace(fresh, path)
        else:
            fresh.unlink()
    return change


def _iter_regraded(
    path: Path, find: Callable[[Completion], str], change: FileChange
) -> Iterator[Completion]:
    """Yield every row of a file graded again; a bar shows after a second."""
    with open(path, "rb") as file:
        total = sum(1 for _ in file)
    rows = iter_records(path, Completion)
    with tqdm(
        total=total, desc=change.name, unit="response", delay=BAR_AFTER_S
    ) as bar:
        while part := list(islice(rows, CHUNK)):
            for old, new in zip(part, regrade_rows(part, find), strict=True):
                change.count(old, new)
                yield new
            bar.update(len(part))


def regrade_rows(
    rows: list[Completion], find: Callable[[Completion], str]
) -> list[Completion]:
    """Copies of the rows with the verdicts of the installed grader.

    Args:
        find: gives the reference answer of a row; see :func:`find_golds`.
    """
    golds = [find(row) for row in rows]
    texts = [read_answer(row.prompt, row.response) for row in rows]
    grades = grade_many(texts, golds)
    return [
        row.model_copy(
            update={"grader": grading.GRADER_VERSION, "gold": gold}
            | ({} if row.finish_reason == NOT_DRAWN else vars(grade))
        )
        for row, grade, gold in zip(rows, grades, golds, strict=True)
    ]


def find_golds(run: RunDir, name: str) -> Callable[[Completion], str]:
    """A function that gives the reference answer of a row of this file.

    Rows carry it as ``gold``; for older ones it is taken from the problem
    file that the recipe names. The function raises LabError when there is
    none.
    """
    loaded: dict[str, str] = {}

    def find(row: Completion) -> str:
        own = (row.model_extra or {}).get("gold")
        if own:
            return str(own)
        if not loaded:
            loaded.update(_load_golds(run, name))
        if row.problem_id not in loaded:
            raise LabError(
                f"{run.file(name)}: '{row.problem_id}' has no 'gold' answer, "
                "and the recipe's problem file has no such problem.",
                fix="put the problem file of that run back in its place",
            )
        return loaded[row.problem_id]

    return find


def _load_golds(run: RunDir, name: str) -> dict[str, str]:
    folder, stem = Path(name).parts[0], Path(name).stem
    benchmarks = {b.name: b.path for b in run.recipe.evaluate.benchmarks}
    train = run.recipe.data.train
    source = train if folder == "samples" else benchmarks.get(stem)
    if source is None:
        raise LabError(
            f"{run.file(name)} holds rows without a 'gold' answer.",
            why=f"the recipe has no benchmark '{stem}' to take them from",
            fix="move the file out of the run folder, or add 'gold' to it",
        )
    return {p.id: p.answer for p in load_problems(source)}


def keep_copy(run: RunDir, name: str, aside: Path) -> None:
    """Copy a file of the run into ``aside`` before it is replaced."""
    with disk_errors(aside):
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(run.file(name), aside / name)


def renew_file(run: RunDir, name: str) -> None:
    """Make a file one that can be gone on with: one grader version, ours.

    Rows of another version are graded again first, without sampling. The
    file is replaced in one step; the one of before is kept in ``old/``.
    """
    aside = choose_aside(run.path, "regrade")
    change = regrade_file(run, name, aside)
    before = " and ".join(sorted(change.versions))
    print(
        f"{name}: {change.rows} rows had grades of grader {before}; graded "
        f"again by {grading.GRADER_VERSION}, {len(change.changed)} verdicts "
        f"changed (the old file is in {aside.relative_to(run.path)})."
    )


def read_version(path: Path) -> str | None:
    """Grader version of a graded file's first row.

    "" when the rows are from before versions were stored; None when the file
    is empty or damaged, which reading it will say.
    """
    with open(path, "rb") as file:
        line = file.readline()
    try:
        first = json.loads(line)
    except ValueError:
        return None
    return first.get("grader", "") if isinstance(first, dict) else None


def say_old_grades(run: RunDir, names: Iterable[str]) -> None:
    """Say in one line, once, that finished results have older grades."""
    paths = [run.file(name) for name in names]
    found = {read_version(p) for p in paths if p.is_file()} - {None}
    old = {version or UNKNOWN for version in found - {grading.GRADER_VERSION}}
    key = (str(run.path.resolve()), " and ".join(sorted(old)))
    if not old or key in _SAID:
        return
    _SAID.add(key)
    print(
        f"Graded by grader {key[1]}, {grading.GRADER_VERSION} is installed; "
        f"to grade again without sampling: {regrade_command(run)}"
    )


def require_one_grader(run: RunDir, versions: Mapping[str, str]) -> None:
    """Refuse to compare results that two grader versions graded.

    Args:
        versions: ``{what: version}``, e.g. ``{"base": "1.0"}``.

    Raises:
        LabError: they differ.
    """
    if len(set(versions.values())) < 2:
        return
    shown = ", ".join(f"{k}: {v or UNKNOWN}" for k, v in versions.items())
    raise LabError(
        f"Results in {run.label} were graded by different graders ({shown}).",
        why="a difference between them could come from the grader alone",
        fix=regrade_command(run),
    )


def find_versions(tag: str, rows: Iterable[Completion]) -> dict[str, str]:
    """``{"base": version}``; with the line where it changes, if it does."""
    first: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        first.setdefault(row.grader, number)
    if len(first) == 1:
        return {tag: next(iter(first))}
    return {f"{tag} from line {n}": version for version, n in first.items()}


def load_graded(run: RunDir, benchmark: str, tag: str) -> list[Completion]:
    """The rows of one model, comparable with every other model's.

    Raises:
        LabError: the file, or another model's on this benchmark, was graded
            by another version.
    """
    path = run.file("eval", tag, f"{benchmark}.jsonl")
    rows = read_records(path, Completion)
    versions = find_versions(tag, rows)
    for other in sorted(run.path.glob(f"eval/*/{benchmark}.jsonl")):
        found = read_version(other)
        if other != path and found is not None:
            versions[other.parent.name] = found
    require_one_grader(run, versions)
    say_old_grades(run, [f"eval/{tag}/{benchmark}.jsonl"])
    return rows
