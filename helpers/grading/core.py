"""The order of tests that decides whether two answers are the same."""

from __future__ import annotations

import re
from typing import NamedTuple

from helpers.grading.brackets import is_grouped_number, strip_doubled
from helpers.grading.compare import compare_values
from helpers.grading.evaluate import limited_time, out_of_time
from helpers.grading.exact import parse_number
from helpers.grading.hazards import find_hazard, measure_nesting
from helpers.grading.logic import same_formula
from helpers.grading.moments import same_date, same_time
from helpers.grading.normalize import CLOSE, MAX_LENGTH, OPEN, canonical, clean
from helpers.grading.parameters import match_parameters
from helpers.grading.scalars import plain_words
from helpers.grading.structure import Value, is_empty, parse_value
from helpers.grading.trace import note
from helpers.grading.units import split_quantities

MAX_SHAPED = 8_000
MAX_NESTING = 60
_SYMPY_COMMANDS = {
    "sum", "prod", "int", "lim", "begin",
}  # fmt: skip
_LETTER = re.compile(r"\(?([A-J])\)?")
_OPTION = re.compile(r"^(?:the )?(?:option|choice|answer)\b[ :]*", re.I)
_CHOICE = re.compile(r"(?:\(([A-J])\)|([A-J])(?:[.):]|$))\s*(.*)", re.S)


class Verdict(NamedTuple):
    """``correct`` is None while only math-verify can tell."""

    correct: bool | None
    reason: str
    pair: tuple[str, str] | None = None


def judge(predicted: str, gold: str) -> Verdict:
    """Compare two answers without any other process."""
    if note("empty reference", not gold.strip()):
        return Verdict(False, "the reference answer is empty")
    if note("same string", predicted.strip() == gold.strip()):
        return Verdict(True, "exact string")
    if len(predicted) > MAX_LENGTH or len(gold) > MAX_LENGTH:
        return Verdict(False, "too long to evaluate")
    left, right = note("cleaned", (clean(gold), clean(predicted)))
    if not right:
        return Verdict(False, "no answer found")
    same = canonical(left) == canonical(right)
    if note("same string after cleaning", same):
        return Verdict(True, "exact string")
    one, two = note("numbers", (parse_number(left), parse_number(right)))
    if one is not None and two is not None and not _may_be_list(left, right):
        return Verdict(one == two, "number" if one == two else "other number")
    # Nothing below may be slow on a long text, so none gets there.
    if max(len(left), len(right)) > MAX_SHAPED:
        return Verdict(False, "too long to evaluate")
    if note("same word", _same_word(left, right)):
        return Verdict(True, "same words")
    choice = note("choice letter", _compare_choice(left, right))
    if choice is not None:
        return choice
    moment = note("time or date", _same_moment(left, right))
    if moment is not None:
        return Verdict(moment, "time or date" if moment else "another time")
    both = split_quantities(left), split_quantities(right)
    if note("quantities", both[0] is not None and both[0] == both[1]):
        return Verdict(True, "same quantities")
    if note("formula of logic", same_formula(left, right)):
        return Verdict(True, "same truth table")
    if note("no solution", is_empty(left) and is_empty(right)):
        return Verdict(True, "the empty set")
    if note("words, not mathematics", _is_text(left) or _is_text(right)):
        same = _listed_words(left) == _listed_words(right)
        if same:
            return Verdict(True, "same words")
        if _is_text(left) and _is_text(right):
            return Verdict(False, "different words")
    if max(map(_nesting, (left, right))) > MAX_NESTING:
        return Verdict(False, "nested too deeply")
    with limited_time():
        return _judge_shapes(left, right)


def _nesting(text: str) -> int:
    """Measure the nesting of what doubled brackets enclose."""
    return measure_nesting(strip_doubled(text.strip()))


def _may_be_list(left: str, right: str) -> bool:
    """Say whether 1,234 might be the list of 1 and 234."""
    return "," in left + right


