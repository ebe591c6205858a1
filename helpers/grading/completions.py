"""Completions graded when they are read.

A verdict is a function of the response: files keep what the model wrote and
its reference answer, and whoever reads them grades. So one reader has one
grader, and a better grader needs no second file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from helpers.base import Completion, LabError, iter_records
from helpers.grading.extract import read_answer
from helpers.grading.grade import grade_many

CHUNK = 1024  # completions graded at a time
NOT_SAMPLED = "too_long"  # the prompt left no room: there is no response


class GradedCompletion(Completion):
    """A completion with the grader's verdict, see :class:`Grade`."""

    extracted: str | None
    correct: bool
    reason: str


def grade_completions(
    rows: Iterable[Completion],
    golds: Mapping[str, str] | None = None,
    *,
    workers: int | None = None,
) -> Iterator[GradedCompletion]:
    """Yield the rows with their verdicts, in order, some at a time.

    Args:
        golds: reference answers by problem id, for rows without ``gold``.

    Raises:
        LabError: a row without a reference answer.
    """
    rows = iter(rows)
    while part := list(islice(rows, CHUNK)):
        answers = [find_gold(row, golds or {}) for row in part]
        texts = [read_answer(row.prompt, row.response) for row in part]
        grades = grade_many(texts, answers, workers=workers)
        for row, gold, grade in zip(part, answers, grades, strict=True):
            verdict = {"gold": gold} | vars(grade)
            if row.finish_reason == NOT_SAMPLED:
                verdict |= {"extracted": None, "correct": False}
                verdict["reason"] = NOT_SAMPLED
            yield GradedCompletion(**(row.model_dump() | verdict))


def read_graded(
    path: str | Path, golds: Mapping[str, str] | None = None
) -> list[GradedCompletion]:
    """The completions of a JSONL file, graded.

    Raises:
        LabError: no such file, a damaged line, or a row without a gold.
    """
    return list(grade_completions(iter_records(path, Completion), golds))


def find_gold(row: Completion, golds: Mapping[str, str]) -> str:
    """The reference answer of a row: its own, else that of its problem."""
    if row.gold:
        return row.gold
    if row.problem_id in golds:
        return golds[row.problem_id]
    raise LabError(
        f"'{row.problem_id}' has no 'gold' answer, and the recipe's problem "
        "file has no such problem.",
        fix="put the problem file of that run back in its place",
    )
