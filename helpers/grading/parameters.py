"""Answers with a free whole number: pi/4 + k pi, where k is an integer."""

from __future__ import annotations

import re

from helpers.grading.normalize import CLOSE, OPEN

_INDEX = re.compile(r"\\(?:sum|prod) ?_ ?\{? ?([a-z]) ?=")
_IN = r"\\in\s*(?:\\mathbb ?\{?[ZN]\}?|[ZN]|(?:the )?integers)"
_CLAUSE = re.compile(
    r"(?<![-+*/^=<\s])[\s,;:(]*(?:\b(?:where|for|with|and)\b)?\s*"
    rf"(?:(?:any|all|some|every)\b)?\s*(?:integers?\s+(?P<one>[a-z])\s*(?:{_IN})?"
    rf"|(?P<two>[a-z])\s*(?:{_IN}|\s(?:is )?(?:an |any )?integer))\s*\)?\s*$"
)
_MARKS = str.maketrans({OPEN: " ", CLOSE: " "})


def split_parameter(text: str) -> tuple[str, str]:
    """Return an answer without its "k in Z", and the letter k ("" if none)."""
    found = _CLAUSE.search(text.translate(_MARKS))
    if found is None or not found.start():
        return text, ""
    return text[: found.start()], found["one"] or found["two"]


def match_parameters(left: str, right: str) -> tuple[str, str]:
    """Call the free whole number of the answer as the reference calls it.

    What k may be is dropped only when both sides say it, or when the side
    that does not say it uses the same letter.
    """
    left, right = _match_index(left, right)
    gold, ours = split_parameter(left)
    predicted, theirs = split_parameter(right)
    if not ours and not theirs:
        return left, right
    if ours and theirs:
        if not _uses(predicted, ours):
            predicted = _letter(theirs).sub(lambda m: ours, predicted)
        return gold, predicted
    if _uses(predicted if ours else gold, ours or theirs):
        return gold, predicted
    return left, right


def _match_index(left: str, right: str) -> tuple[str, str]:
    """Call the index of a sum or product as the reference calls it."""
    one, two = _INDEX.findall(left), _INDEX.findall(right)
    if len(one) != 1 or len(two) != 1 or _uses(right, one[0]):
        return left, right
    return left, _letter(two[0]).sub(lambda m: one[0], right)


def _letter(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-zA-Z\\]){name}(?![a-zA-Z])")


def _uses(text: str, name: str) -> bool:
    return bool(_letter(name).search(text))
