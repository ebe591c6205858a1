"""Worked solutions of the data sets as responses that can be trained on.

Each set writes its solutions in its own way. Here the set's marks are taken
off and the answer is marked in one way at the end, the way in which the
prompt asks for it: ``\\boxed{18}`` or ``#### 18``. What the answer is comes
from the gold; that the text says the same is for the grader to find out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from helpers.base import Problem
from helpers.grading import match_brace

Mark = Literal["boxed", "hash"]
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_BOX = re.compile(r"\\boxed\s*\{")


class BadSolution(ValueError):
    """The problem has no worked solution that could be used; says why."""


def drop_calculator(text: str) -> str:
    """GSM8K without its calculator notes: ``48/2 = <<48/2=24>>24``."""
    return _CALCULATOR.sub("", text)


def drop_hash_line(text: str) -> str:
    """The text before its last ``####``.

    Raises:
        BadSolution: there is none, so this is not a solution of that set.
    """
    body, mark, _ = text.rpartition("####")
    if not mark:
        raise BadSolution("no #### in the solution")
    return body


# By source; sets that are not named are prose, or boxed already.
CLEANERS: dict[str, tuple[Callable[[str], str], ...]] = {
    "gsm8k": (drop_calculator, drop_hash_line),
    "gsm8k-train": (drop_calculator, drop_hash_line),
    "reasoning-gym:gsm_symbolic": (drop_hash_line,),
}


def write_worked(problem: Problem, mark: Mark) -> str:
    """The problem's solution as a response that ends in its marked answer.

    A solution that holds a box keeps it where a box is asked for, and loses
    it where ``####`` is.

    Raises:
        BadSolution: there is no solution, or nothing of it is left.
    """
    text = problem.solution or ""
    if not text.strip():
        raise BadSolution("no worked solution")
    for clean in CLEANERS.get(problem.source, ()):
        text = clean(text)
    if _BOX.search(text):
        if mark == "boxed":
            return text.strip()
        text = open_boxes(text)
    lines = [line.rstrip() for line in text.strip().splitlines()]
    body = "\n".join(lines).strip()
    if not body:
        raise BadSolution("nothing but the answer")
    if mark == "boxed":
        return f"{body}\nThe answer is \\boxed{{{problem.answer}}}."
    return f"{body}\n#### {problem.answer}"


def open_boxes(text: str) -> str:
    """``\\boxed{x}`` becomes ``x``; a box that is never closed stays."""
    start = 0
    while found := _BOX.search(text, start):
        end = match_brace(text, found.end() - 1)
        if end < 0:
            return text
        inner = text[found.end() : end - 1]
        text = text[: found.start()] + inner + text[end:]
        start = found.start()
    return text
