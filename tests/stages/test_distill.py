"""Self-distillation: what is kept, what is counted, what a kill costs."""

import pytest
from broken_engines import Breaking, Copying, Counting, Killed

from helpers.base import (
    Completion,
    LabError,
    PairRow,
    RunDir,
    SftRow,
    read_records,
    write_records,
)
from helpers.grading import GradedCompletion
from helpers.results import proportion
from helpers.stages import (
    distinct_fraction,
    harvest_pairs,
    measure_samples,
    require_kept,
)

pytest.importorskip("transformers")

from helpers.stages import distill


def make_row(problem, sample, correct, tokens=5, finish="stop", **more):
    word = "right" if correct else "wrong"
    row = {
        "problem_id": problem,
        "sample": sample,
        "prompt": f"prompt of {problem}",
        "response": f"{word} {sample}",
        "extracted": "1",
        "correct": correct,
        "reason": "",
        "finish_reason": finish,
        "tokens": tokens,
        "mean_logprob": -0.1 * tokens,
        "seed": sample,
    }
    return GradedCompletion(**row | more)


def make_samples():
    """Four problems: all right, mixed, all wrong, right only when cut."""
    return {
        "full": [make_row("full", s, True, tokens=9 - s) for s in range(3)],
        "mixed": [
            make_row("mixed", 0, False),
            make_row("mixed", 1, True, tokens=8),
            make_row("mixed", 2, True, tokens=4),
        ],
        "none": [make_row("none", s, False) for s in range(3)],
        "cut": [
            make_row("cut", 0, True, finish="length"),
            make_row("cut", 1, False),
            make_row("cut", 2, False, extracted=None),
        ],
    }


def harvest(samples, pick="first", seed=0):
    return harvest_pairs(samples, pick=pick, seed=seed, run_name="here")


def test_one_right_row_a_problem_and_a_pair_where_mixed():
    got = harvest(make_samples())
    rows = list(got.iter_sft())
    assert [(r.problem_id, r.sample) for r in rows] == [
        ("full", 0),
        ("mixed", 1),
    ]
    (pair,) = got.iter_pairs()
    assert (pair.chosen, pair.rejected) == ("right 1", "wrong 0")
    assert (pair.chosen_sample, pair.rejected_sample) == (1, 0)
    assert (pair.prompt, pair.run) == ("prompt of mixed", "here")
    assert {row.run for row in rows} == {"here"}
    assert (got.rows_cut, got.pairs_cut) == (1, 1)


def test_shortest_and_random_picks():
    samples = make_samples()
    short = harvest(samples, "shortest")
    assert [row.sample for row in short.iter_sft()] == [2, 2]
    drawn = {harvest(samples, "random", s).kept[0].sample for s in range(20)}
    assert drawn == {0, 1, 2}
    again = [list(harvest(samples, "random", 3).iter_sft()) for _ in range(2)]
    assert again[0] == again[1]


def test_a_prompt_is_used_once():
    samples = make_samples()
    samples["twin"] = [
        make_row("twin", s, s == 0, prompt="prompt of mixed") for s in range(2)
    ]
    got = harvest(samples)
    assert got.repeated == 1
    prompts = [row.prompt for row in got.iter_sft()]
    assert len(prompts) == len(set(prompts)) == 2


def test_chosen_and_rejected_always_differ():
    same = {
        "p": [
            make_row("p", 0, True, response="x"),
            make_row("p", 1, False, response="x"),
        ]
    }
    assert harvest(same).matched == []


def test_measures_are_counts_over_the_right_units():
    samples = make_samples()
    got = measure_samples(samples, harvest(samples))
    assert (got["problems"], got["samples"]) == (4, 12)
    assert (got["solve_rate"]["k"], got["solve_rate"]["n"]) == (6, 12)
    assert (got["pass@1"]["k"], got["pass@1"]["n"]) == (2, 4)
    assert got["pass@3"]["text"] == str(proportion(3, 4))
    assert got["mixed"]["k"] == 2
    assert got["truncated"]["k"] == got["no_answer"]["k"] == 1
    assert got["distinct_fraction"] == 1.0
    assert got["tokens"] == 27 - 3 + 17 + 15 + 15
    kept = [samples["full"][0], samples["mixed"][1]]
    tokens = sum(row.tokens for row in kept)
    assert got["sft_mean_logprob"] == pytest.approx(
        sum(row.mean_logprob * row.tokens for row in kept) / tokens
    )
    assert got["length"]["p5"] <= got["length"]["p50"] <= got["length"]["p95"]


def test_a_harvest_without_a_row_is_not_gone_on_with():
    samples = make_samples()
    require_kept(measure_samples(samples, harvest(samples)))
    barren = {name: samples[name] for name in ("none", "cut")}
    with pytest.raises(LabError, match="Of 6 samples none can be kept") as e:
        require_kept(measure_samples(barren, harvest(barren)))
    assert "1 right, 1 cut off at the cap, 1 without" in str(e.value)


