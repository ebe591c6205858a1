"""Show one verdict step by step: the answer, its readings, each test.

The steps are what :func:`helpers.grading.trace.note` wrote down while
``grade_response`` decided, put into words. Nothing is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from helpers.grading.extract import Extraction
from helpers.grading.grade import Grade, Verdict, grade_response
from helpers.grading.shapes import Value
from helpers.grading.trace import record_trace

MAX_SHOWN = 200
_PARTS = {
    "text after the reasoning": "extract",
    "box": "extract",
    "answer tag": "extract",
    "####": "extract",
    "answer phrase": "extract",
    "prose": "extract",
    "answer found": "extract",
    "cleaned": "clean",
    "numbers": "read",
    "reference read as": "read",
    "answer read as": "read",
}
_NEEDED_WORDS = {
    "box": "box \\boxed or \\fbox",
    "answer tag": "<answer> tag",
    "####": "mark ####",
    "answer phrase": 'phrase such as "the answer is"',
    "prose": "sentences rather than a bare answer",
}


@dataclass(frozen=True)
class Step:
    """One step: its part of the work, what was done, what came out.

    ``part`` is "extract", "clean", "read", "test" or "verdict".
    """

    part: str
    what: str
    outcome: str


def explain(response: object, gold: object) -> list[Step]:
    """Grade one response; return the steps, the verdict last."""
    with record_trace() as trace:
        grade = grade_response(response, gold)  # type: ignore[arg-type]
    steps = [
        Step(
            _PARTS.get(test, "test"),
            _NEEDED_WORDS.get(test, test),
            describe_outcome(outcome),
        )
        for test, outcome in trace
    ]
    return [*steps, Step("verdict", "correct", _describe_grade(grade))]


def _describe_grade(grade: Grade) -> str:
    return f"{'yes' if grade.correct else 'no'}: {grade.reason}"


def describe_outcome(outcome: object) -> str:
    """Put what a test returned into words.

    Model output is shown as one line of printable characters.
    """
    if isinstance(outcome, Verdict):
        return f"{_describe_mark(outcome.correct)}: {outcome.reason}"
    if isinstance(outcome, Extraction):
        if outcome.answer is None:
            return f"no answer: {outcome.how}"
        return f"{quote_text(outcome.answer)} ({outcome.how})"
    if outcome is None or isinstance(outcome, bool):
        return _describe_mark(outcome)
    if isinstance(outcome, str):
        return quote_text(outcome)
    if isinstance(outcome, Value):
        return f"{outcome.kind} {quote_text(outcome.text)}"
    if isinstance(outcome, list):
        return " or ".join(map(describe_outcome, outcome)) or "none"
    if isinstance(outcome, tuple):
        return _describe_pair(outcome)
    return quote_text(str(outcome))


def _describe_pair(pair: tuple) -> str:
    """Reference and answer side by side, or a verdict with its reason."""
    one, two = pair
    if isinstance(one, tuple):  # what math-verify was asked, and its answer
        return f"{_describe_pair(one)}: {two}"
    if isinstance(one, bool | None) and isinstance(two, str):
        said = "undecided" if one is None else _describe_mark(one)
        return f"{said}: {two}" if two else said
    return f"reference {_describe_side(one)}, answer {_describe_side(two)}"


def _describe_side(side: object) -> str:
    if side is None:
        return "not a plain number"
    if isinstance(side, int | Fraction):
        return quote_text(str(side))
    return describe_outcome(side)


def _describe_mark(mark: bool | None) -> str:
    return {True: "yes", False: "no", None: "none"}[mark]


def quote_text(text: str) -> str:
    """Return the start of a text as one printable line in quotes."""
    more = len(text) - MAX_SHOWN
    tail = f" … {more} more characters" if more > 0 else ""
    return f"«{escape_text(text[:MAX_SHOWN])}»{tail}"


def escape_text(text: str) -> str:
    """Return a text with every unprintable character as its escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii")
        for c in text
    )
