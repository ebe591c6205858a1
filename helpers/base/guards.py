"""Guards: refuse a doomed run before it costs anything, and say why.

Every guard is a pure function: numbers, token ids or texts in, yes or no out.
What must not happen raises :class:`~helpers.base.errors.LabError`; what may
be wrong comes back as a sentence to print. The stages call them; a notebook
can call them on made-up numbers to see them fire. :data:`GUARDS` lists them
all, each with its story. Here: the list, and the guards of what is on disk.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from helpers.base.errors import LabError

PLANNING = "before anything is loaded"
LOADED = "before training"
SAMPLING = "while sampling"
TRAINING = "while training"
AFTER = "after training"
STORY = re.compile(r"\bStory: (.*?)(?:\n\s*\n|\Z)", re.S)
Check = TypeVar("Check", bound=Callable[..., Any])


@dataclass(frozen=True)
class Guard:
    """One guard: what it is for, its function, and when it runs.

    ``doctor``: ``mathslm doctor --tier`` runs it too.
    """

    title: str
    check: Callable[..., Any]
    when: str
    doctor: bool = False

    @property
    def name(self) -> str:
        """Name of its function."""
        return self.check.__name__

    @property
    def story(self) -> str:
        """What happened to whom, from the function's docstring."""
        found = STORY.search(inspect.getdoc(self.check) or "")
        return " ".join(found[1].split()) if found else ""

    def as_row(self) -> dict[str, str]:
        """For a table in a notebook."""
        return {
            "guard": self.title,
            "function": self.name,
            "runs": self.when,
            "story": self.story,
        }


GUARDS: list[Guard] = []


def guard(
    title: str, when: str, *, doctor: bool = False
) -> Callable[[Check], Check]:
    """Put the function below into :data:`GUARDS`."""

    def add(check: Check) -> Check:
        GUARDS.append(Guard(title, check, when, doctor))
        return check

    return add


@guard("unwritable output", PLANNING, doctor=True)
def check_writable(path: str, *, is_folder: bool, may_write: bool) -> None:
    """Refuse an output folder that nothing can be written to.

    Story: the published 7B run wrote its scores at the end of each
    evaluation. A stage that opens its output last also finds out last: after
    the hour that was paid for, not before it.

    Raises:
        LabError: it is no folder, or this user may not write there.
    """
    if is_folder and may_write:
        return
    fault = "may not be written to" if is_folder else "is not a folder"
    raise LabError(
        f"{path} {fault}.",
        why="every stage writes its results there",
        fix="choose another --run-dir, or change the folder's owner or mode",
    )


@guard("a disk that is too small", PLANNING, doctor=True)
def check_space(path: str, free_mb: float, needed_mb: float) -> None:
    """Refuse to start what would fill the disk in the middle of a save.

    Story: a 7B model is 15 GB on disk, twice that while a merge stands
    beside the model it replaces; the disk of a rented machine is often
    smaller than its memory. A save that runs out of disk loses the hour
    before it.

    Args:
        free_mb: megabytes that are free.
        needed_mb: megabytes that the stage will write.

    Raises:
        LabError: fewer are free than are needed.
    """
    if free_mb >= needed_mb:
        return
    raise LabError(
        f"Only {free_mb:,.0f} MB are free where {path} lies; "
        f"about {needed_mb:,.0f} MB are needed.",
        fix="free some space or choose another --run-dir",
    )


@guard("unwritten output", AFTER)
def check_written(stage: str, sizes: Mapping[str, int | None]) -> None:
    """Refuse to call a stage finished whose results are not on disk.

    Story: as its source reads, EulerForge 0.1.0 reloads a dense model for
    its export and drops the weights that do not fit: the command ends well,
    and the trained experts are nowhere. A stage is finished when its files
    are there, not when it returns.

    Args:
        stage: its name.
        sizes: for each output its bytes, of a folder those of all files in
            it; None where there is nothing.

    Raises:
        LabError: names the outputs that are missing, or empty folders.
    """
    missing = [name for name, size in sizes.items() if size is None]
    if not missing:
        return
    raise LabError(
        f"Stage '{stage}' wrote no {', no '.join(missing)}.",
        why="a stage counts as finished only with its results on disk",
        fix="look at the messages above and at the free space, then start "
        "the stage again",
    )


@guard("results that would be overwritten", PLANNING, doctor=True)
def check_same_inputs(folder: str, stage: str, differ: Sequence[str]) -> None:
    """Refuse to load, or to replace, results of another experiment.

    Story: the published 7B run wrote the scores of the SFT and of the DPO
    model to files of the same names, and a shell script renamed them in
    between. Forget it once, and two models have one score.

    Args:
        folder: the run folder.
        stage: whose results are there.
        differ: names of the inputs that are not those of the results.

    Raises:
        LabError: any input differs.
    """
    if not differ:
        return
    raise LabError(
        f"{folder} holds '{stage}' made from other inputs "
        f"(changed: {', '.join(differ)}).",
        why="loading it would mix two experiments",
        fix="choose another --run-dir, or add --force to set the old "
        "output aside and compute it again",
    )