def _compare_choice(left: str, right: str) -> Verdict | None:
    """Compare the letter of a multiple-choice answer: (C) 12 is C."""
    one, two = (_OPTION.sub("", _unmark(t)) for t in (left, right))
    if re.fullmatch(r"\([a-j]\)", two) or re.fullmatch(r"\([A-J]\)", one):
        two = two.upper() if len(two) < 4 else two
    if not _LETTER.fullmatch(one):
        one, two = two, one  # the reference has the text of the choice too
    letter = _LETTER.fullmatch(one)
    if letter is None:
        return None
    found = _CHOICE.fullmatch(two)
    if found is None:
        return None
    rest = found[3]
    if re.search(r"(?<![A-Za-z])[A-J](?![A-Za-z])", rest) or re.match(
        r"(?:or|and)\b|[,;/&]", rest
    ):
        return Verdict(False, "several choices")
    same = (found[1] or found[2]) == letter[1]
    return Verdict(same, "choice" if same else "another choice")


def _same_moment(left: str, right: str) -> bool | None:
    same = same_time(left, right)
    return same_date(left, right) if same is None else same


def _listed_words(text: str) -> list[str]:
    """Return the items of a text: red and blue is blue and red."""
    items = re.split(r"\s*(?:,|;|&|\band\b|\bor\b)\s*", plain_words(text))
    return sorted(item for item in items if item)


def _same_word(left: str, right: str) -> bool:
    """Say whether two words differ only by a capital letter: Yes, yes."""
    one, two = _unmark(left), _unmark(right)
    word = r"[A-Za-z][a-z]{2,}|[Nn]o"
    return bool(re.fullmatch(word, one)) and one.lower() == two.lower()


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
    left, right = match_parameters(left, right)
    golds = note("reference read as", _readings(left))
    predictions = note("answer read as", _readings(right))
    first: Verdict | None = None
    for gold in golds:
        for predicted in predictions:
            correct, reason = note(
                "values compared", compare_values(gold, predicted)
            )
            if correct:
                return Verdict(True, reason)
            if first is None or correct is None:
                first = Verdict(correct, reason)
    if out_of_time():
        return Verdict(False, "deadline: comparing took too long")
    if first is None or first.correct is False:
        return first or Verdict(False, "not readable")
    if why := note("hazard", find_hazard(right) or find_hazard(left)):
        return Verdict(False, f"too dangerous to evaluate: {why}")
    if not note("worth asking math-verify", _worth_asking(left, right)):
        return Verdict(False, "not readable as mathematics")
    return Verdict(None, "", (_for_sympy(left), _for_sympy(right)))


def _worth_asking(left: str, right: str) -> bool:
    """Say whether math-verify might know what our reader does not.

    Sums, integrals, limits, products of matrices and values too large to
    probe: yes. Sentences, stray operators and numbers side by side: no; they
    only cost a deadline.
    """
    both = f"{left} | {right}"
    apart = r"(?<![_^\d])\d+ \d|\\[bp]?mod *(?:\||$)"
    if re.search(apart, both):
        return False
    plain = re.sub(r"\\(?:begin|end) ?\{\w+\}|\\[a-zA-Z]+", " ", both)
    if re.search(r"[A-Za-z]{3}|[^\x00-\x7f]", plain):
        return False
    # What our reader knows and cannot settle, sympy cannot settle in time.
    return bool(set(re.findall(r"\\([a-zA-Z]+)", both)) & _SYMPY_COMMANDS)


def _readings(text: str) -> list[Value]:
    """Return 1,234 both as a number and as a list of two."""
    readings = [parse_value(text)]
    # 1,234 may be a list; 1,000 may not: 000 is no number of its own.
    if (
        is_grouped_number(text)
        and "$" not in text
        and not re.search(r",0\d", text)
    ):
        readings.append(parse_value(text, grouped=False))
    return readings


def _for_sympy(text: str) -> str:
    """Write the cleaned form as LaTeX again."""
    text = re.sub(r"(\\[a-zA-Z]+) (?=[^a-zA-Z])", r"\1", text)
    return text.replace(r"\lbr", r"\{").replace(r"\rbr", r"\}")
