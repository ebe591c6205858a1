"""Any cap from one evaluation: the cut response is the one sampled so."""

from __future__ import annotations

import math

import pytest
from conftest import make_tokenizer

from helpers.base import LabError, write_records
from helpers.grading import GradedCompletion, grade_response
from helpers.results import caps
from helpers.results.scores import OUTCOMES

pytest.importorskip("transformers")


def make_row(problem, response, gold, tokens=None, finish="stop"):
    """A graded row; the tiny tokenizer has one token a byte."""
    grade = grade_response(response, gold)
    whole = len(response.encode()) + (finish == "stop")
    return GradedCompletion(
        problem_id=problem,
        sample=0,
        prompt="p",
        response=response,
        extracted=grade.extracted,
        correct=grade.correct,
        reason=grade.reason,
        finish_reason=finish,
        tokens=whole if tokens is None else tokens,
        mean_logprob=-0.5,
        seed=0,
        gold=gold,
    )


@pytest.fixture(scope="module")
def byte_tokenizer():
    return make_tokenizer()


ROWS = [
    make_row("a", "it is 2. So \\boxed{2}", "2"),
    make_row("b", "it is 7. No, \\boxed{9}", "7"),
    make_row("c", "3", "3"),
    make_row("d", "\\boxed{}", "4"),
]


def test_what_fits_the_cap_stays_as_it_is(byte_tokenizer):
    longest = max(row.tokens for row in ROWS)
    cut, inexact = caps.cut_rows(ROWS, longest, byte_tokenizer)
    assert all(new is old for new, old in zip(cut, ROWS, strict=True))
    assert inexact == 0


def test_a_cut_response_is_graded_again(byte_tokenizer):
    cut, inexact = caps.cut_rows(ROWS, 9, byte_tokenizer)
    texts = ["it is 2. ", "it is 7. ", "3", "\\boxed{}"]
    assert [row.response for row in cut] == texts
    assert [row.correct for row in cut] == [True, True, True, False]
    assert [row.finish_reason for row in cut] == ["length"] * 2 + ["stop"] * 2
    assert [row.tokens for row in cut] == [9, 9, 2, 9] and inexact == 0
    assert math.isnan(cut[0].mean_logprob) and cut[2].mean_logprob == -0.5
    assert ROWS[0].response.endswith("{2}")


def test_the_end_token_counts(byte_tokenizer):
    """A response that lacks only its end token is cut, its text whole."""
    row = make_row("a", "\\boxed{2}", "2")
    (cut,), _ = caps.cut_rows([row], row.tokens - 1, byte_tokenizer)
    assert (cut.response, cut.correct) == (row.response, True)
    assert cut.finish_reason == "length"


def test_point_adds_up_and_kinds_change_with_the_cap(byte_tokenizer):
    small = caps.measure_cap(ROWS, 9, byte_tokenizer)
    whole = caps.measure_cap(ROWS, 60, byte_tokenizer)
    for point in (small, whole):
        assert sum(getattr(point, key) for key in OUTCOMES) == point.n == 4
    assert (small.right, small.truncated_wrong) == (3, 0)
    assert (whole.right, whole.finished_wrong, whole.no_answer) == (2, 1, 1)
    tiny = caps.measure_cap(ROWS, 1, byte_tokenizer)
    assert tiny.truncated_wrong == 3 and tiny.right == 1
    assert small.mean_tokens == pytest.approx((9 + 9 + 2 + 9) / 4)
    assert str(whole.score).startswith("2/4 (50.0 %")


def test_several_samples_of_a_problem_are_refused(byte_tokenizer):
    again = ROWS[0].model_copy(update={"sample": 1})
    with pytest.raises(LabError, match="several responses of one problem"):
        caps.measure_cap([*ROWS, again], 8, byte_tokenizer)


def test_other_tokens_than_sampled_are_counted(byte_tokenizer):
    """Sampled in six tokens, tokenized again in three: the cut is a guess."""
    row = make_row("a", "abc", "2", tokens=6)
    (cut,), inexact = caps.cut_rows([row], 5, byte_tokenizer)
    assert (cut.response, inexact) == ("abc", 1)


@pytest.mark.parametrize("cap", [0, -3, 2.5, math.nan])
def test_what_is_no_cap_is_refused(byte_tokenizer, cap):
    with pytest.raises((LabError, ValueError)):
        caps.cut_rows(ROWS, cap, byte_tokenizer)


def test_a_larger_cap_than_sampled_with_is_refused(byte_tokenizer):
    rows = [*ROWS, make_row("e", "and so on", "5", finish="length")]
    with pytest.raises(LabError, match="cut at 9 tokens when they were"):
        caps.cut_rows(rows, 10, byte_tokenizer)
    with pytest.raises(LabError, match="benchmark is empty"):
        caps.cut_rows([], 10, byte_tokenizer)


