"""The key of a problem's text: layout is dropped, meaning is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.problems import load_source
from helpers.problems.contamination import text_digest, text_key

DIFFERENT = [
    ("1.5 + 2", "15 + 2"),
    (".5 + 2", "5 + 2"),
    ("(3, .5)", "(3.5)"),
    ("1.5", "1, 5"),
    ("x ≤ 3", "x ≥ 3"),
    ("x < 3", "x ≤ 3"),
    ("x ≠ 3", "x = 3"),
    ("x != 3", "x = 3"),
    ("5! + 1", "5 + 1"),
    ("5 ! + 1", "5 + 1"),
    ("Compute $n!$.", "Compute $n$."),
    ("(n - 1)! + 1", "(n - 1) + 1"),
    ("5!! + 1", "5! + 1"),
    ("20% of 5", "20 of 5"),
    ("|x| + 1", "x + 1"),
    ("LCM of these numbers: 48, 4", "LCM of these numbers: 4, 84"),
    ("Add 1 and 23: 1 23", "Add 1 and 23: 12 3"),
    (r"\frac{1}{23}", r"\frac{12}{3}"),
    ("x^{2}3", "x^{23}"),
    ("10² + 1", "102 + 1"),
    ("10₂", "102"),
    ("3½ cups", "31/2 cups"),
    ("5 × 3", "5 ÷ 3"),
    ("5 − 3", "5 × 3"),
    ("2 - 3", "2 + 3"),
]
SAME = [
    ("What is 2 + 3?", "  what IS\n2+3 "),
    ("How many apples!", "How many  apples?"),
    ("Wow!! He has 5. How many?", "wow, he has 5; how many"),
    ("$2+3$ = ?", "2 + 3 = ?"),
    ("Find $x$ with $x<3$.", "Find x with x < 3"),
    ("It costs $1,000.", "It costs 1000"),
    ("It costs 10{,}000", r"It costs 10,\!000"),
    ("50 %", r"50\%"),
    ("10^{2}", "10^2"),
    ("10²", "$10^2$"),
    (r"\frac12", r"\frac{1}{2}"),
    ("x ≤ 3", "x <= 3"),
    ("5 − 3", "5 - 3"),
    ("5 × 3", "5 * 3"),
    ("1, 2, ..., 5", "1,2,…,5"),
    ("x₁ + 1", "x_1 + 1"),
    ("“That’s it!”", '"That’s it."'),
    ("That's!", "That's"),
    ("Is it 3.5? (in cm)", "is it 3.5, in cm"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_problems_have_other_keys(one, other):
    assert text_key(one) != text_key(other)
    assert text_digest(one) != text_digest(other)


@pytest.mark.parametrize(("one", "other"), SAME)
def test_layout_does_not_change_the_key(one, other):
    assert text_key(one) == text_key(other)


numbers = st.lists(
    st.decimals(0, 9999, places=1).map(lambda d: f"{d.normalize():f}"),
    min_size=1,
    max_size=4,
)


@given(numbers, numbers)
def test_lists_of_numbers_are_told_apart(one, other):
    keys = [text_key("Add: " + ", ".join(part)) for part in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


@given(st.text(max_size=40))
def test_space_around_a_text_is_no_part_of_its_key(text):
    """Whatever the text is; the digest takes any."""
    assert text_key(text) == text_key(f" \n{text}\t ")
    assert len(text_digest(text)) == 16


def test_no_good_problem_of_a_family_is_lost():
    pytest.importorskip("reasoning_gym")
    _, report = load_source("reasoning-gym:lcm", 300, seed=0)
    reasons = report.dropped["duplicates"]
    assert not any("another answer" in reason for reason in reasons)
