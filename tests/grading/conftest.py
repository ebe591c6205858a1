"""The labelled cases, graded once for all tests of the grader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.grading import Grade, grade_many

SUITE = Path(__file__).parents[1] / "grading_cases.jsonl"
CASES = [json.loads(x) for x in SUITE.read_text("utf-8").splitlines()]


@pytest.fixture(scope="session")
def cases() -> list[dict]:
    """Every labelled case, as its line in the file."""
    return CASES


@pytest.fixture(scope="session")
def grades() -> dict[str, Grade]:
    """The verdict on every labelled case, by its id."""
    found = grade_many(
        [case["response"] for case in CASES], [case["gold"] for case in CASES]
    )
    return dict(zip([case["id"] for case in CASES], found, strict=True))