def test_distinct_fraction_counts_within_a_problem():
    rows = [make_row("p", s, True, response="same") for s in range(4)]
    other = [make_row("q", s, True, response="same") for s in range(4)]
    assert distinct_fraction({"p": rows, "q": other}) == 2 / 8
    assert distinct_fraction({}) == 1.0


@pytest.mark.parametrize(
    ("pairs", "problems", "floor", "want"),
    [(50, 1000, 200, 1000), (190, 1000, 200, 64), (0, 100, 10, 100)],
)
def test_size_of_the_next_slice(pairs, problems, floor, want):
    assert distill.size_next_slice(pairs, problems, floor) == want


def change(recipe, **sections):
    """The recipe with some values of its sections changed."""
    parts = {
        name: getattr(recipe, name).model_copy(update=values)
        for name, values in sections.items()
    }
    return recipe.model_copy(update=parts)


def read_samples(run):
    return read_records(run.file("samples", "distill.jsonl"), Completion)


def as_dict(rows):
    """Everything but the last bits of a mean that depends on the batch."""
    return {
        (r.problem_id, r.sample): (r.response, r.tokens, r.seed) for r in rows
    }


def test_a_run_writes_every_sample_once_and_is_then_loaded(
    tiny_recipe, run, capsys
):
    metrics = distill.run_distill(tiny_recipe, run)
    rows = read_samples(run)
    keys = {(row.problem_id, row.sample) for row in rows}
    assert len(rows) == len(keys) == 6 * 3
    assert metrics["samples"] == 18
    assert metrics["tokens"] == sum(row.tokens for row in rows)
    assert all(row.prompt.endswith("<|assistant|>") for row in rows)
    assert len({row.seed for row in rows}) == 18
    assert all(row.gold and not row.model_extra for row in rows)
    read_records(run.file("sft.jsonl"), SftRow)
    read_records(run.file("pairs.jsonl"), PairRow)
    before = run.file("samples", "distill.jsonl").read_bytes()
    assert distill.run_distill(tiny_recipe, run) == metrics
    assert "loaded" in capsys.readouterr().out
    assert run.file("samples", "distill.jsonl").read_bytes() == before


def test_a_killed_run_goes_on_to_the_same_samples(
    tiny_recipe, run, tmp_path, monkeypatch
):
    whole = RunDir.open(tmp_path / "whole", tiny_recipe)
    distill.run_distill(tiny_recipe, whole)
    real = distill.open_engine
    monkeypatch.setattr(Breaking, "closed", 0)
    monkeypatch.setattr(
        distill, "open_engine", lambda *a, **k: Breaking(real(*a, **k), 10)
    )
    with pytest.raises(Killed):
        distill.run_distill(tiny_recipe, run)
    assert len(read_samples(run)) == 10
    assert Breaking.closed == 1
    with open(run.file("samples", "distill.jsonl"), "a") as file:
        file.write('{"problem_id": "sum-')
    asked = []

    monkeypatch.setattr(
        distill, "open_engine", lambda *a, **k: Counting(real(*a, **k), asked)
    )
    with pytest.warns(UserWarning, match="torn"):
        distill.run_distill(tiny_recipe, run)
    assert len(asked) == 8
    assert as_dict(read_samples(run)) == as_dict(read_samples(whole))


def test_a_run_begun_here_goes_on_with_a_server(
    tiny_recipe, run, monkeypatch, capsys
):
    pytest.importorskip("openai")
    from faulty_server import FaultyServer

    real = distill.open_engine
    monkeypatch.setattr(
        distill, "open_engine", lambda *a, **k: Breaking(real(*a, **k), 10)
    )
    with pytest.raises(Killed):
        distill.run_distill(tiny_recipe, run)
    begun = read_samples(run)
    monkeypatch.setattr(distill, "open_engine", real)
    with FaultyServer(["500"], model=tiny_recipe.model.id) as server:
        settings = {"name": "vllm", "url": server.url}
        served = change(tiny_recipe, engine=settings)
        metrics = distill.run_distill(served, run)
    said = capsys.readouterr().out
    assert "10 by transformers; the rest comes from vllm" in said
    rows = read_samples(run)
    assert rows[:10] == begun and len(as_dict(rows)) == len(rows) == 18
    assert [row.engine for row in rows[10:]] == ["vllm"] * 8
    assert metrics["engine"]["name"] == "vllm"
    assert server.given["500"] == 1
    assert distill.run_distill(tiny_recipe, run) == metrics


def test_begun_samples_of_other_settings_are_refused_not_mixed(
    tiny_recipe, run, monkeypatch
):
    real = distill.open_engine
    monkeypatch.setattr(
        distill, "open_engine", lambda *a, **k: Breaking(real(*a, **k), 6)
    )
    with pytest.raises(Killed):
        distill.run_distill(tiny_recipe, run)
    before = run.file("samples", "distill.jsonl").read_bytes()
    monkeypatch.setattr(distill, "open_engine", real)
    other = change(tiny_recipe, sampling={"temperature": 0.5})
    with pytest.raises(LabError, match="changed: temperature"):
        distill.run_distill(other, run)
    assert run.file("samples", "distill.jsonl").read_bytes() == before
    distill.run_distill(other, run, force=True)
    assert len(read_samples(run)) == 18
    (old,) = run.file("old").rglob("distill.jsonl")
    assert old.read_bytes() == before


