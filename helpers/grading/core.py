"""The order of tests that decides whether two answers are the same."""

from __future__ import annotations

import re
from typing import NamedTuple

from helpers.grading.compare import compare_values, plain_words
from helpers.grading.exact import parse_number
from helpers.grading.hazards import find_hazard
from helpers.grading.normalize import CLOSE, MAX_LENGTH, OPEN, canonical, clean
from helpers.grading.structure import Value, is_grouped_number, parse_value

MAX_SHAPED = 8_000
_LETTER = re.compile(r"\(?([A-J])\)?")
_CHOICE = re.compile(r"(?:\(([A-J])\)|([A-J])(?:[.):]|$))\s*(.*)", re.S)


class Verdict(NamedTuple):
    """``correct`` is None while only math-verify can tell."""

    correct: bool | None
    reason: str
    pair: tuple[str, str] | None = None


def judge(predicted: str, gold: str) -> Verdict:
    """Compare two answers without any other process."""
    if not gold.strip():
        return Verdict(False, "the reference answer is empty")
    if predicted.strip() == gold.strip():
        return Verdict(True, "exact string")
    if len(predicted) > MAX_LENGTH or len(gold) > MAX_LENGTH:
        return Verdict(False, "too long to evaluate")
    left, right = clean(gold), clean(predicted)
    if not right:
        return Verdict(False, "no answer found")
    if canonical(left) == canonical(right) and canonical(left):
        return Verdict(True, "exact string")
    one, two = parse_number(left), parse_number(right)
    if one is not None and two is not None and not _may_be_list(left, right):
        return Verdict(one == two, "number" if one == two else "other number")
    if (choice := _compare_choice(left, right)) is not None:
        return choice
    if _is_text(left) or _is_text(right):
        same = plain_words(left) == plain_words(right)
        if same:
            return Verdict(True, "same words")
        if _is_text(left) and _is_text(right):
            return Verdict(False, "different words")
    if len(left) > MAX_SHAPED or len(right) > MAX_SHAPED:
        return Verdict(False, "too long to evaluate")
    return _judge_shapes(left, right)


def _may_be_list(left: str, right: str) -> bool:
    """Say whether 1,234 might be the list of 1 and 234."""
    return "," in left + right


def _compare_choice(left: str, right: str) -> Verdict | None:
    """Compare the letter of a multiple-choice answer: (C) 12 is C."""
    letter = _LETTER.fullmatch(_unmark(left))
    if letter is None:
        return None
    found = _CHOICE.fullmatch(_unmark(right))
    if found is None:
        return None
    same = (found[1] or found[2]) == letter[1]
    return Verdict(same, "choice" if same else "another choice")


def _unmark(text: str) -> str:
    return text.replace(OPEN, "").replace(CLOSE, "").strip(" .{}*")


def _is_text(text: str) -> bool:
    """Say whether an answer is words, not mathematics."""
    bare = _unmark(text)
    if re.fullmatch(r"[A-Z]{2,}", bare):
        return True
    if re.search(r"[\d=<>^+*/\\_|()\[\]]", bare):
        return False
    words = re.findall(r"[^\W\d_]+", bare)
    return bool(words) and max(map(len, words)) >= 4 or text.startswith(OPEN)


def _judge_shapes(left: str, right: str) -> Verdict:
    """Compare as shaped values, in each reading of grouped digits."""
    golds, predictions = _readings(left), _readings(right)
    first: Verdict | None = None
    for gold in golds:
        for predicted in predictions:
            correct, reason = compare_values(gold, predicted)
            if correct:
                return Verdict(True, reason)
            if first is None or (correct is None and first.correct is False):
                first = Verdict(correct, reason)
    if first is None or first.correct is False:
        return first or Verdict(False, "not readable")
    if why := find_hazard(right) or find_hazard(left):
        return Verdict(False, f"too dangerous to evaluate: {why}")
    return Verdict(None, "", (_for_sympy(left), _for_sympy(right)))


def _readings(text: str) -> list[Value]:
    """Return 1,234 both as a number and as a list of two."""
    readings = [parse_value(text)]
    if is_grouped_number(text) and "$" not in text:
        readings.append(parse_value(text, grouped=False))
    return readings


def _for_sympy(text: str) -> str:
    """Write the cleaned form as LaTeX again."""
    text = text.replace(OPEN, r"\text{").replace(CLOSE, "}")
    text = text.replace(r"\lbr", r"\{").replace(r"\rbr", r"\}")
    return text.replace("*", r"\cdot ").replace("%", r"\%")
