"""Evaluation: one line a problem, kinds of wrong, nothing overwritten."""

import shutil

import pytest
from broken_engines import Breaking, Counting, Killed

from helpers.base import (
    BenchmarkConfig,
    Completion,
    LabError,
    read_records,
    write_records,
)
from helpers.grading import GradedCompletion
from helpers.problems import load_problems
from helpers.results import load_results, load_samples, summarize_results

pytest.importorskip("transformers")

from helpers.stages import evaluate

KINDS = ("k", "truncated_wrong", "finished_wrong", "no_answer")


def add_benchmark(recipe, path, name="second", n=4):
    """The recipe with one more benchmark."""
    more = BenchmarkConfig(name=name, path=str(path), n=n)
    old = recipe.evaluate
    new = old.model_copy(update={"benchmarks": (*old.benchmarks, more)})
    return recipe.model_copy(update={"evaluate": new})


def read_lines(run, tag="base", name="bench"):
    return read_records(run.file("eval", tag, f"{name}.jsonl"), Completion)


@pytest.fixture
def merged(run, tiny_model_dir, tokenizer):
    """Another model in the place of the merged SFT model."""
    from conftest import make_tiny_model

    folder = run.file("sft", "merged")
    shutil.copytree(tiny_model_dir, folder)
    make_tiny_model(len(tokenizer), seed=5).save_pretrained(folder)
    return folder


def test_each_problem_has_one_line_and_the_kinds_add_up(
    tiny_recipe, run, capsys
):
    scores = evaluate.run_evaluate(tiny_recipe, run, ("base",))
    rows = read_lines(run)
    problems = load_problems(tiny_recipe.evaluate.benchmarks[0].path, 8)
    assert {row.problem_id: row.gold for row in rows} == {
        p.id: p.answer for p in problems
    }
    assert len(rows) == 8
    assert not any(row.model_extra for row in rows), "no verdict is stored"
    counts = scores["base"]["bench"]
    assert sum(counts[kind] for kind in KINDS) == counts["n"] == 8
    assert run.metrics()["evaluate/base"] == scores["base"]
    ordered = load_results(run, "base", "bench")
    assert [row.problem_id for row in ordered] == [p.id for p in problems]
    before = run.file("eval", "base", "bench.jsonl").read_bytes()
    assert evaluate.run_evaluate(tiny_recipe, run, ("base",)) == scores
    assert "loaded" in capsys.readouterr().out
    assert run.file("eval", "base", "bench.jsonl").read_bytes() == before


def test_two_models_write_apart(tiny_recipe, run, merged):
    evaluate.run_evaluate(tiny_recipe, run, ("base", "sft"))
    base, sft = read_lines(run), read_lines(run, "sft")
    assert [r.response for r in base] != [r.response for r in sft]
    assert {"evaluate/base", "evaluate/sft"} <= set(run.metrics())


def make_row(correct, finish, extracted):
    return GradedCompletion(
        problem_id="p",
        sample=0,
        prompt="p",
        response="r",
        extracted=extracted,
        correct=correct,
        reason="",
        finish_reason=finish,
        tokens=4,
        mean_logprob=-1.0,
        seed=0,
    )


def test_wrong_answers_are_told_apart():
    rows = [
        make_row(True, "stop", "1"),
        make_row(True, "length", "1"),
        make_row(False, "length", None),
        make_row(False, "length", "2"),
        make_row(False, "stop", "2"),
        make_row(False, "stop", None),
    ]
    assert summarize_results(rows) == {
        "k": 2,
        "n": 6,
        "truncated_wrong": 2,
        "finished_wrong": 1,
        "no_answer": 1,
        "too_long": 0,
        "empty": 0,
        "mean_tokens": 4.0,
    }


def test_a_killed_evaluation_goes_on_where_it_was(
    tiny_recipe, run, monkeypatch
):
    real, asked = evaluate.open_engine, []
    monkeypatch.setattr(
        evaluate, "open_engine", lambda *a, **k: Breaking(real(*a, **k), 5)
    )
    with pytest.raises(Killed):
        evaluate.run_evaluate(tiny_recipe, run, ("base",))
    begun = read_lines(run)
    assert len(begun) == 5
    with pytest.raises(LabError, match="5 of 8"):
        load_results(run, "base", "bench")
    assert "evaluate/base" not in run.metrics()
    monkeypatch.setattr(
        evaluate, "open_engine", lambda *a, **k: Counting(real(*a, **k), asked)
    )
    evaluate.run_evaluate(tiny_recipe, run, ("base",))
    assert len(asked) == 3
    assert read_lines(run)[:5] == begun
    assert len({row.problem_id for row in read_lines(run)}) == 8


