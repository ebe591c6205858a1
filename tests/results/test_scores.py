"""Results are graded when they are read, and counted right."""

from __future__ import annotations

import itertools
import math

import pytest

from helpers.base import (
    DATA_DIR,
    Completion,
    LabError,
    RunDir,
    load_recipe,
    read_records,
    write_json,
    write_records,
)
from helpers.grading import GradedCompletion, grade_response
from helpers.results import scores, stats

RUNS = sorted(path.parent for path in DATA_DIR.glob("measured/*/run/eval"))


# --- read and grade --------------------------------------------------------


def make_response(problem_id, response, **more):
    """A line of a file, as it is stored."""
    row = {
        "problem_id": problem_id,
        "sample": 0,
        "prompt": f"prompt of {problem_id}",
        "response": response,
        "finish_reason": "stop",
        "tokens": 5,
        "mean_logprob": -0.5,
        "seed": 1,
    }
    return Completion(**row | more)


def test_a_file_is_graded_when_it_is_read(run):
    """By the reference of the row; what the row says of itself is nothing."""
    told = {"correct": False, "extracted": "9", "reason": "r", "grader": "0.1"}
    rows = [
        make_response(f"sum-{i}", rf"\boxed{{{3 * i + 1}}}", gold="4", **old)
        for i in range(3)
        for old in ({}, told)
    ]
    write_records(run.file("eval/base/bench.jsonl"), rows)
    before = run.file("eval/base/bench.jsonl").read_bytes()
    for row in scores.read_graded_file(run, "eval/base/bench.jsonl"):
        grade = grade_response(row.response, "4")
        assert (row.correct, row.extracted, row.reason) == (
            grade.correct,
            grade.extracted,
            grade.reason,
        )
        assert row.correct is (row.problem_id == "sum-1")
    assert run.file("eval/base/bench.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "samples/distill.jsonl",
        "eval/base/bench.jsonl",
        "eval/base/bench.t0.7.jsonl",
    ],
)
def test_rows_without_gold_take_it_from_the_problem_file(run, name):
    rows = [
        make_response("sum-0", r"\boxed{1}"),
        make_response("sum-1", r"\boxed{5}"),
    ]
    write_records(run.file(name), rows)
    found = scores.read_graded_file(run, name)
    assert [row.gold for row in found] == ["1", "4"]
    assert [row.correct for row in found] == [True, False]


@pytest.mark.parametrize(
    ("name", "problem_id", "message"),
    [
        ("samples/distill.jsonl", "nobody", "has no such problem"),
        ("eval/base/unknown.jsonl", "sum-0", "no benchmark 'unknown'"),
    ],
)
def test_a_lost_reference_is_refused(run, name, problem_id, message):
    write_records(run.file(name), [make_response(problem_id, "1")])
    with pytest.raises(LabError, match=message):
        scores.read_graded_file(run, name)


def test_a_response_that_was_never_drawn_is_wrong(run):
    row = make_response("sum-0", "", finish_reason="too_long")
    write_records(run.file("eval/base/bench.jsonl"), [row])
    (found,) = scores.read_graded_file(run, "eval/base/bench.jsonl")
    assert not found.correct and found.extracted is None
    assert scores.classify_outcome(found) == "no_answer"


@pytest.mark.parametrize("source", RUNS, ids=lambda p: p.parent.name)
def test_recorded_verdicts_are_the_graders(source):
    """A recorded run keeps the verdicts of its time, as a cross-check."""
    run = RunDir(source, load_recipe(source / "recipe.yaml"))
    count, flipped, other = 0, [], []
    for path in sorted(source.glob("eval/*/*.jsonl")):
        name = path.relative_to(source).as_posix()
        stored = read_records(path, Completion)
        graded = scores.read_graded_file(run, name)
        for old, new in zip(stored, graded, strict=True):
            told = old.model_extra or {}
            where = f"{name}: {old.problem_id} #{old.sample}"
            if told.get("correct", new.correct) != new.correct:
                flipped.append(where)
            elif told.get("extracted", new.extracted) != new.extracted:
                other.append(where)
            count += "correct" in told
    assert count > 0
    assert not flipped, flipped
    assert not other, other


def test_the_table_of_scores_has_a_row_a_benchmark(run):
    measured = {"bench": {"k": 3, "n": 8}}
    sampled = {
        "samples": 4,
        "problems": 8,
        "avg": [0.5, 0.25, 0.75],
        "pass": {"4": [0.75, 0.5, 0.9]},
        "majority": 4,
        "best_of": None,
    }
    write_json(
        run.file("metrics.json"),
        {"evaluate/base": measured, "evaluate-t1/sft": {"bench": sampled}},
    )
    rows = scores.score_table(run, ("base", "sft"), run.recipe)
    assert rows == [("base", "bench", str(stats.proportion(3, 8)))]
    asked = {"n": 4, "temperature": 1.0}
    evaluate = run.recipe.evaluate.model_copy(update=asked)
    recipe = run.recipe.model_copy(update={"evaluate": evaluate})
    rows = scores.score_table(run, ("base", "sft"), recipe)
    assert [row[:2] for row in rows] == [("sft", "bench"), ("", ""), ("", "")]
    heads = [row[2].split()[0] for row in rows]
    assert heads == ["avg@4", "pass@4", "majority"]
    sampled["best_of"] = 5
    write_json(
        run.file("metrics.json"), {"evaluate-t1/sft": {"bench": sampled}}
    )
    rows = scores.score_table(run, ("sft",), recipe)
    assert rows[-1] == ("", "", f"best of 4 {stats.proportion(5, 8)}")