def test_caps_end_at_the_one_sampled_with():
    assert caps.choose_caps(192) == [24, 48, 72, 96, 120, 144, 168, 192]
    assert caps.choose_caps(3) == [1, 2, 3]


def test_the_curve_is_kept_until_something_changes(
    run, tiny_recipe, problems, byte_tokenizer
):
    rows = [make_row(p.id, p.answer + " ok", p.answer) for p in problems[:8]]
    path = run.file("eval", "base", "bench.jsonl")
    write_records(path, rows)
    asked = []

    def load():
        asked.append(1)
        return byte_tokenizer

    first = caps.measure_caps(run, "base", "bench", load, [2, 12])
    assert caps.measure_caps(run, "base", "bench", load, [2, 12]) == first
    assert len(asked) == 1
    assert [point.right for point in first][1] == 8
    write_records(path, [*rows[1:], make_row(rows[0].problem_id, "0", "1")])
    again = caps.measure_caps(run, "base", "bench", load, [2, 12])
    assert len(asked) == 2 and again[1].right == 7


def test_a_drop_is_settled_by_the_cut_ones():
    before = [make_row(f"p{i}", "\\boxed{1}", "1") for i in range(10)]
    cut = [
        make_row(f"p{i}", "hm", "1", finish="length", tokens=9)
        if i < 4
        else before[i]
        for i in range(10)
    ]
    split = caps.split_change(before, cut)
    assert (split.lost_cut, split.change.only_before) == (4, 4)
    assert split.at_most.diff == 0
    text = split.sentence("base", "sft", "GSM8K")
    assert "of 4 lost problems 4 were cut" in text
    assert "p = 0.12, undecided at n = 10" in text
    assert "a larger cap would tell" in text
    wrong = [make_row(f"p{i}", "\\boxed{3}", "1") for i in range(10)]
    text = caps.split_change(before, wrong).sentence("base", "sft")
    assert "of 10 lost problems 0 were cut" in text
    assert "cutting alone cannot explain the drop" in text
    assert "undecided" not in text
    text = caps.split_change(before, before).sentence("base", "sft")
    assert "no drop to explain" in text
    with pytest.raises(LabError, match="not about the same problems"):
        caps.split_change(before, before[1:])


def lose(n, wrong, cut):
    """Of ``n`` right ones some become wrong, and some are cut."""
    before = [make_row(f"p{i}", "\\boxed{1}", "1") for i in range(n)]
    after = list(before)
    for i in range(wrong):
        after[i] = make_row(f"p{i}", "\\boxed{3}", "1")
    for i in range(wrong, wrong + cut):
        after[i] = make_row(f"p{i}", "hm", "1", finish="length", tokens=9)
    return caps.split_change(before, after).sentence("base", "sft")


def test_an_undecided_drop_is_only_explained_with_an_if():
    one = lose(100, wrong=1, cut=0)
    assert "p = 1, undecided at n = 100" in one
    assert ": if it is a drop, cutting alone cannot explain the drop" in one
    two = lose(100, wrong=1, cut=1)
    assert ": if it is a drop, cutting may explain the drop" in two
    four = lose(10, wrong=0, cut=4)
    assert ": if it is a drop, cutting may explain the drop" in four


def test_what_cutting_leaves_may_be_noise_too():
    text = lose(40, wrong=1, cut=9)
    assert "undecided" not in text  # ten of forty were lost
    assert ": cutting may explain the drop, and a larger cap" in text
    assert "cutting alone cannot explain" in lose(40, wrong=9, cut=1)


@pytest.mark.slow
def test_a_cut_is_what_the_model_writes_under_that_cap(tmp_path, pocket_model):
    """Cut from 96 tokens to 40, and sampled with 40: the same, each one."""
    from helpers.base import RunDir, load_recipe
    from helpers.models import load_tokenizer
    from helpers.results import load_results
    from helpers.stages import run_evaluate

    found = {}
    for cap in (40, 96):
        recipe = load_recipe("pocket", [f"evaluate.max_new_tokens={cap}"])
        run = RunDir.open(tmp_path / str(cap), recipe)
        run_evaluate(recipe, run, ("base",), benchmarks=["hard"])
        found[cap] = load_results(run, "base", "hard")
    assert any(row.tokens > 40 for row in found[96])
    byte_tokenizer = load_tokenizer(pocket_model)
    cut, inexact = caps.cut_rows(found[96], 40, byte_tokenizer)
    assert inexact == 0
    keys = ("problem_id", "response", "extracted", "correct", "finish_reason")
    for one, other in zip(cut, found[40], strict=True):
        for key in (*keys, "tokens"):
            assert getattr(one, key) == getattr(other, key)