def test_a_changed_model_is_refused_and_force_keeps_the_old(
    tiny_recipe, run, merged, tokenizer
):
    from conftest import make_tiny_model

    evaluate.run_evaluate(tiny_recipe, run, ("sft",))
    before = run.file("eval", "sft", "bench.jsonl").read_bytes()
    make_tiny_model(len(tokenizer), seed=6).save_pretrained(merged)
    with pytest.raises(LabError, match="changed: model"):
        evaluate.run_evaluate(tiny_recipe, run, ("sft",))
    assert run.file("eval", "sft", "bench.jsonl").read_bytes() == before
    evaluate.run_evaluate(tiny_recipe, run, ("sft",), force=True)
    (old,) = run.file("old").rglob("bench.jsonl")
    assert old.read_bytes() == before
    assert run.file("eval", "sft", "bench.jsonl").read_bytes() != before


def test_benchmarks_can_be_run_one_by_one(tiny_recipe, run, problems):
    path = run.path.parent / "second.jsonl"
    write_records(path, problems[8:])
    recipe = add_benchmark(tiny_recipe, path)
    first = evaluate.run_evaluate(
        recipe, run, ("base",), benchmarks=["second"]
    )
    assert list(first["base"]) == ["second"]
    evaluate.run_evaluate(recipe, run, ("base",), benchmarks=["bench"])
    before = run.file("eval", "base", "second.jsonl").read_bytes()
    both = evaluate.run_evaluate(recipe, run, ("base",))
    assert list(both["base"]) == ["bench", "second"]
    assert both["base"]["second"] == first["base"]["second"]
    assert run.metrics()["evaluate/base"] == both["base"]
    assert run.file("eval", "base", "second.jsonl").read_bytes() == before


def test_force_on_one_benchmark_scores_them_all_again(
    tiny_recipe, run, problems
):
    path = run.path.parent / "second.jsonl"
    write_records(path, problems[8:])
    recipe = add_benchmark(tiny_recipe, path)
    evaluate.run_evaluate(recipe, run, ("base",))
    longer = recipe.evaluate.model_copy(update={"max_new_tokens": 3})
    recipe = recipe.model_copy(update={"evaluate": longer})
    again = evaluate.run_evaluate(
        recipe, run, ("base",), benchmarks=["bench"], force=True
    )
    assert list(again["base"]) == ["bench"]
    stored = run.metrics()["evaluate/base"]
    assert list(stored) == ["bench", "second"]
    assert all(row["mean_tokens"] <= 3 for row in stored.values())
    assert len(list(run.file("old").rglob("*.jsonl"))) == 2
    both = evaluate.run_evaluate(recipe, run, ("base",))
    assert both["base"] == stored


def test_a_deleted_result_file_does_not_drop_the_other(
    tiny_recipe, run, problems
):
    path = run.path.parent / "second.jsonl"
    write_records(path, problems[8:])
    recipe = add_benchmark(tiny_recipe, path)
    both = evaluate.run_evaluate(recipe, run, ("base",))
    run.file("eval", "base", "bench.jsonl").unlink()
    evaluate.run_evaluate(recipe, run, ("base",), benchmarks=["bench"])
    assert run.metrics()["evaluate/base"] == both["base"]
    assert len(read_lines(run)) == 8


def test_a_changed_problem_file_is_refused(tiny_recipe, run, problems):
    evaluate.run_evaluate(tiny_recipe, run, ("base",))
    write_records(tiny_recipe.evaluate.benchmarks[0].path, problems[4:])
    with pytest.raises(LabError, match="changed: benchmark bench"):
        evaluate.run_evaluate(tiny_recipe, run, ("base",))


def test_a_begun_evaluation_of_another_model_is_refused(
    tiny_recipe, run, merged, tokenizer, monkeypatch
):
    from conftest import make_tiny_model

    real = evaluate.open_engine
    monkeypatch.setattr(
        evaluate, "open_engine", lambda *a, **k: Breaking(real(*a, **k), 5)
    )
    with pytest.raises(Killed):
        evaluate.run_evaluate(tiny_recipe, run, ("sft",))
    monkeypatch.setattr(evaluate, "open_engine", real)
    make_tiny_model(len(tokenizer), seed=6).save_pretrained(merged)
    with pytest.raises(LabError, match="begun with other inputs"):
        evaluate.run_evaluate(tiny_recipe, run, ("sft",))
    assert len(read_lines(run, "sft")) == 5


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("sft", "mathslm merge --model sft"),
        ("dpo-published", "--variant published"),
        ("dpo-publishd", "Did you mean 'published'"),
        ("sft-two", "no model 'sft-two'"),
        ("basic", "no model 'basic'"),
    ],
)
def test_a_missing_model_is_refused_with_the_command(
    tiny_recipe, run, tag, message
):
    with pytest.raises(LabError, match=message):
        evaluate.run_evaluate(tiny_recipe, run, ("base", tag))
    assert not run.file("eval").exists()


