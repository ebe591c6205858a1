"""Every step of a verdict, written down by the run that decides."""

from __future__ import annotations

import pytest

from helpers.grading import grade as grading
from helpers.grading.explain import MAX_SHOWN, describe_outcome, quote_text
from helpers.grading.trace import note, record_trace

ODD = ["", None, 5, "\\boxed{" * 400, "\\boxed{9^{9^{9^9}}}", "\ud800", "5"]


def explain(response, gold):
    """The steps as ``{what: outcome}``, and the last one apart."""
    *steps, last = grading.explain_grade(response, gold)
    return {step.what: step.outcome for step in steps}, last


def test_the_last_step_is_the_grade_for_every_case(cases, grades):
    """One function decides, with a trace and without."""
    for case in cases:
        grade = grades[case["id"]]
        _, last = explain(case["response"], case["gold"])
        said = f"{'yes' if grade.correct else 'no'}: {grade.reason}"
        assert (last.part, last.outcome) == ("verdict", said), case["id"]


def test_how_the_answer_was_found():
    found, _ = explain("It is \\boxed{2} or so.\n#### 3", "2")
    assert found["box \\boxed or \\fbox"] == "«2» (box)"
    assert "mark ####" not in found, "the box comes first"
    found, _ = explain("We add.\n#### 3", "3")
    assert found["box \\boxed or \\fbox"] == "none"
    assert found["mark ####"] == "«3»"
    found, last = explain("We add one and then 3 more apples to it.", "3")
    assert "last number" in found["answer found"]
    assert last.outcome.startswith("yes: ")


def test_cleaning_readings_and_tests_are_shown_in_their_order():
    steps = grading.explain_grade(r"\boxed{\dfrac{1}{2}}", "0.5")
    whats = [step.what for step in steps]
    order = ["answer found", "same string", "cleaned", "numbers", "correct"]
    assert [what for what in whats if what in order] == order
    found = {step.what: step.outcome for step in steps}
    assert found["numbers"] == "reference «1/2», answer «1/2»"
    found, last = explain(r"\boxed{\{1, 2\}}", "2,1")
    assert found["reference read as"].startswith("list ")
    assert found["answer read as"].startswith("set ")
    assert last.outcome == "yes: set"


@pytest.mark.parametrize("odd", ODD)
def test_odd_input_is_explained_too(odd):
    for response, gold in ((odd, "5"), ("5", odd)):
        *_, last = grading.explain_grade(response, gold)
        assert last.part == "verdict"
        for step in grading.explain_grade(response, gold):
            assert step.outcome.isprintable(), step


def test_model_output_is_shown_on_one_line_without_control_characters():
    text = "a\x1b[31mb\nc" + "d" * 500
    shown = quote_text(text)
    assert "\x1b" not in shown and "\n" not in shown
    assert "\\x1b[31mb\\nc" in shown
    assert shown.endswith(f"… {len(text) - MAX_SHOWN} more characters")


def test_words_for_outcomes():
    assert describe_outcome(True) == "yes"
    assert describe_outcome(None) == "none"
    assert describe_outcome((None, "")) == "undecided"
    assert describe_outcome((False, "different set")) == "no: different set"
    assert describe_outcome([]) == "none"


def test_a_trace_is_kept_apart_and_hands_outcomes_on():
    marker = object()
    assert note("outside", marker) is marker
    with record_trace() as outer:
        note("one", 1)
        with record_trace() as inner:
            note("two", 2)
        note("three", 3)
    note("outside", 4)
    assert outer == [("one", 1), ("three", 3)]
    assert inner == [("two", 2)]
