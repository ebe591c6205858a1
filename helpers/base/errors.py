"""One kind of error for everything a person can get wrong.

The command line prints a :class:`LabError` as one message without a
traceback; a notebook shows the same text. Programming mistakes keep raising
``TypeError`` / ``ValueError`` as usual.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabError(Exception):
    """A refusal that a learner can act on.

    Args:
        what: what happened, with the file and line when there is one.
        why: the reason, in one sentence.
        fix: what to do next.
    """

    def __init__(self, what: str, why: str = "", fix: str = ""):
        self.what, self.why, self.fix = what, why, fix
        parts = [what]
        if why:
            parts.append(f"Why: {why}")
        if fix:
            parts.append(f"Do this: {fix}")
        super().__init__("\n".join(parts))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known word, or ""."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