# --- counting --------------------------------------------------------------


def make_row(problem, sample, answer, right, logprob=-0.5, tokens=4):
    """A graded sample; ``answer`` None is no answer."""
    return GradedCompletion(
        problem_id=problem,
        sample=sample,
        prompt="p",
        response=str(answer),
        extracted=answer,
        correct=right,
        reason="",
        finish_reason="stop",
        tokens=tokens,
        mean_logprob=logprob,
        seed=sample,
    )


@pytest.mark.parametrize(
    ("correct", "finish", "extracted", "expected"),
    [
        (True, "length", "4", "right"),
        (False, "length", "4", "truncated_wrong"),
        (False, "length", None, "truncated_wrong"),
        (False, "stop", "5", "finished_wrong"),
        (False, "stop", None, "no_answer"),
    ],
)
def test_classify_outcome(correct, finish, extracted, expected):
    row = make_row("p", 0, extracted, correct)
    row.finish_reason = finish
    assert scores.classify_outcome(row) == expected


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
    found = scores.average_at_k(GROUPS, 4)
    assert found.value == pytest.approx(7 / 16)
    assert found.low < found.value < found.high
    assert scores.average_at_k(GROUPS, 2).value == pytest.approx(4 / 8)


def test_pass_at_k_is_the_mean_over_all_choices_of_k():
    for k in (1, 2, 3, 4):
        shares = []
        for rows in GROUPS.values():
            marks = [row.correct for row in rows]
            chosen = list(itertools.combinations(marks, k))
            shares.append(sum(map(any, chosen)) / len(chosen))
        found = scores.pass_at_k(GROUPS, k).value
        assert found == pytest.approx(sum(shares) / 4)
    curve = scores.pass_curve(GROUPS)
    values = [found.value for found in curve.values()]
    assert list(curve) == [1, 2, 3, 4] and values == sorted(values)
    assert values[0] == pytest.approx(scores.average_at_k(GROUPS, 4).value)
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
    one, eight = scores.average_at_k(few, 1), scores.average_at_k(many, 8)
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
    found = scores.vote(rows)
    assert (found.answer, found.votes, found.of) == ("1/2", 3, 6)
    assert found.correct
    tie = scores.vote([*rows[:3], rows[4]])
    assert (tie.answer, tie.votes, tie.correct) == ("3", 2, False)


def test_samples_without_answers_have_no_vote():
    rows = [make_row("a", i, None, False) for i in range(3)]
    assert scores.vote(rows) == scores.Vote(None, 0, 3, False)
    found = scores.vote([*rows, make_row("a", 3, "7", True)])
    assert (found.answer, found.correct) == ("7", True)
    with pytest.raises(LabError, match="no sample to vote"):
        scores.vote([])


def test_majority_can_beat_and_lose_against_one_sample():
    groups = make_groups({"a": "WRR", "b": "RWW"})
    assert scores.majority_at_k(groups, 3) == {"a": True, "b": False}
    assert scores.majority_at_k(groups, 1) == {"a": False, "b": True}


def test_best_of_n_takes_the_most_confident_that_was_drawn():
    rows = [
        make_row("a", 0, None, False, logprob=0.0, tokens=0),
        make_row("a", 1, "2", False, logprob=-0.9),
        make_row("a", 2, "1", True, logprob=-0.1),
    ]
    groups = {"a": rows, "b": make_groups({"b": "WRR"})["b"]}
    assert scores.best_of_n(groups, 3) == {"a": True, "b": False}
    assert scores.best_of_n(groups, 2) == {"a": False, "b": False}
    groups["a"][1] = make_row("a", 1, "2", False, logprob=math.nan)
    with pytest.raises(LabError, match="Sample 1 of a has the mean log-prob"):
        scores.best_of_n(groups, 3)
    found = scores.summarize_samples(groups, 3)
    assert found["best_of"] is None and found["majority"] == 1


def test_summary_adds_up():
    found = scores.summarize_samples(GROUPS, 4)
    kinds = ("right", "finished_wrong", "truncated_wrong", "no_answer")
    assert sum(found[kind] for kind in kinds) == 16
    assert found["right"] == 7 and found["problems"] == 4
    assert found["avg"][0] == pytest.approx(7 / 16)
    assert found["pass"]["4"][0] == pytest.approx(3 / 4)
    assert found["pass"]["1"][0] == pytest.approx(found["avg"][0])
    assert found["majority"] == 2  # a tie in the first falls to its first
    assert scores.summarize_samples(GROUPS, 2)["samples"] == 2


@pytest.mark.parametrize(
    "call",
    [
        scores.average_at_k,
        scores.pass_at_k,
        scores.majority_at_k,
        scores.best_of_n,
        scores.summarize_samples,
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
        scores.average_at_k({"a": GROUPS["a"]}, 4)
