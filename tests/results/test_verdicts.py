"""Grades of two versions: never in one file, never compared, said aloud."""

from __future__ import annotations

import pytest

from helpers.base import (
    Completion,
    LabError,
    choose_aside,
    compare_inputs,
    read_records,
    write_json,
    write_records,
)
from helpers.grading import grade as grading
from helpers.results import verdicts
from helpers.sampling import open_samples
from helpers.stages import evaluate

SAMPLES = "samples/distill.jsonl"
ANSWERS = {"sum-0": "1", "sum-1": "4", "sum-2": "7", "sum-3": "10"}


def make_row(problem_id, response, correct, grader, **more):
    row = {
        "problem_id": problem_id,
        "sample": 0,
        "prompt": f"prompt of {problem_id}",
        "response": response,
        "extracted": None,
        "correct": correct,
        "reason": "said an older grader",
        "grader": grader,
        "finish_reason": "stop",
        "tokens": 5,
        "mean_logprob": -0.5,
        "seed": 1,
    }
    return Completion(**row | more)


def make_rows(grader, mark=r"\boxed{%s}", **more):
    """Four right responses that an older grader called wrong."""
    return [
        make_row(i, mark % gold, False, grader, gold=gold, **more)
        for i, gold in ANSWERS.items()
    ]


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """What was said once in another test is said again."""
    monkeypatch.setattr(verdicts, "_SAID", set())


def regrade(run, name=SAMPLES):
    return verdicts.regrade_file(run, name, choose_aside(run.path, "regrade"))


def test_rows_get_the_verdict_and_version_of_the_installed_grader(run):
    path = run.file(SAMPLES)
    write_records(path, make_rows("0.1"))
    before = path.read_bytes()
    change = regrade(run)
    rows = read_records(path, Completion)
    assert change.to_right == [f"{i} #0" for i in ANSWERS]
    assert change.versions == {"0.1"} and change.rows == 4
    assert {row.grader for row in rows} == {grading.GRADER_VERSION}
    for row in rows:
        grade = grading.grade_response(row.response, row.gold)
        assert (row.correct, row.extracted, row.reason) == (
            grade.correct,
            grade.extracted,
            grade.reason,
        )
    assert run.file("old", "1-regrade", SAMPLES).read_bytes() == before
    assert not list(run.path.rglob("*.regraded"))


def test_nothing_is_written_when_nothing_changes(run):
    path = run.file(SAMPLES)
    write_records(path, make_rows("0.1"))
    regrade(run)
    state = path.stat().st_mtime_ns, path.read_bytes()
    change = regrade(run)
    assert not change.written and not change.changed
    assert (path.stat().st_mtime_ns, path.read_bytes()) == state
    assert not run.file("old", "2-regrade").exists()


def test_a_response_that_was_never_drawn_keeps_its_reason(run):
    row = make_row("sum-0", "", False, "0.1", finish_reason="too_long")
    write_records(run.file(SAMPLES), [row])
    regrade(run)
    (now,) = read_records(run.file(SAMPLES), Completion)
    assert now.reason == row.reason
    assert now.grader == grading.GRADER_VERSION


def test_rows_without_gold_take_it_from_the_problem_file(run):
    rows = [
        make_row("sum-0", r"\boxed{1}", False, ""),
        make_row("sum-1", r"\boxed{5}", True, ""),
    ]
    for name in (SAMPLES, "eval/base/bench.jsonl"):
        write_records(run.file(name), rows)
        change = regrade(run, name)
        assert len(change.to_right) == len(change.to_wrong) == 1
        assert change.versions == {verdicts.UNKNOWN}
        stored = read_records(run.file(name), Completion)
        assert [row.gold for row in stored] == ["1", "4"]


@pytest.mark.parametrize(
    ("name", "problem_id", "message"),
    [
        (SAMPLES, "nobody", "has no such problem"),
        ("eval/base/unknown.jsonl", "sum-0", "no benchmark 'unknown'"),
    ],
)
def test_a_lost_reference_is_refused_and_nothing_changes(
    run, name, problem_id, message
):
    path = run.file(name)
    write_records(path, [make_row(problem_id, "1", False, "")])
    before = path.read_bytes()
    with pytest.raises(LabError, match=message):
        regrade(run, name)
    assert path.read_bytes() == before


