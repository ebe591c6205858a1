"""Row filters that a source declares; each says why a row is left out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_IMAGE = re.compile(r"!\[[^\]]*\]\(|<img\b|\\includegraphics")
_PROOF = {"", "n/a", "none", "proof", "null", "-"}


def keep_correct(row: dict[str, Any]) -> str:
    """Rows whose response was checked and right (NuminaMath-QwQ)."""
    return "" if row.get("correct") is True else "not marked correct"


def keep_text_only(row: dict[str, Any]) -> str:
    """Problems without a picture that end in an answer (MathNet)."""
    if row.get("images") or _IMAGE.search(str(row["problem_markdown"])):
        return "needs an image"
    answer = row.get("final_answer")
    if answer is None or str(answer).strip().lower() in _PROOF:
        return "no final answer"
    return ""


FILTERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "correct": keep_correct,
    "text-only": keep_text_only,
}
