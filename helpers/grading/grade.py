"""Decide whether a response's answer equals the reference answer.

Steps, each only when the one before could not decide: extract, one spelling,
equal strings, exact numbers, our own reader with evaluation at fixed points
(60 digits), hazard guard, and last math-verify in a worker process with a
deadline. A plain number never starts a process; model output is never
eval'ed, sympify'ed or given to ``parse_expr``.

What reasonable graders disagree about is decided in :data:`POLICY`. In doubt
an answer is refused: as a reward, a wrong "correct" is learned, while a
wrong "incorrect" is only noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helpers.grading.batch import Draft, count_cores, draft_batch
from helpers.grading.core import Verdict, judge
from helpers.grading.extract import find_answer
from helpers.grading.pool import get_pool, shut_down_all
from helpers.grading.prose import LAST_RESORT
from helpers.grading.trace import note

if TYPE_CHECKING:
    from helpers.grading.explain import Step

GRADER_VERSION = "1.2"
DEADLINE_S = 1.0
PAIRS_PER_WORKER = 16

POLICY: dict[str, str] = {
    "tolerance": "none: 0.333 is not 1/3, 85.71 is not 600/7",
    "unreduced fractions": "accepted: 2/4 equals 1/2",
    "decimals": "exact: 0.5 equals 1/2, 1.0 equals 1",
    "units": "compared when both sides have one, ignored when one has none; "
    "never converted: 5 m is neither 5 cm nor 500 cm",
    "percent": "p% equals p/100; it equals a bare p only for |p| >= 1",
    "degrees": "30 degrees equals a bare 30 and pi/6",
    "angles": "30 degrees is neither 30 radians nor 30 cm",
    "order": "free in {sets} and bare lists, fixed in (tuples) and matrices",
    "connectors": "and, or and commas may list the values of one variable; "
    "x = 1 or y = 2 is not x = 1 and y = 2",
    "brackets": "[0,1) is not (0,1); a bare list equals a tuple in order",
    "several values": "x = 1, x = 2 is a list of values, never (1, 2)",
    "points": "P(1,2) is (1,2) beside a tuple, and a number else",
    "intervals": "an interval equals the inequality it solves",
    "assignments": "x = 5 equals 5; x = 1, y = 2 equals (1, 2)",
    "definitions": "y = 2x+1 and f(x) = 2x+1 equal a bare 2x+1",
    "equations": "equal when one is a non-zero multiple of the other",
    "unsolved": "an equation still to be solved is not its solution: "
    "3x = 6 is not x = 2; an expression equals its value: 3*4 is 12",
    "open references": "a reference left open, x^2 > 4, is met by its whole "
    "solution with its variable, x^2 = 4 also by the bare list 2, -2; a part "
    "of it is not enough",
    "congruences": "modulo the same number; without the modulus not equal",
    "free whole numbers": "k in pi/4 + k*pi may have any name, with or "
    "without the words that say what k is",
    "logic": "formulas are equal when their truth tables are",
    "ratios": "compared in proportion: 1:2:3 is 2:4:6; 3:4 is 3/4",
    "times and dates": "2:30 PM is 14:30 and 2:30; March 5 is 5 March; "
    "a year may be missing on one side",
    "counted things": "may be described: 7 apples, 7 red apples; 7 boys "
    "are not 7 girls",
    "bare braces": "{1,2} is a set: no order, no repetition",
    "domains": "variables are real: sqrt(x^2) is |x|, not x; ln(x^2) is "
    "2 ln|x|, not 2 ln x; z and w are complex beside i",
    "constant of integration": "required: x^2 is not x^2 + C; c equals C",
    "log": "a bare log may mean the natural or the decimal one",
    "bases": "52_8 equals only 52_8, not 52, 52_7 or 42",
    "thousands": "1,234 and 1 234 are numbers; groups must have three digits",
    "several answers": "never equal to one of them: 5 or 7 is not 5",
    "hedges": "42 or 43 offers two answers and is none; 42 but not 43 "
    "commits itself to 42; if the answer is 42 commits itself to nothing",
    "approximation": "what follows an approximation sign is ignored",
    "prose": "sentences are compared as text, without case or final dot",
    "unfinished": "an empty or unclosed last box, or reasoning without "
    "</think>, is no answer; boxes inside the reasoning do not count",
    "last resort": "without a marked answer the last number or formula of "
    "the text counts, and the reason says so",
    "doubt": "without a marked answer, a number that its sentence denies, "
    "tries or offers beside another one is no answer",
    "decimal comma": "2,5 is 2.5 only after an answer phrase of a language "
    "that writes it so",
    "later final answer": "a final answer after the last box replaces it",
}
"""How the contested classes are decided (each is tested)."""


@dataclass(frozen=True)
class Grade:
    """A verdict, what was graded, and the reason in words."""

    correct: bool
    extracted: str | None
    reason: str


_WORDS = {
    "equal": (True, "symbolic"),
    "different": (False, "symbolic: not equal"),
    "unreadable": (False, "not readable as mathematics"),
    "deadline": (False, "deadline: comparing took too long"),
    "worker died": (False, "the symbolic worker died"),
}


def extract_answer(response: str) -> str | None:
    """Return the final answer of a response, or None when it has none.

    Anything that is not a string has no answer; nothing is raised.
    """
    return find_answer(response).answer


def is_equivalent(predicted: str, gold: str) -> bool:
    """Say whether two bare answers mean the same (see :data:`POLICY`).

    The comparison is not symmetric where the policy is not (percent, units).
    """
    if not isinstance(predicted, str) or not isinstance(gold, str):
        return False
    verdict = _settle([_judge_safely(predicted, gold)], 1, DEADLINE_S)[0]
    return bool(verdict.correct)


def grade_response(response: str, gold: str) -> Grade:
    """Extract the answer of one response and compare it with the gold."""
    return grade_many([response], [gold], workers=1)[0]


def explain_grade(response: str, gold: str) -> list[Step]:
    """Grade one response and return every step on the way to the verdict.

    The steps are written down by the same run that decides; the last one is
    the verdict with its reason.
    """
    from helpers.grading.explain import explain

    return explain(response, gold)


def grade_many(
    responses: Iterable[str],
    golds: Iterable[str],
    *,
    workers: int | None = None,
    deadline_s: float = DEADLINE_S,
) -> list[Grade]:
    """Grade many responses; the result is in the order of the input.

    Args:
        responses: full model outputs or bare answers; any odd input (not a
            string, empty, megabytes) gets a Grade, never an exception.
        golds: the reference answer of each response.
        workers: most processes to use; 1 leaves to another process only
            what only computer algebra can decide, None uses the cores when
            the batch is long enough to gain from them.
        deadline_s: seconds for one symbolic comparison.

    Raises:
        ValueError: the two lists have different lengths.
    """
    responses, golds = list(responses), list(golds)
    if len(responses) != len(golds):
        raise ValueError(
            f"{len(responses)} responses but {len(golds)} golds: "
            "each response needs its own reference answer"
        )
    pairs = list(zip(responses, golds, strict=True))
    drafts = draft_batch(pairs, draft, workers)
    verdicts = _settle([d[1] for d in drafts], workers, deadline_s)
    return [
        _finish(extracted, how, verdict)
        for (extracted, _, how), verdict in zip(drafts, verdicts, strict=True)
    ]


def draft(response: object, gold: object) -> Draft:
    """Grade as far as one can without computer algebra.

    Returns the answer, a verdict (open: ``correct`` is None) and how the
    answer was found.
    """
    if not isinstance(gold, str):
        return None, Verdict(False, "the reference is not a string"), ""
    if not isinstance(response, str):
        return None, Verdict(False, "the response is not a string"), ""
    same = len(gold.strip()) > 0 and response.strip() == gold.strip()
    if note("the response is the reference", same):
        return response.strip(), Verdict(True, "exact string"), "box"
    answer, how = note("answer found", find_answer(response))
    if answer is None:
        reason = how if how == "no answer found" else f"no answer found: {how}"
        return None, Verdict(False, reason), ""
    return answer, _judge_safely(answer, gold), how


def _judge_safely(predicted: str, gold: str) -> Verdict:
    """Model output is hostile: whatever it breaks, it gets no reward."""
    try:
        return judge(predicted, gold)
    except Exception as error:  # the fuzz tests call ``judge`` bare
        return Verdict(False, f"not readable ({type(error).__name__})")


def _settle(
    verdicts: list[Verdict], workers: int | None, deadline_s: float
) -> list[Verdict]:
    """Ask math-verify about the pairs that are still open."""
    open_at = [i for i, v in enumerate(verdicts) if v.correct is None]
    pairs = [verdicts[i].pair or ("", "") for i in open_at]
    if not pairs:
        return verdicts
    if workers is None:
        cores = max(1, count_cores() - 1)
        workers = min(cores, 1 + len(pairs) // PAIRS_PER_WORKER)
    answers = get_pool().ask_many(pairs, workers, deadline_s)
    note("math-verify", (pairs[0], answers[0]))
    settled = list(verdicts)
    for i, answer in zip(open_at, answers, strict=True):
        settled[i] = Verdict(*_WORDS.get(answer, (False, answer)))
    return settled


def _finish(extracted: str | None, how: str, verdict: Verdict) -> Grade:
    reason = verdict.reason
    if how == LAST_RESORT:
        reason = f"{reason} ({LAST_RESORT})"
    return Grade(bool(verdict.correct), extracted, reason)


def shut_down() -> None:
    """Stop the worker processes; the next use starts them again."""
    shut_down_all()


__all__ = [
    "DEADLINE_S",
    "GRADER_VERSION",
    "POLICY",
    "Grade",
    "explain_grade",
    "extract_answer",
    "grade_many",
    "grade_response",
    "is_equivalent",
    "shut_down",
]
