"""How the gold answer is read from a row, and when it cannot be.

Rules: ``text`` is the field itself, ``number`` a number in it, ``hash`` what
follows the last ``####``, ``boxed`` the last box of a solution, ``prose`` what
the grader would read from an unmarked text. Which rows are kept at all is
said by the filters at the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from helpers.grading import extract_answer, last_box, parse_number
from helpers.problems.sources import Source

MAX_CHARACTERS = 400  # longer than any answer of the sets here

# How a column of GSM8K marks its gold; no response is judged by it.
HASH_MARK = "####"

# AIME 2025 has 336^\circ; the grader takes an angle for its number, so the
# gold stays as it is published.
_DEGREES = re.compile(r"\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|°)$")


class BadGold(ValueError):
    """The row has no gold answer that could be graded; says why."""


def _write_number(value: float | int) -> str:
    """18.0 becomes 18, 1e+16 becomes 10000000000000000."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadGold(f"the answer is {value}")
    if value == int(value):
        return str(int(value))
    return format(Decimal(repr(value)).normalize(), "f")


def _read_text(value: Any) -> str:
    """A string, a number, or a list of them, as one answer."""
    if isinstance(value, list | tuple):
        if not value:
            raise BadGold("the list of answers is empty")
        return ", ".join(_read_text(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadGold(f"the answer is of type {type(value).__name__}")
    if not isinstance(value, str):
        return _write_number(value)
    text = value.strip()
    if "\\boxed" in text:
        return _read_boxed(text)
    inner = re.fullmatch(r"\$([^$]+)\$", text)
    return inner[1].strip() if inner else text


def _read_number(value: Any) -> str:
    """A number, or a text that is one; 27.0 is 27 in both."""
    if isinstance(value, str):
        number = parse_number(value.strip())
        if number is None:
            raise BadGold("the answer is not a number")
        plain = value.strip().replace(",", "")
        whole = number.denominator == 1
        return str(number.numerator) if whole else plain
    return _read_text(value)


def _read_hash(value: Any) -> str:
    _need_text(value)
    if HASH_MARK not in value:
        raise BadGold(f"no {HASH_MARK} in the answer")
    return value.rsplit(HASH_MARK, 1)[1].strip()


def _read_boxed(value: Any) -> str:
    _need_text(value)
    found = last_box(value)
    if found is None:
        raise BadGold("no \\boxed{} in the solution")
    if found.answer is None:
        raise BadGold(found.how)
    return found.answer.strip()


def _read_prose(value: Any) -> str:
    _need_text(value)
    answer = extract_answer(value)
    if answer is None:
        raise BadGold("no answer found in the text")
    return answer


def _need_text(value: Any) -> None:
    if not isinstance(value, str):
        raise BadGold(f"the answer is of type {type(value).__name__}")


RULES: dict[str, Callable[[Any], str]] = {
    "text": _read_text,
    "number": _read_number,
    "hash": _read_hash,
    "boxed": _read_boxed,
    "prose": _read_prose,
}


def read_gold(source: Source, row: dict[str, Any]) -> tuple[str, str]:
    """(gold answer, "field: rule" that gave it) of one row.

    Raises:
        BadGold: no field holds an answer, or it could not be graded.
    """
    for field, rule in source.golds:
        value = row.get(field)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        answer = RULES[rule](value)
        _check_gold(answer, source.numeric)
        return answer, f"{field}: {rule}"
    raise BadGold("no answer")


def _check_gold(answer: str, numeric: bool) -> None:
    """Refuse what no response could be compared with."""
    if not answer:
        raise BadGold("the answer is empty")
    if len(answer) > MAX_CHARACTERS:
        raise BadGold("the answer is longer than an answer")
    if answer.count("{") != answer.count("}"):
        raise BadGold("braces of the answer do not match")
    if numeric and parse_number(_DEGREES.sub("", answer)) is None:
        raise BadGold("the answer is not a number")


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
