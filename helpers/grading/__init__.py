"""A response and its reference answer in, a :class:`Grade` out.

Pure: no process, no clock, no file but those that are handed in.
"""

from helpers.grading.completions import (
    GradedCompletion,
    grade_completions,
    read_graded,
)
from helpers.grading.explain import escape_text
from helpers.grading.extract import find_answer, last_box, read_answer
from helpers.grading.files import (
    Case,
    KindCount,
    count_kinds,
    count_reasons,
    read_cases,
)
from helpers.grading.grade import (
    Grade,
    compare_answers,
    explain_grade,
    extract_answer,
    grade_many,
    grade_response,
    is_equivalent,
)
from helpers.grading.numbers import parse_number
from helpers.grading.policy import GRADER_VERSION, POLICY
from helpers.grading.spelling import match_brace

__all__ = [
    "GRADER_VERSION",
    "POLICY",
    "Case",
    "Grade",
    "GradedCompletion",
    "KindCount",
    "compare_answers",
    "count_kinds",
    "count_reasons",
    "escape_text",
    "explain_grade",
    "extract_answer",
    "find_answer",
    "grade_completions",
    "grade_many",
    "grade_response",
    "is_equivalent",
    "last_box",
    "match_brace",
    "parse_number",
    "read_answer",
    "read_cases",
    "read_graded",
]
