"""Decide whether a response's answer equals the reference answer.

A verdict is a function of the two texts: no process, no clock, nothing
outside is asked, so it is the same on an idle and on a busy machine. Work is
bounded by counts of characters, levels, digits and steps; what passes a
bound is refused and the reason says so. Model output is never evaluated as
code.

The order of the tests, from the cheapest to the dearest, is that of
:func:`compare_answers`; the first one that can tell decides:

1. equal strings, before and after both are brought to one spelling
2. exact numbers, as fractions
3. words, the letter of a choice, times and dates, quantities, "no solution"
4. shapes: lists, sets, intervals, matrices, relations, part by part, and
   single expressions by their values at fixed points (60 digits)

What is contested is settled in :data:`helpers.grading.policy.POLICY`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, NamedTuple

from helpers.grading.compare import compare_values, plain_words
from helpers.grading.evaluate import OutOfSteps, count_steps
from helpers.grading.extract import LAST_RESORT, find_answer
from helpers.grading.numbers import parse_number
from helpers.grading.shapes import Value, is_empty, parse_value
from helpers.grading.spelling import (
    CLOSE,
    MAX_LENGTH,
    OPEN,
    canonical,
    clean,
    is_grouped_number,
    measure_nesting,
    strip_doubled,
)
from helpers.grading.trace import note
from helpers.grading.units import same_date, same_time, split_quantities

if TYPE_CHECKING:
    from helpers.grading.explain import Step

MAX_SHAPED = 8_000  # characters of what is read as more than a number
MAX_NESTING = 60
PAIRS_PER_TASK = 64

_LETTER = re.compile(r"\(?([A-J])\)?")
_OPTION = re.compile(r"^(?:the )?(?:option|choice|answer)\b[ :]*", re.I)
_CHOICE = re.compile(r"(?:\(([A-J])\)|([A-J])(?:[.):]|$))\s*(.*)", re.S)


@dataclass(frozen=True)
class Grade:
    """A verdict, what was graded, and the reason in words."""

    correct: bool
    extracted: str | None
    reason: str


class Verdict(NamedTuple):
    """What the comparison of two answers came to."""

    correct: bool
    reason: str


# ---- what others call ------------------------------------------------------


def extract_answer(response: str) -> str | None:
    """Return the answer that a response commits to, or None."""
    return find_answer(response).answer


def is_equivalent(predicted: str, gold: str) -> bool:
    """Say whether two bare answers are the same.

    The comparison is not symmetric where the policy is not (percent, units).
    """
    if not isinstance(predicted, str) or not isinstance(gold, str):
        return False
    return _compare_safely(predicted, gold).correct


def grade_response(response: str, gold: str) -> Grade:
    """Extract the answer of one response and compare it with the gold.

    Args:
        response: a full model output or a bare answer; any odd input (not a
            string, empty, megabytes) gets a Grade, never an exception.
        gold: the reference answer.
    """
    if not isinstance(gold, str):
        return Grade(False, None, "the reference is not a string")
    if not isinstance(response, str):
        return Grade(False, None, "the response is not a string")
    same = len(gold.strip()) > 0 and response.strip() == gold.strip()
    if note("the response is the reference", same):
        return Grade(True, response.strip(), "exact string")
    answer, how = note("answer found", find_answer(response))
    if answer is None:
        reason = how if how == "no answer found" else f"no answer found: {how}"
        return Grade(False, None, reason)
    correct, reason = _compare_safely(answer, gold)
    if how == LAST_RESORT:
        reason = f"{reason} ({LAST_RESORT})"
    return Grade(correct, answer, reason)


def grade_many(
    responses: Iterable[str],
    golds: Iterable[str],
    *,
    workers: int | None = None,
) -> list[Grade]:
    """Grade many responses; the result is in the order of the input.

    Args:
        responses: full model outputs or bare answers.
        golds: the reference answer of each response.
        workers: None or 1 grades in this process; more uses so many
            processes. That is for speed alone, the verdicts are the same.

    Raises:
        ValueError: the two lists have different lengths.
    """
    responses, golds = list(responses), list(golds)
    if len(responses) != len(golds):
        raise ValueError(
            f"{len(responses)} responses but {len(golds)} golds: "
            "each response needs its own reference answer"
        )
    if workers is None or workers <= 1 or len(golds) <= PAIRS_PER_TASK:
        return list(map(grade_response, responses, golds))
    # What is no text gets its verdict without being looked at, so it need
    # not travel. Spawned, not forked: a caller may have threads.
    texts = [
        [text if isinstance(text, str) else None for text in column]
        for column in (responses, golds)
    ]
    context = get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            grades = pool.map(grade_response, *texts, chunksize=PAIRS_PER_TASK)
            return list(grades)
    except BrokenProcessPool:  # a process was killed: slower, but the same
        return list(map(grade_response, *texts))


def explain_grade(response: str, gold: str) -> list[Step]:
    """Grade one response and return every step on the way to the verdict.

    The steps are written down by the same run that decides; the last one is
    the verdict with its reason.
    """
    from helpers.grading.explain import explain

    return explain(response, gold)


# ---- the order of the tests ------------------------------------------------


def _compare_safely(predicted: str, gold: str) -> Verdict:
    """Model output is hostile: whatever it breaks, it gets no reward."""
    try:
        return compare_answers(predicted, gold)
    except Exception as error:  # fuzzing calls ``compare_answers`` bare
        return Verdict(False, f"not readable ({type(error).__name__})")


def compare_answers(predicted: str, gold: str) -> Verdict:
    """Compare two answers, from the cheapest test to the dearest."""
    # 1. Strings.
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

    # 2. Exact numbers.
    one, two = note("numbers", (parse_number(left), parse_number(right)))
    if one is not None and two is not None and not _may_be_list(left, right):
        return Verdict(one == two, "number" if one == two else "other number")
    # Nothing below may be slow on a long text, so none gets there.
    if max(len(left), len(right)) > MAX_SHAPED:
        return Verdict(False, "too long to evaluate")

    # 3. What is not mathematics, or has a form of its own.
    if note("same word", _same_word(left, right)):
        return Verdict(True, "same words")
    choice = note("choice letter", _compare_choice(left, right))
    if choice is not None:
        return choice
    moment = note("time or date", _same_time(left, right))
    if moment is not None:
        return Verdict(moment, "time or date" if moment else "another time")
    both = split_quantities(left), split_quantities(right)
    if note("quantities", both[0] is not None and both[0] == both[1]):
        return Verdict(True, "same quantities")
    if note("no solution", is_empty(left) and is_empty(right)):
        return Verdict(True, "the empty set")
    if note("words, not mathematics", _is_text(left) or _is_text(right)):
        same = _listed_words(left) == _listed_words(right)
        if same:
            return Verdict(True, "same words")
        if _is_text(left) and _is_text(right):
            return Verdict(False, "different words")

    # 4. Shapes and values.
    if max(map(_nesting, (left, right))) > MAX_NESTING:
        return Verdict(False, "nested too deeply")
    return _compare_shapes(left, right)


def _may_be_list(left: str, right: str) -> bool:
    """Say whether 1,234 might be the list of 1 and 234."""
    return "," in left + right


def _same_word(left: str, right: str) -> bool:
    """Say whether two words differ only by a capital letter: Yes, yes."""
    one, two = _unmark(left), _unmark(right)
    word = r"[A-Za-z][a-z]{2,}|[Nn]o"
    return bool(re.fullmatch(word, one)) and one.lower() == two.lower()


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


def _same_time(left: str, right: str) -> bool | None:
    same = same_time(left, right)
    return same_date(left, right) if same is None else same


def _is_text(text: str) -> bool:
    """Say whether an answer is words, not mathematics."""
    bare = _unmark(text)
    if re.fullmatch(r"[A-Z]{2,}", bare):
        return True
    if re.search(r"[\d=<>^+*/\\_|()\[\]]", bare):
        return False
    words = re.findall(r"[^\W\d_]+", bare)
    return (bool(words) and max(map(len, words)) >= 4) or text.startswith(OPEN)


def _listed_words(text: str) -> list[str]:
    """Return the items of a text: red and blue is blue and red."""
    items = re.split(r"\s*(?:,|;|&|\band\b|\bor\b)\s*", plain_words(text))
    return sorted(item for item in items if item)


def _unmark(text: str) -> str:
    return text.replace(OPEN, "").replace(CLOSE, "").strip(" .{}*")


def _nesting(text: str) -> int:
    """Measure the nesting of what doubled brackets enclose."""
    return measure_nesting(strip_doubled(text.strip()))


def _compare_shapes(left: str, right: str) -> Verdict:
    """Compare as shaped values, in each reading of grouped digits."""
    golds = note("reference read as", _readings(left))
    predictions = note("answer read as", _readings(right))
    first: tuple[bool | None, str] = False, "not readable"
    try:
        with count_steps() as work:
            for i, gold in enumerate(golds):
                for j, predicted in enumerate(predictions):
                    result = note(
                        "values compared", compare_values(gold, predicted)
                    )
                    if result[0]:
                        return Verdict(True, result[1])
                    if i == j == 0 or result[0] is None:
                        first = result
    except OutOfSteps as error:
        return Verdict(False, f"too large: {error}")
    if first[0] is False:
        return Verdict(False, first[1])
    if work.limit:
        return Verdict(False, f"too large: {work.limit}")
    return Verdict(False, "not readable as mathematics")


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
