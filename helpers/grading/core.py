"""The order of tests that decides whether two answers are the same."""

from __future__ import annotations

import re
from typing import NamedTuple

from helpers.grading.compare import compare_values
from helpers.grading.evaluate import start_budget
from helpers.grading.exact import parse_number
from helpers.grading.hazards import find_hazard
from helpers.grading.normalize import CLOSE, MAX_LENGTH, OPEN, canonical, clean
from helpers.grading.reader import is_readable
from helpers.grading.scalars import plain_words
from helpers.grading.structure import Value, is_grouped_number, parse_value

MAX_SHAPED = 8_000
_SYMPY_COMMANDS = {
    "sum", "prod", "int", "lim", "begin", "det", "bmod", "pmod", "mod",
    "wedge", "vee", "partial", "cap", "subset", "prime", "bar", "hat",
}  # fmt: skip
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
    if _same_word(left, right):
        return Verdict(True, "same words")
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
    rest = found[3]
    if re.search(r"(?<![A-Za-z])[A-J](?![A-Za-z])", rest) or re.match(
        r"(?:or|and)\b|[,;/&]", rest
    ):
        return Verdict(False, "several choices")
    same = (found[1] or found[2]) == letter[1]
    return Verdict(same, "choice" if same else "another choice")


def _same_word(left: str, right: str) -> bool:
    """Say whether two words differ only by a capital letter: Yes, yes."""
    one, two = _unmark(left), _unmark(right)
    word = r"[A-Za-z][a-z]{2,}|[Nn]o"
    if not re.fullmatch(word, one) or not re.fullmatch(word, two):
        return False
    return one[1:] == two[1:] and one.lower() == two.lower()


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
    return (bool(words) and max(map(len, words)) >= 4) or text.startswith(OPEN)


def _judge_shapes(left: str, right: str) -> Verdict:
    """Compare as shaped values, in each reading of grouped digits."""
    start_budget()
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
    if not _worth_asking(left, right):
        return Verdict(False, "not readable as mathematics")
    if why := find_hazard(right) or find_hazard(left):
        return Verdict(False, f"too dangerous to evaluate: {why}")
    return Verdict(None, "", (_for_sympy(left), _for_sympy(right)))


def _worth_asking(left: str, right: str) -> bool:
    """Say whether math-verify might know what our reader does not.

    Sums, integrals, limits, products of matrices and values too large to
    probe: yes. Sentences, stray operators and numbers side by side: no; they
    only cost a deadline.
    """
    both = f"{left} | {right}"
    if re.search(r"\d \d", both) or OPEN in both:
        return False
    plain = re.sub(r"\\(?:begin|end) ?\{\w+\}|\\[a-zA-Z]+", " ", both)
    if re.search(r"[A-Za-z]{3}|[^\x00-\x7f]", plain):
        return bool(re.search(r"(?:sqrt|exp|log|sin|cos|tan)\b", plain))
    if set(re.findall(r"\\([a-zA-Z]+)", both)) & _SYMPY_COMMANDS:
        return True
    return is_readable(left) and is_readable(right)


def _readings(text: str) -> list[Value]:
    """Return 1,234 both as a number and as a list of two."""
    readings = [parse_value(text)]
    if is_grouped_number(text) and "$" not in text:
        readings.append(parse_value(text, grouped=False))
    return readings


def _for_sympy(text: str) -> str:
    """Write the cleaned form as LaTeX again."""
    text = re.sub(r"(\\[a-zA-Z]+) (?=[^a-zA-Z])", r"\1", text)
    text = text.replace(OPEN, r"\text{").replace(CLOSE, "}")
    text = text.replace(r"\lbr", r"\{").replace(r"\rbr", r"\}")
    return text.replace("*", r"\cdot ").replace("%", r"\%")
