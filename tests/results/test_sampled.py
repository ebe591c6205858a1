"""Several samples a problem: counted right, and refused when they are not."""

from __future__ import annotations

import itertools
import math

import pytest

from helpers.base import Completion, LabError
from helpers.results import sampled, stats


def make_row(problem, sample, answer, right, logprob=-0.5, tokens=4):
    """A graded sample; ``answer`` None is no answer."""
    return Completion(
        problem_id=problem,
        sample=sample,
        prompt="p",
        response=str(answer),
        extracted=answer,
        correct=right,
        finish_reason="stop",
        tokens=tokens,
        mean_logprob=logprob,
        seed=sample,
    )


def make_groups(marks):
    """``{"a": "RWR"}`` as samples; R is right with 1, W wrong with 2."""
    return {
        name: [
            make_row(name, i, "1" if mark == "R" else "2", mark == "R")
            for i, mark in enumerate(text)
        ]
        for name, text in marks.items()
    }


GROUPS = make_groups({"a": "RRWW", "b": "WWWR", "c": "WWWW", "d": "RRRR"})


def test_average_is_the_share_of_right_samples():
    found = sampled.average_at_k(GROUPS, 4)
    assert found.value == pytest.approx(7 / 16)
    assert found.low < found.value < found.high
    assert sampled.average_at_k(GROUPS, 2).value == pytest.approx(4 / 8)


def test_pass_at_k_is_the_mean_over_all_choices_of_k():
    for k in (1, 2, 3, 4):
        shares = []
        for rows in GROUPS.values():
            marks = [row.correct for row in rows]
            chosen = list(itertools.combinations(marks, k))
            shares.append(sum(map(any, chosen)) / len(chosen))
        found = sampled.pass_at_k(GROUPS, k).value
        assert found == pytest.approx(sum(shares) / 4)
    curve = sampled.pass_curve(GROUPS)
    values = [found.value for found in curve.values()]
    assert list(curve) == [1, 2, 3, 4] and values == sorted(values)
    assert values[0] == pytest.approx(sampled.average_at_k(GROUPS, 4).value)
    assert values[-1] == pytest.approx(3 / 4)


def test_the_interval_is_over_problems_not_over_samples():
    """Copies of each sample add no knowledge, so no precision either."""
    few = make_groups({f"p{i}": "R" if i % 2 else "W" for i in range(60)})
    many = make_groups(
        {
            k: rows[0].correct * "RRRRRRRR" or "WWWWWWWW"
            for k, rows in few.items()
        }
    )
    one, eight = sampled.average_at_k(few, 1), sampled.average_at_k(many, 8)
    assert (one.low, one.high) == (eight.low, eight.high)
    wilson = stats.proportion(30, 60)
    assert one.low == pytest.approx(wilson.low, abs=0.02)


def test_vote_counts_equivalent_answers_as_one():
    rows = [
        make_row("a", 0, "3", False),
        make_row("a", 1, "1/2", True),
        make_row("a", 2, "0.5", True),
        make_row("a", 3, r"\frac{1}{2}", True),
        make_row("a", 4, "3", False),
        make_row("a", 5, None, False),
    ]
    found = sampled.vote(rows)
    assert (found.answer, found.votes, found.of) == ("1/2", 3, 6)
    assert found.correct
    tie = sampled.vote([*rows[:3], rows[4]])
    assert (tie.answer, tie.votes, tie.correct) == ("3", 2, False)


def test_samples_without_answers_have_no_vote():
    rows = [make_row("a", i, None, False) for i in range(3)]
    assert sampled.vote(rows) == sampled.Vote(None, 0, 3, False)
    found = sampled.vote([*rows, make_row("a", 3, "7", True)])
    assert (found.answer, found.correct) == ("7", True)
    with pytest.raises(LabError, match="no sample to vote"):
        sampled.vote([])


def test_majority_can_beat_and_lose_against_one_sample():
    groups = make_groups({"a": "WRR", "b": "RWW"})
    assert sampled.majority_at_k(groups, 3) == {"a": True, "b": False}
    assert sampled.majority_at_k(groups, 1) == {"a": False, "b": True}


def test_best_of_n_takes_the_most_confident_that_was_drawn():
    rows = [
        make_row("a", 0, None, False, logprob=0.0, tokens=0),
        make_row("a", 1, "2", False, logprob=-0.9),
        make_row("a", 2, "1", True, logprob=-0.1),
    ]
    groups = {"a": rows, "b": make_groups({"b": "WRR"})["b"]}
    assert sampled.best_of_n(groups, 3) == {"a": True, "b": False}
    assert sampled.best_of_n(groups, 2) == {"a": False, "b": False}
    groups["a"][1] = make_row("a", 1, "2", False, logprob=math.nan)
    with pytest.raises(LabError, match="Sample 1 of a has the mean log-prob"):
        sampled.best_of_n(groups, 3)
    found = sampled.summarize_samples(groups, 3)
    assert found["best_of"] is None and found["majority"] == 1


def test_summary_adds_up():
    found = sampled.summarize_samples(GROUPS, 4)
    kinds = ("right", "finished_wrong", "truncated_wrong", "no_answer")
    assert sum(found[kind] for kind in kinds) == 16
    assert found["right"] == 7 and found["problems"] == 4
    assert found["avg"][0] == pytest.approx(7 / 16)
    assert found["pass"]["4"][0] == pytest.approx(3 / 4)
    assert found["pass"]["1"][0] == pytest.approx(found["avg"][0])
    assert found["majority"] == 2  # a tie in the first falls to its first
    assert sampled.summarize_samples(GROUPS, 2)["samples"] == 2


@pytest.mark.parametrize(
    "call",
    [
        sampled.average_at_k,
        sampled.pass_at_k,
        sampled.majority_at_k,
        sampled.best_of_n,
        sampled.summarize_samples,
    ],
)
def test_what_is_not_there_is_refused(call):
    with pytest.raises(LabError, match="only 4 samples of each problem"):
        call(GROUPS, 5)
    with pytest.raises(LabError, match="benchmark is empty"):
        call({}, 1)
    with pytest.raises(LabError, match="Problem b has no sample"):
        call({"a": GROUPS["a"], "b": []}, 1)
    with pytest.raises(LabError, match=r"samples \[0, 2\], not 0, 1, 2"):
        call({"a": [GROUPS["a"][0], GROUPS["a"][2]]}, 1)
    twice = [GROUPS["a"][0], GROUPS["a"][0]]
    with pytest.raises(LabError, match="stands there twice"):
        call({"a": twice}, 1)
    uneven = {"a": GROUPS["a"], "b": GROUPS["b"][:2]}
    with pytest.raises(LabError, match="only 2 samples"):
        call(uneven, 3)


def test_one_problem_has_no_mean():
    with pytest.raises(LabError, match="mean over 1 problem"):
        sampled.average_at_k({"a": GROUPS["a"]}, 4)
