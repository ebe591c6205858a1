"""Problem files of this kit's own form: one Problem a line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from helpers.base import LabError, Problem, read_records, resolve_data


def load_file(path: str | Path, n: int | None = None) -> list[Problem]:
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
