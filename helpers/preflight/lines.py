"""From a guard's verdict to a line of the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers.base import LabError
from helpers.doctor import Line


def blame(name: str, error: LabError, status: Any = "FAIL") -> Line:
    """A refusal as one line: what, why, and what to do."""
    text = error.what
    if error.why:
        text += f" Why: {error.why}."
    if error.fix:
        text += f" Do this: {error.fix}."
    return Line(status, name, text.replace("..", "."))


def try_guard(
    name: str,
    check: Callable[[], Any],
    fine: str | Callable[[Any], str],
    status: Any = "FAIL",
) -> Line:
    """Run a check: its refusal becomes ``status``, a warning a WARN.

    Args:
        check: raises LabError, or returns a sentence or something else.
        fine: what to say when all is well; may look at what was returned.
    """
    try:
        found = check()
    except LabError as error:
        return blame(name, error, status)
    if isinstance(found, str) and found:
        return Line("WARN", name, found)
    return Line("OK", name, fine if isinstance(fine, str) else fine(found))
