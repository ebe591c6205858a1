"""Guards: refuse a doomed run before it costs anything, and say why.

Every guard is a pure function: numbers, token ids or texts in, yes or no out.
What must not happen raises :class:`~helpers.base.errors.LabError`; what may
be wrong comes back as a sentence to print. The stages call them; a notebook
can call them on made-up numbers to see them fire. :data:`GUARDS` lists them
all, each with its story. Here: the list.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

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
