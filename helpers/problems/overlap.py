"""Runs of words that two problem sets share, compared as they stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from helpers.base import Problem


@dataclass(frozen=True)
class Overlap:
    """Two problems that share a run of words, and the first such run."""

    problem_id: str
    reference_id: str
    words: str


def ngram_overlap(
    problems: Sequence[Problem], reference: Sequence[Problem], n: int = 8
) -> list[Overlap]:
    """Problems that share at least ``n`` words in a row with a reference.

    The usual decontamination test (8 words in open-r1's
    ``scripts/decontaminate.py``): lower case, split at white space. A text
    shorter than ``n`` words counts as one run. At most one Overlap a problem.
    Problems made from templates share long runs by design; raise ``n`` there.
    :func:`helpers.problems.decontaminate` finds more and scales further.
    """
    seen: dict[tuple[str, ...], str] = {}
    for item in reference:
        for run in _word_ngrams(item.problem, n):
            seen.setdefault(run, item.id)
    found = []
    for item in problems:
        for run in _word_ngrams(item.problem, n):
            if run in seen:
                found.append(Overlap(item.id, seen[run], " ".join(run)))
                break
    return found


def _word_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    words = re.split(r"\s+", text.lower().strip())
    if len(words) <= n:
        return [tuple(words)]
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