def test_unknown_and_missing_benchmarks_are_refused(tiny_recipe, run):
    with pytest.raises(LabError, match="Did you mean 'bench'"):
        evaluate.run_evaluate(tiny_recipe, run, benchmarks=["benhc"])
    with pytest.raises(LabError, match="no results of 'base'"):
        load_results(run, "base", "bench")


def draw(recipe, run, tags=("base",), n=3, **more):
    """Several samples a problem at temperature 1."""
    return evaluate.run_evaluate(
        recipe, run, tags, n=n, temperature=1.0, **more
    )


def read_samples(run, tag="base", name="bench"):
    return read_lines(run, tag, f"{name}.t1")


def test_several_samples_stand_beside_the_greedy_ones(
    tiny_recipe, run, merged
):
    greedy = evaluate.run_evaluate(tiny_recipe, run, ("base", "sft"))
    before = run.file("eval", "base", "bench.jsonl").read_bytes()
    recipe_before = run.file("recipe.yaml").read_text()
    found = draw(tiny_recipe, run, ("base", "sft"))
    assert run.file("eval", "base", "bench.jsonl").read_bytes() == before
    assert run.file("recipe.yaml").read_text() == recipe_before
    rows = read_samples(run)
    assert {(r.problem_id, r.sample) for r in rows} == {
        (p.id, i)
        for p in load_problems(tiny_recipe.evaluate.benchmarks[0].path, 8)
        for i in range(3)
    }
    assert len(rows) == 24 and len({r.seed for r in rows}) == 24
    counts = found["base"]["bench"]
    assert (counts["problems"], counts["samples"]) == (8, 3)
    kinds = ("right", "truncated_wrong", "finished_wrong", "no_answer")
    assert sum(counts[kind] for kind in kinds) == 24
    stored = run.metrics()
    assert stored["evaluate-t1/base"] == found["base"]
    assert stored["evaluate/base"] == greedy["base"]
    assert read_samples(run, "sft") != rows
    groups = load_samples(run, "base", "bench")
    assert [len(rows) for rows in groups.values()] == [3] * 8
    assert list(groups) == [
        r.problem_id for r in load_results(run, "base", "bench")
    ]


def test_more_samples_are_added_and_none_is_drawn_twice(
    tiny_recipe, run, monkeypatch, capsys
):
    draw(tiny_recipe, run, n=2)
    two = read_samples(run)
    real, asked = evaluate.open_engine, []
    monkeypatch.setattr(
        evaluate, "open_engine", lambda *a, **k: Counting(real(*a, **k), asked)
    )
    four = draw(tiny_recipe, run, n=4)
    assert len(asked) == 16
    assert read_samples(run)[:16] == two
    assert four["base"]["bench"]["samples"] == 4
    capsys.readouterr()
    assert draw(tiny_recipe, run, n=4) == four
    assert "loaded" in capsys.readouterr().out
    # Fewer than there are: nothing is drawn and nothing lost.
    assert draw(tiny_recipe, run, n=2) == four
    assert len(asked) == 16
    groups = load_samples(run, "base", "bench", n=2)
    assert all(len(rows) == 2 for rows in groups.values())
    with pytest.raises(LabError, match="only 4 samples of each problem"):
        load_samples(run, "base", "bench", n=5)


def test_a_killed_sampling_goes_on_where_it_was(tiny_recipe, run, monkeypatch):
    real = evaluate.open_engine
    monkeypatch.setattr(
        evaluate, "open_engine", lambda *a, **k: Breaking(real(*a, **k), 5)
    )
    with pytest.raises(Killed):
        draw(tiny_recipe, run)
    begun = read_samples(run)
    assert len(begun) == 5
    monkeypatch.setattr(evaluate, "open_engine", real)
    draw(tiny_recipe, run)
    rows = read_samples(run)
    assert rows[:5] == begun and len(rows) == 24


def test_more_samples_extend_every_benchmark(tiny_recipe, run, problems):
    path = run.path.parent / "second.jsonl"
    write_records(path, problems[8:])
    recipe = add_benchmark(tiny_recipe, path)
    draw(recipe, run, n=2)
    draw(recipe, run, n=3, benchmarks=["bench"])
    stored = run.metrics()["evaluate-t1/base"]
    assert [stored[name]["samples"] for name in ("bench", "second")] == [3, 3]


