"""grading"""

from helpers.grading.completions import (
    GradedCompletion,
    grade_completions,
    read_graded,
)
from helpers.grading.core import judge
from helpers.grading.exact import parse_number
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
    GRADER_VERSION,
    POLICY,
    Grade,
    explain_grade,
    extract_answer,
    grade_many,
    grade_response,
    is_equivalent,
    shut_down,
)
from helpers.grading.normalize import match_brace
from helpers.grading.pool import DIED, OVERDUE, get_pool
from helpers.grading.server import serve
from helpers.grading.worker import START_SECONDS

__all__ = [
    "DIED",
    "GRADER_VERSION",
    "OVERDUE",
    "POLICY",
    "START_SECONDS",
    "Case",
    "Grade",
    "GradedCompletion",
    "KindCount",
    "count_kinds",
    "count_reasons",
    "escape_text",
    "explain_grade",
    "extract_answer",
    "find_answer",
    "get_pool",
    "grade_completions",
    "grade_many",
    "grade_response",
    "is_equivalent",
    "judge",
    "last_box",
    "match_brace",
    "parse_number",
    "read_answer",
    "read_cases",
    "read_graded",
    "serve",
    "shut_down",
]