def test_a_finished_harvest_of_other_settings_is_refused(tiny_recipe, run):
    distill.run_distill(tiny_recipe, run)
    other = change(tiny_recipe, harvest={"pick": "shortest"})
    with pytest.raises(LabError, match="changed: harvest"):
        distill.run_distill(other, run)


def test_copies_stop_the_run_early(tiny_recipe, run, monkeypatch):
    real = distill.open_engine
    monkeypatch.setattr(
        distill, "open_engine", lambda *a, **k: Copying(real(*a, **k))
    )
    monkeypatch.setattr(distill, "PROBE_PROBLEMS", 2)
    with pytest.raises(LabError, match="distinct"):
        distill.run_distill(tiny_recipe, run)
    assert len(read_samples(run)) == 2 * 3
    assert "distill" not in run.metrics()


def test_too_few_problems_for_a_verdict_are_only_reported(
    tiny_recipe, run, monkeypatch, capsys
):
    real = distill.open_engine
    monkeypatch.setattr(
        distill, "open_engine", lambda *a, **k: Copying(real(*a, **k))
    )
    distill.run_distill(tiny_recipe, run, smoke_steps=2)
    said = capsys.readouterr().out
    assert "Only 2 problems, so not refused" in said
    assert "33%" in said


def test_too_few_pairs_call_for_more_problems_until_none_are_left(
    tiny_recipe, run, capsys
):
    wants = change(tiny_recipe, harvest={"min_pairs": 1000})
    metrics = distill.run_distill(wants, run)
    said = capsys.readouterr().out
    assert "going on with the next" in said
    assert "exhausted" in said
    assert metrics["problems"] == 12
    assert metrics["pair_floor"] == 1000


def test_smoke_steps_stay_in_their_own_folder(tiny_recipe, run):
    metrics = distill.run_distill(tiny_recipe, run, smoke_steps=2)
    assert metrics["problems"] == 2
    assert not run.file("samples").exists()
    assert run.metrics() == {}
    assert run.file("smoke", "distill", "sft.jsonl").is_file()
    distill.run_distill(tiny_recipe, run)
    assert len(read_samples(run)) == 18


@pytest.mark.parametrize("check", [False, True])
def test_more_problems_than_the_set_holds_are_refused(tiny_recipe, run, check):
    many = change(tiny_recipe, data={"n_problems": 13})
    with pytest.raises(LabError, match="holds 12 problems"):
        distill.run_distill(many, run, check=check)


def test_a_check_refuses_and_writes_nothing(tiny_recipe, run, monkeypatch):
    real = distill.open_engine
    monkeypatch.delattr(distill, "open_engine")
    before = sorted(run.path.rglob("*"))
    assert distill.run_distill(tiny_recipe, run, check=True) == {}
    assert (
        distill.run_distill(tiny_recipe, run, check=True, smoke_steps=2) == {}
    )
    assert sorted(run.path.rglob("*")) == before
    monkeypatch.setattr(distill, "open_engine", real, raising=False)
    metrics = distill.run_distill(tiny_recipe, run)
    assert distill.run_distill(tiny_recipe, run, check=True) == metrics
    other = change(tiny_recipe, harvest={"pick": "shortest"})
    with pytest.raises(LabError, match="changed: harvest"):
        distill.run_distill(other, run, check=True)


def test_a_check_fetches_no_set_from_the_hub(tiny_recipe, run, monkeypatch):
    monkeypatch.delenv("MATHSLM_DATA_DIR", raising=False)
    monkeypatch.delattr(distill, "load_up_to")
    far = change(tiny_recipe, data={"train": "gsm8k-train"})
    assert distill.run_distill(far, run, check=True) == {}


def test_pocket_model_gives_rows_that_the_grader_confirms(
    pocket_model, tiny_recipe, tmp_path
):
    from helpers.grading import grade_response
    from helpers.problems import load_problems

    chosen = load_problems("pocket/easy.jsonl", 8)
    path = tmp_path / "easy.jsonl"
    write_records(path, chosen)
    recipe = change(
        tiny_recipe,
        model={"id": str(pocket_model)},
        data={"train": str(path), "n_problems": 8},
        sampling={"n": 4, "max_new_tokens": 128},
        harvest={"min_distinct_fraction": 0.0},
        engine={"max_batch_size": 32},
    )
    run = RunDir.open(tmp_path / "pocket-run", recipe)
    metrics = distill.run_distill(recipe, run)
    gold = {p.id: p.answer for p in chosen}
    rows = read_records(run.file("sft.jsonl"), SftRow)
    assert len(rows) == metrics["sft_rows"] > 0
    for row in rows:
        assert grade_response(row.completion, gold[row.problem_id]).correct
        assert "<|" not in row.completion
    for pair in read_records(run.file("pairs.jsonl"), PairRow):
        answer = gold[pair.problem_id]
        assert grade_response(pair.chosen, answer).correct
        assert not grade_response(pair.rejected, answer).correct
