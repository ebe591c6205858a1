"""Load problem sets, and find problems that two of them share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import LabError
from helpers.records import Problem, read_records
from helpers.runs import resolve_data


def load_problems(path: str | Path, n: int | None = None) -> list[Problem]:
    """The first ``n`` problems of a JSONL file, or all of them.

    Args:
        path: absolute, or relative to ``data/`` (``MATHSLM_DATA_DIR`` is
            looked in first).
        n: how many; None for all.

    Raises:
        LabError: no such file, no problem in it, a line that lacks a field,
            an empty problem or answer, two problems with one id, or fewer
            than ``n`` problems.
    """
    path = resolve_data(path)
    problems = read_records(path, Problem)
    if not problems:
        raise LabError(
            f"{path} holds no problem.",
            fix="it must have one JSON object a line, with id, problem "
            "and answer",
        )
    for problem in problems:
        if not problem.problem.strip() or not problem.answer.strip():
            raise LabError(
                f"{path}: '{problem.id}' has an empty problem or answer.",
                why="a response to it could not be graded",
                fix="mend or delete that line",
            )
    ids = Counter(problem.id for problem in problems)
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise LabError(
            f"{path}: {len(twice)} ids occur more than once, "
            f"for example '{twice[0]}'.",
            why="results are compared problem by problem, by id",
            fix="give every problem an id of its own",
        )
    if n is not None and n > len(problems):
        raise LabError(
            f"{path} holds {len(problems)} problems, {n} were asked for.",
            fix=f"ask for at most {len(problems)}",
        )
    return problems if n is None else problems[:n]


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