def test_a_kill_while_grading_leaves_the_file_whole(run, monkeypatch):
    path = run.file(SAMPLES)
    write_records(path, make_rows("0.1"))
    before = path.read_bytes()
    monkeypatch.setattr(verdicts, "CHUNK", 2)
    real, calls = verdicts.grade_many, []

    def stop_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(verdicts, "grade_many", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        regrade(run)
    assert path.read_bytes() == before
    monkeypatch.setattr(verdicts, "grade_many", real)
    assert len(regrade(run).to_right) == 4
    assert not list(run.path.rglob("*.regraded"))


def test_a_begun_file_is_graded_again_before_it_goes_on(run, capsys):
    path = run.file(SAMPLES)
    write_records(path, make_rows("0.1"))
    write_json(path.with_suffix(".inputs.json"), {"model": "m"})
    open_samples(run, SAMPLES, {"model": "m"})
    said = capsys.readouterr().out
    assert "4 rows had grades of grader 0.1" in said
    assert "4 verdicts changed" in said
    rows = read_records(path, Completion)
    assert {row.grader for row in rows} == {grading.GRADER_VERSION}
    open_samples(run, SAMPLES, {"model": "m"})
    assert "grades of grader" not in capsys.readouterr().out


def test_a_begun_file_of_two_versions_becomes_one(run):
    path = run.file(SAMPLES)
    rows = make_rows("0.1")
    write_records(path, rows[:2] + make_rows(grading.GRADER_VERSION)[2:])
    write_json(path.with_suffix(".inputs.json"), {"model": "m"})
    open_samples(run, SAMPLES, {"model": "m"})
    rows = read_records(path, Completion)
    assert {row.grader for row in rows} == {grading.GRADER_VERSION}
    assert all(row.correct for row in rows)


def test_the_grader_of_older_stage_inputs_does_not_count():
    old = {"model": "m", "grader": "0.1"}
    assert compare_inputs(old, {"model": "m"}) == []
    assert compare_inputs(old, {"model": "n"}) == ["model"]


def fill_evals(run, **versions):
    """Results of each tag on all eight problems."""
    for tag, version in versions.items():
        rows = [
            make_row(f"sum-{i}", "1", False, version, gold=str(3 * i + 1))
            for i in range(8)
        ]
        write_records(run.file("eval", tag, "bench.jsonl"), rows)


def test_results_of_two_graders_are_not_loaded_to_be_compared(run):
    fill_evals(run, base="0.1", sft=grading.GRADER_VERSION)
    for tag in ("base", "sft"):
        with pytest.raises(LabError, match="mathslm regrade") as refusal:
            evaluate.load_results(run, tag, "bench")
        assert "base: 0.1" in str(refusal.value)
    regrade(run, "eval/base/bench.jsonl")
    assert len(evaluate.load_results(run, "base", "bench")) == 8


def test_a_file_of_two_graders_is_refused_with_its_line(run):
    fill_evals(run, base=grading.GRADER_VERSION)
    path = run.file("eval", "base", "bench.jsonl")
    rows = read_records(path, Completion)
    rows[5].grader = "0.1"
    write_records(path, rows)
    with pytest.raises(LabError, match="base from line 6: 0.1"):
        evaluate.load_results(run, "base", "bench")


def test_older_grades_are_said_once_with_the_command(run, capsys):
    fill_evals(run, base="0.1", sft="0.1")
    for tag in ("base", "sft", "base"):
        assert len(evaluate.load_results(run, tag, "bench")) == 8
    (line,) = capsys.readouterr().out.splitlines()
    assert "Graded by grader 0.1" in line
    assert f"mathslm regrade --run-dir {run.label}" in line


def test_a_new_version_keeps_finished_stages(
    tiny_recipe, run, monkeypatch, capsys
):
    """Stages stay done and loaded; one line says what to do."""
    from helpers.stages import distill

    distill.run_distill(tiny_recipe, run)
    evaluate.run_evaluate(tiny_recipe, run, ("base",))
    files = [run.file(SAMPLES), run.file("eval/base/bench.jsonl")]
    before = [path.read_bytes() for path in files]
    capsys.readouterr()
    monkeypatch.setattr(grading, "GRADER_VERSION", "99")
    distill.run_distill(tiny_recipe, run)
    evaluate.run_evaluate(tiny_recipe, run, ("base",))
    said = capsys.readouterr().out
    assert "distill: done with these inputs, loaded" in said
    assert "evaluate/base: done with these inputs, loaded" in said
    assert said.count("99 is installed; to grade again") == 1
    assert [path.read_bytes() for path in files] == before