def test_a_single_sample_at_a_temperature_is_taken_over(
    tiny_recipe, run, monkeypatch
):
    evaluate.run_evaluate(tiny_recipe, run, ("base",), temperature=1.0)
    single = {r.problem_id: r.response for r in read_lines(run)}
    real, asked = evaluate.open_engine, []
    monkeypatch.setattr(
        evaluate, "open_engine", lambda *a, **k: Counting(real(*a, **k), asked)
    )
    draw(tiny_recipe, run, n=3)
    assert len(asked) == 16
    groups = load_samples(run, "base", "bench")
    assert {k: rows[0].response for k, rows in groups.items()} == single


def test_two_temperatures_never_mix(tiny_recipe, run):
    draw(tiny_recipe, run, n=2)
    before = read_samples(run)
    evaluate.run_evaluate(tiny_recipe, run, ("base",), n=2, temperature=0.5)
    assert read_samples(run) == before
    with pytest.raises(LabError, match=r"temperatures 0\.5, 1\."):
        load_samples(run, "base", "bench")
    half = load_samples(run, "base", "bench", temperature=0.5)
    assert half != load_samples(run, "base", "bench", temperature=1)
    again = draw(tiny_recipe, run, n=2, force=True)
    (old,) = run.file("old").rglob("bench.t1.jsonl")
    assert len(read_records(old, Completion)) == 16
    assert again["base"]["bench"]["samples"] == 2


def test_several_samples_that_cannot_be_scored_are_refused(
    tiny_recipe, run, problems
):
    with pytest.raises(LabError, match="3 samples a problem at temperature 0"):
        evaluate.run_evaluate(tiny_recipe, run, ("base",), n=3)
    with pytest.raises(LabError, match="only 0 samples"):
        draw(tiny_recipe, run, n=0)
    path = run.path.parent / "one.jsonl"
    write_records(path, problems[:1])
    recipe = add_benchmark(tiny_recipe, path, n=1)
    with pytest.raises(LabError, match="'second' has 1 problem"):
        draw(recipe, run)
    assert not run.file("eval").exists()
    with pytest.raises(LabError, match="no several samples of 'base'"):
        load_samples(run, "base", "bench")


def test_an_empty_benchmark_is_refused(tiny_recipe, run):
    with pytest.raises(LabError, match="benchmark is empty"):
        summarize_results([])
    path = run.path.parent / "nothing.jsonl"
    path.write_text("")
    recipe = add_benchmark(tiny_recipe, path, n=4)
    with pytest.raises(LabError):
        evaluate.run_evaluate(recipe, run, ("base",))
    assert not run.file("eval").exists()


def test_a_check_refuses_and_writes_nothing(
    tiny_recipe, run, problems, monkeypatch
):
    path = run.path.parent / "second.jsonl"
    write_records(path, problems[8:])
    with monkeypatch.context() as patch:
        patch.delattr(evaluate, "open_engine")
        before = sorted(run.path.rglob("*"))
        for options in ({}, {"n": 3, "temperature": 1.0}):
            evaluate.run_evaluate(
                tiny_recipe, run, ("base",), check=True, **options
            )
        with pytest.raises(LabError, match="mathslm merge --model sft"):
            evaluate.run_evaluate(tiny_recipe, run, ("sft",), check=True)
        assert sorted(run.path.rglob("*")) == before
    scores = evaluate.run_evaluate(tiny_recipe, run, ("base",))
    recipe = add_benchmark(tiny_recipe, path)
    for asked in (tiny_recipe, recipe):  # a benchmark more is no change
        done = evaluate.run_evaluate(asked, run, ("base",), check=True)
        assert done in (scores, {"base": {}})
    write_records(path, problems[8:9])
    with pytest.raises(LabError, match="second"):
        evaluate.run_evaluate(recipe, run, ("base",), check=True)
    write_records(tiny_recipe.evaluate.benchmarks[0].path, problems[4:])
    with pytest.raises(LabError, match="changed: benchmark bench"):
        evaluate.run_evaluate(tiny_recipe, run, ("base",), check=True)


def test_a_stored_verdict_does_not_count(tiny_recipe, run):
    """A run of before stored verdicts; its responses are graded anew."""
    right = evaluate.run_evaluate(tiny_recipe, run, ("base",))
    path = run.file("eval", "base", "bench.jsonl")
    wrong = [
        Completion(**r.model_dump() | {"correct": True, "grader": "0.9"})
        for r in read_lines(run)
    ]
    write_records(path, wrong)
    run.file("stages", "evaluate-base.json").unlink()
    assert evaluate.run_evaluate(tiny_recipe, run, ("base",)) == right
