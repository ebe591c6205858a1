"""The grader: labelled cases by kind, policy, odd input, bounds."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import UserString, defaultdict
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.grading import POLICY, Grade, find_answer, parse_number
from helpers.grading import grade as grading
from helpers.grading.compare import compare_values
from helpers.grading.evaluate import count_steps
from helpers.grading.probe import equal_nodes
from helpers.grading.reader import ReadError, read
from helpers.grading.shapes import parse_value
from helpers.grading.spelling import clean

SUITE = Path(__file__).parents[1] / "grading_cases.jsonl"
CASES = [json.loads(x) for x in SUITE.read_text("utf-8").splitlines()]
KINDS = sorted({case["kind"] for case in CASES})


def equal(predicted: str, gold: str) -> bool:
    return grading.is_equivalent(predicted, gold)


@pytest.mark.parametrize("kind", KINDS)
def test_labelled_cases(kind: str, grades: dict[str, Grade]) -> None:
    wrong = [
        (c["id"], c["gold"], c["response"][:80], g.reason, c["rule"])
        for c in CASES
        if c["kind"] == kind and (g := grades[c["id"]])
        if g.correct != c["label"]
        # An exception that nobody meant refuses an answer as well.
        or g.reason.startswith("not readable (")
        # A few cases also state the reason or the answer, where several
        # rules come to the same verdict.
        or g.reason != c.get("reason", g.reason)
        or g.extracted != c.get("extracted", g.extracted)
    ]
    assert not wrong


def test_every_kind_has_right_and_wrong_answers() -> None:
    labels = defaultdict(set)
    for case in CASES:
        labels[case["kind"]].add(case["label"])
    one_sided = {k for k, v in labels.items() if len(v) == 1}
    assert one_sided == {"hedge", "injection", "malformed"}
    assert len(CASES) > 500
    assert len({case["id"] for case in CASES}) == len(CASES)


def test_every_gold_equals_itself() -> None:
    golds = sorted({case["gold"] for case in CASES})
    grades = grading.grade_many([rf"\boxed{{{g}}}" for g in golds], golds)
    assert [
        g for g, r in zip(golds, grades, strict=True) if not r.correct
    ] == []


@pytest.mark.parametrize(
    ("rule", "gold", "accepted", "refused"),
    [
        ("tolerance", r"\frac{600}{7}", "600/7", "85.71"),
        ("unreduced fractions", r"\frac12", r"\frac24", r"\frac25"),
        ("decimals", "1/2", "0.50", "0.51"),
        ("units", r"5\text{ m}", "5", r"500\text{ cm}"),
        ("percent", r"28\%", "28", "0.0028"),
        ("degrees", r"\frac{\pi}{6}", r"30^\circ", r"60^\circ"),
        ("angles", r"30^\circ", "30", r"30\text{ rad}"),
        ("order", "(1,2)", "(1, 2)", "(2,1)"),
        ("several values", "x=1,x=2", "2,1", "(1,2)"),
        ("points", "(1,2)", "P(1,2)", "P(2,1)"),
        ("connectors", "x=1 or x=2", "x=2 and x=1", "x=1 or y=2"),
        ("brackets", "[0,1)", "[0, 1)", "(0,1)"),
        ("intervals", "[0,1)", r"0 \le x < 1", r"0 \le x \le 1"),
        ("assignments", "(1,2)", "x=1, y=2", "x=2, y=1"),
        ("definitions", "y=2x+1", "2x+1", "2x-1"),
        ("equations", "x+y=1", "2x+2y=2", "x+y=2"),
        ("unsolved", "x=2", "2", "3x=6"),
        ("open references", "x^2=4", "2x^2=8", "x=2"),
        ("bounded work", r"\sum_{k=1}^{9} k", "45", r"\sum_{k=1}^{9999} k"),
        ("congruences", r"x \equiv 2 \pmod 5", r"x ≡ 7 (mod 5)", "x=2"),
        ("ratios", "1:2:3", "2:4:6", "3:2:1"),
        ("times and dates", "2:30 PM", "14:30", "2:30 AM"),
        ("counted things", "7 boys", "7 small boys", "7 girls"),
        ("bare braces", "{1,2}", "{2,1,2}", "(1,2)"),
        ("domains", "sqrt(x^2)", "|x|", "x"),
        ("constant of integration", "x^2+C", "x^2+c", "x^2"),
        ("log", r"\log 100", "2", "3"),
        ("bases", "52_8", "52_{8}", "52"),
        ("thousands", "1234", "1,234", "12,34"),
        ("several answers", "5", "x=5", r"5 \text{ or } 7"),
        ("several answers", "5", "x=5", "If x=5"),
        ("approximation", r"\sqrt2", r"\sqrt2 \approx 1.41", "1.41"),
        ("prose", r"\text{Monday}", "monday.", r"\text{Sunday}"),
    ],
)
def test_policy(rule: str, gold: str, accepted: str, refused: str) -> None:
    assert rule in POLICY
    assert equal(accepted, gold)
    assert not equal(refused, gold)


def test_policy_of_extraction() -> None:
    grade = grading.grade_response
    assert not grade(r"\boxed{42} so it is \boxed{", "42").correct
    assert not grade(r"<think>\boxed{42}", "42").correct
    last = grade("She walks there and back and pays 42.", "42")
    assert last.correct
    assert "no marked answer" in last.reason
    later = grade("\\boxed{41}\nFinal Answer: 42", "42")
    assert later.correct
    for doubtful in ("Let me try x = 42.", "It is 41 or 42.", "It isn't 42."):
        assert not grade(doubtful, "42").correct
    assert grade("The answer is $42$ but not 43", "42").correct
    for hedge in ("The answer is $42$ or 43.", "If the answer is 42. So?"):
        assert not grade(hedge, "42").correct
    assert grade("Die Antwort ist 2,5.", "2.5").correct
    assert not grade("The answer is 2,5.", "2.5").correct
    untested = set(POLICY) - {
        "unfinished", "last resort", "later final answer", "doubt",
        "decimal comma", "hedges",
    }  # fmt: skip
    parametrized = {
        mark[0]
        for mark in test_policy.pytestmark[0].args[1]  # type: ignore[attr-defined]
    }
    assert untested == parametrized


@pytest.mark.parametrize(
    ("response", "gold", "reason"),
    [
        (r"\boxed{42}", "42", "exact string"),
        (
            r"\boxed{" + r"\mathbf{" * 600 + "5" + "}" * 601,
            "5",
            "exact string",
        ),
        (r"\boxed{" + r"\text{" * 600 + "5" + "}" * 601, "5", "exact string"),
        (r"\boxed{0.5}", "1/2", "number"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", "same value"),
        (r"\boxed{2,1}", r"\{1,2\}", "set"),
        (r"\boxed{5\text{ m}}", r"5\text{ cm}", "a different unit"),
        (r"\boxed{matrix([1]=[2])}", "matrix([1,2])", "an equation and"),
        (r"\boxed{matrix([1,2])}", "matrix([1]=[2])", "an equation and"),
        (r"\boxed{}", "42", "no answer found: the last box is empty"),
        ("", "42", "no answer found"),
        (r"\boxed{9^{9^{9^9}}}", "5", "too large: huge power"),
        (r"\boxed{\sum_{k=1}^{3} k}", "6", "same value"),
    ],
)
def test_reason_is_in_words(response: str, gold: str, reason: str) -> None:
    assert grading.grade_response(response, gold).reason.startswith(reason)


@pytest.mark.parametrize(
    "odd",
    [
        "", " ", None, 5, b"5", UserString("5"), [], "x" * 2_000_000,
        "{" * 10_000,
        "{" * 10_000 + "}" * 10_000, r"\boxed{" * 10_000, "\n" * 100_000,
        "<answer>" * 20_000, r"\boxed{9^{9^{9^9}}}", "\x00", "\ud800",
        "__import__('os').system('echo 5')", r"\frac" * 1_000, "(" * 5_000,
        "1/" * 4_000, "$" * 50_000, "[0,1)" * 1_000, "x^" * 3_000,
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_odd_input_is_graded_not_raised(odd: object) -> None:
    grades = grading.grade_many([odd, "5", odd], ["5", odd, odd])
    assert len(grades) == 3
    assert not grades[0].correct
    assert not grades[1].correct
    # The same text is right, except when there is none.
    assert grades[2].correct == (isinstance(odd, str) and bool(odd.strip()))
    boxed = grading.grade_response(rf"\boxed{{{odd}}}", "x^2+1")
    assert not boxed.correct
    if not isinstance(odd, str):
        for pair in ((odd, "5"), ("5", odd), (odd, odd)):
            assert not grading.is_equivalent(*pair)  # type: ignore[arg-type]


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 responses but 1 golds"):
        grading.grade_many(["1", "2"], ["1"])


@given(st.text(max_size=80), st.text(max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_text_gets_a_grade(response: str, gold: str) -> None:
    grade = grading.grade_response(response, gold)
    assert isinstance(grade.correct, bool)
    assert grade.reason


@given(st.fractions(max_denominator=500), st.fractions(max_denominator=500))
@settings(max_examples=150, deadline=None)
def test_rationals_compare_as_fractions(a: Fraction, b: Fraction) -> None:
    latex = rf"\frac{{{a.numerator}}}{{{a.denominator}}}"
    assert parse_number(latex) == a
    assert equal(latex, f"{b.numerator}/{b.denominator}") == (a == b)


@given(st.integers(-(10**30), 10**30), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_integers_compare_exactly(n: int, shift: int) -> None:
    assert equal(f"{n:,}", str(n))
    assert equal(f"{n}+{shift}", str(n)) == (shift == 0)


def test_probing_agrees_with_sympy() -> None:
    sympy = pytest.importorskip("sympy")
    pairs = [
        ("(x+1)**3", "x**3+3*x**2+3*x+1"), ("sin(2*x)", "2*sin(x)*cos(x)"),
        ("sin(2*x)", "2*sin(x)"), ("1/(x*y)", "x**(-1)*y**(-1)"),
        ("exp(x+y)", "exp(x)*exp(y)"), ("(x**2-1)/(x-1)", "x+1"),
        ("(x+y)**2", "x**2+y**2"), ("sqrt(8)", "2*sqrt(2)"),
        ("cos(x)**2+sin(x)**2", "1"), ("2**(x+1)", "2**x+1"),
    ]  # fmt: skip
    for left, right in pairs:
        # The strings are ours, so sympify is safe here.
        difference = sympy.simplify(sympy.sympify(f"({left})-({right})"))
        nodes = (read(clean(text)) for text in (left, right))
        assert equal_nodes(*nodes) == (difference == 0), (left, right)


@pytest.mark.parametrize(
    "text", ["", "1+", r"\frac{1}", "2^", r"\sqrt{}", "__import__", "a;b",
             r"\foo{1}", "(1", "1)", "1 2", "x" * 40],
)  # fmt: skip
def test_reader_refuses_what_is_not_on_its_list(text: str) -> None:
    with pytest.raises(ReadError):
        read(text)


SIXTY = [rf"\sin({n})+\sqrt{{{n + 2}}}" for n in range(60)]
BOUNDS = [
    ("9^{9^{9}}", "huge power"),
    ("9^9^9", "huge power"),
    ("99999999!", "factorial"),
    ("((9!)!)!", "a value of too many digits"),
    ("2^{1000000000000000}", "huge exponent"),
    ("e^{10^{9}}", "huge power"),
    (r"\exp(10^{9})", "huge exponential"),
    (r"\cos(10^{100000})", "huge argument"),
    (r"\binom{10^{9}}{3}", "binomial"),
    (r"\sum_{k=1}^{10^9} k", "more than 2,000 terms"),
    (r"\prod_{k=1}^{2001} k", "more than 2,000 terms"),
    (r"\sum_{k=1}^{2000} \sum_{j=1}^{2000} kj", "more than 20,000 steps"),
    (r"\int_0^1 x^{51} dx", "a degree above 50"),
    (
        r"\begin{vmatrix}"
        + r"\\".join(["1&2&3&4&5&6"] * 6)
        + r"\end{vmatrix}",
        "a determinant of more than 5 rows",
    ),
    (",".join(SIXTY), "more than 100,000 steps"),
]


@pytest.mark.parametrize(("answer", "bound"), BOUNDS)
def test_a_bound_is_a_reason(answer: str, bound: str) -> None:
    gold = ",".join([*SIXTY[:-1], "9"]) if answer == ",".join(SIXTY) else "5"
    grade = grading.grade_response(rf"\boxed{{{answer}}}", gold)
    assert not grade.correct
    assert grade.reason.startswith("too large: ") and bound in grade.reason


def test_the_same_text_always_costs_the_same() -> None:
    """What is counted is in the text, so a verdict depends on nothing else."""
    counts = set()
    for _ in range(3):
        with count_steps() as work:
            compare_values(
                parse_value(r"\sin x+\sqrt{x},2"),
                parse_value(r"\sqrt{x}+\sin x,2"),
            )
        counts.add(work.steps)
    assert len(counts) == 1 and counts.pop() > 100


def test_long_and_empty_answers_are_not_taken_for_equal() -> None:
    long = "x" * 30_000
    assert equal(long, long)
    assert not equal(long[:20_000], long)
    assert not equal(long, long[:20_000])
    nines = grading.grade_response("9" * 4_500, "8" * 4_500)
    assert nines.reason == "not readable as mathematics"
    assert not equal("", "")
    assert not equal(" ", "")
    assert not grading.is_equivalent(5, "5")  # type: ignore[arg-type]
    assert not grading.is_equivalent("5", 5)  # type: ignore[arg-type]
    assert not grading.grade_response("", "").correct


def test_extraction_says_how() -> None:
    assert find_answer(r"so \boxed{7}").how == "box"
    assert find_answer("#### 7").how == "####"
    assert find_answer("The answer is 7.").how == "answer phrase"
    assert find_answer("7").how == "whole response"
    assert grading.extract_answer(r"\boxed{a} and \boxed{b}") == "a, b"
    assert grading.extract_answer("no idea" * 50) is None
    rough = "The probability is 5Y6 or about 0.833."
    assert grading.extract_answer(rough) is None  # "either … or" is no answer
    assert grading.extract_answer(5) is None  # type: ignore[arg-type]


# ---- nothing but the texts decides ---------------------------------------


def test_import_loads_nothing_heavy() -> None:
    program = (
        "import sys; from helpers.grading import grade_response; "
        "grade_response('\\\\boxed{1/2}', '0.5'); "
        "print([m for m in ('torch','sympy','math_verify','mpmath')"
        " if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert out.stdout.strip() == "[]"


def test_no_process_and_no_clock(
    monkeypatch: pytest.MonkeyPatch, grades: dict[str, Grade]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the grader asked for more than the texts")

    with monkeypatch.context() as patch:
        for name in (
            "time", "monotonic", "perf_counter", "process_time",
            "thread_time", "time_ns", "monotonic_ns", "perf_counter_ns",
            "sleep",
        ):  # fmt: skip
            patch.setattr(time, name, refuse)
        patch.setattr(subprocess, "Popen", refuse)
        patch.setattr(os, "fork", refuse, raising=False)
        patch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
        patch.setattr(threading.Thread, "start", refuse)
        part = CASES[::20]
        again = grading.grade_many(
            [c["response"] for c in part], [c["gold"] for c in part]
        )
    assert again == [grades[c["id"]] for c in part]


def test_processes_change_no_verdict(grades: dict[str, Grade]) -> None:
    part = CASES[::10]
    odd: list = [None, b"5", 5, lambda: 5, "\ud800", r"\boxed{9^{9^{9^9}}}"]
    responses = [*odd, *(c["response"] for c in part)]
    golds = [*["5"] * len(odd), *(c["gold"] for c in part)]
    spread = grading.grade_many(responses, golds, workers=2)
    assert spread[len(odd) :] == [grades[c["id"]] for c in part]
    assert spread == grading.grade_many(responses, golds)


def test_a_killed_process_changes_no_verdict(
    monkeypatch: pytest.MonkeyPatch, grades: dict[str, Grade]
) -> None:
    class Killed:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> Killed:
            return self

        def __exit__(self, *_: object) -> None: ...

        def map(self, *_: object, **__: object) -> None:
            raise BrokenProcessPool("killed")

    monkeypatch.setattr(grading, "ProcessPoolExecutor", Killed)
    part = CASES[:200]
    found = grading.grade_many(
        [c["response"] for c in part], [c["gold"] for c in part], workers=2
    )
    assert found == [grades[c["id"]] for c in part]


def test_model_output_is_never_run(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    attack = f"__import__('pathlib').Path('{target}').touch()"
    for text in (attack, f"[{attack}]", f"x={attack}", rf"\pi*{attack}",
                 rf"\text{{{attack}}}", f"sqrt({attack})"):  # fmt: skip
        for gold in ("0", "1", r"\sum_{k=1}^n k", "x"):
            assert not grading.grade_response(
                rf"\boxed{{{text}}}", gold
            ).correct
            assert not grading.is_equivalent(text, gold)
    assert not target.exists()
