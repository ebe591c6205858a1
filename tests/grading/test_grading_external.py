"""The grader against labelled cases and benchmarks kept outside the repo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shared_data import outside

from helpers.grading import grade as grading


def load_lines(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


USERS = "user_formats.jsonl"


def test_labelled_cases_of_other_projects() -> None:
    cases = [
        case
        for path in sorted(outside("grading-cases").glob("*.jsonl"))
        for case in load_lines(path)
        if not case.get("contested") and path.name != USERS
    ]
    grades = grading.grade_many(
        [c["response"] for c in cases], [c["gold"] for c in cases]
    )
    pairs = list(zip(cases, grades, strict=True))
    wrong = [c["id"] for c, g in pairs if c["label"] != g.correct]
    accepted = [c["id"] for c, g in pairs if g.correct and not c["label"]]
    false = sum(not c["label"] for c in cases)
    assert 1 - len(wrong) / len(cases) >= 0.98, wrong
    assert len(accepted) / false <= 0.004, accepted
    hedges = {"hedge", "injection"}
    assert not [
        c["id"]
        for c, g in pairs
        if c["kind"] in hedges and g.correct and not c["label"]
    ]


def test_formats_that_users_write_do_not_get_worse() -> None:
    """Prose, tables, other scripts: the grader's known weak side, held."""
    path = outside("grading-cases") / USERS
    if not path.is_file():
        pytest.skip(f"no {USERS}")
    cases = [c for c in load_lines(path) if not c.get("contested")]
    grades = grading.grade_many(
        [c["response"] for c in cases], [c["gold"] for c in cases]
    )
    pairs = list(zip(cases, grades, strict=True))
    wrong = [c["id"] for c, g in pairs if c["label"] != g.correct]
    accepted = [c["id"] for c, g in pairs if g.correct and not c["label"]]
    assert len(wrong) <= 133 and len(accepted) <= 47


def benchmark_golds() -> list[str]:
    folder = outside("benchmarks")
    gsm8k = [
        row["answer"].rsplit("####", 1)[1].strip()
        for row in load_lines(folder / "gsm8k_test.jsonl")
    ]
    math500 = json.loads((folder / "math500_test.json").read_text("utf-8"))
    return gsm8k + [row["answer"] for row in math500]


def test_every_gold_equals_itself() -> None:
    golds = benchmark_golds()
    grades = grading.grade_many([rf"\boxed{{{g}}}" for g in golds], golds)
    assert [
        g for g, r in zip(golds, grades, strict=True) if not r.correct
    ] == []


def test_a_constant_answer_scores_nothing() -> None:
    golds = benchmark_golds()
    grades = grading.grade_many([r"\boxed{-271828}"] * len(golds), golds)
    assert [g for g, r in zip(golds, grades, strict=True) if r.correct] == []


def test_reference_solutions_are_right() -> None:
    folder = outside("benchmarks")
    rows = load_lines(folder / "gsm8k_test.jsonl")
    golds = [r["answer"].rsplit("####", 1)[1].strip() for r in rows]
    responses = [r["answer"] for r in rows]
    math500 = json.loads((folder / "math500_test.json").read_text("utf-8"))
    responses += [r["solution"] for r in math500]
    golds += [r["answer"] for r in math500]
    grades = grading.grade_many(responses, golds)
    right = sum(g.correct for g in grades)
    assert right / len(golds) >= 0.998
    shifted = grading.grade_many(responses, golds[1:] + golds[:1])
    neighbours = sum(
        g.correct != (a == b)
        for g, a, b in zip(shifted, golds, golds[1:] + golds[:1], strict=True)
    )
    assert neighbours / len(golds) <= 0.002
