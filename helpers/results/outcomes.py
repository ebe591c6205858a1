"""How an answer came out: right, or wrong in one of three ways.

A wrong answer is cut at the token cap (``truncated_wrong``), finished with a
wrong answer (``finished_wrong``) or finished without one (``no_answer``): the
three call for different remedies. No torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from helpers.base import Completion, LabError, is_empty

OUTCOMES = ("right", "finished_wrong", "truncated_wrong", "no_answer")


def classify_outcome(row: Completion) -> str:
    """One of OUTCOMES; exactly one holds for every completion."""
    if row.correct:
        return "right"
    if row.finish_reason == "length":
        return "truncated_wrong"
    return "no_answer" if row.extracted is None else "finished_wrong"


def count_outcomes(rows: Iterable[Completion]) -> dict[str, int]:
    """How many rows have each of OUTCOMES; they add up to all rows."""
    counts = dict.fromkeys(OUTCOMES, 0)
    for row in rows:
        counts[classify_outcome(row)] += 1
    return counts


def summarize_results(rows: Sequence[Completion]) -> dict[str, Any]:
    """Counts of one benchmark: right, and wrong by kind; mean tokens.

    ``no_answer`` holds those that were not drawn at all (``too_long``: the
    prompt and the cap exceed the context) and most ``empty`` ones.

    Raises:
        LabError: there is no row.
    """
    if not rows:
        raise LabError(
            "There is no result to count: the benchmark is empty.",
            fix="look at its problem file and at n in the recipe",
        )
    counts = count_outcomes(rows)
    return {
        "k": counts["right"],
        "n": len(rows),
        "truncated_wrong": counts["truncated_wrong"],
        "finished_wrong": counts["finished_wrong"],
        "no_answer": counts["no_answer"],
        "too_long": sum(row.finish_reason == "too_long" for row in rows),
        "empty": sum(map(is_empty, rows)),
        "mean_tokens": statistics.fmean(row.tokens for row in rows),
    }
