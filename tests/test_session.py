"""Sessions: what a notebook finds, replays or computes; bad input refused."""

from __future__ import annotations

import pytest

from helpers import replay as recording
from helpers import session
from helpers.base import (
    DATA_DIR,
    LabError,
    RunDir,
    load_recipe,
    read_json,
    write_json,
)

RECORD = DATA_DIR / "measured" / "pocket" / "run"


def begin(tmp_path, **options):
    return session.start(run_dir=tmp_path / "run", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "replai"}, "Did you mean 'replay'"),
        ({"tier": "pockt"}, "Did you mean 'pocket'"),
        ({"overrides": ["sft.epoch=1"]}, "Did you mean 'epochs'"),
        ({"needs": ["distil"]}, "no stage 'distil'"),
    ],
)
def test_refusals(tmp_path, options, message):
    with pytest.raises(LabError, match=message):
        begin(tmp_path, **options)


def test_record_fits_the_shipped_recipe():
    """Whoever changes the recipe must record the run again."""
    assert load_recipe(RECORD / "recipe.yaml") == load_recipe("pocket")


def test_replay_takes_the_record_and_says_so(tmp_path, capsys):
    found = begin(tmp_path, mode="replay", makes=("distill", "evaluate/sft"))
    metrics = read_json(RECORD / "metrics.json")
    assert found.run_dir.metrics()["distill"] == metrics["distill"]
    assert found.note("distill").startswith("recorded on 20")
    assert found.run_dir.file("eval", "sft", "main.jsonl").is_file()
    assert found.note().startswith("recorded on 20")


def test_replayed_stage_is_loaded_not_computed(tmp_path, capsys):
    from helpers.stages import run_distill

    found = begin(tmp_path, mode="replay", makes=("distill",))
    metrics = run_distill(found.recipe, found.run_dir)
    assert metrics == read_json(RECORD / "metrics.json")["distill"]
    assert "loaded" in capsys.readouterr().out
    assert found.run("distill") == metrics
    assert "distill: recorded on 20" in capsys.readouterr().out


def test_replay_loads_and_makes_no_model(tmp_path, monkeypatch):
    """Merges are left out; what was measured of them is in the record."""
    monkeypatch.setattr(
        "helpers.models.load.load_model", lambda *a, **k: pytest.fail("loaded")
    )
    found = begin(
        tmp_path, mode="replay", needs=("distill", "merge/sft"), makes=("dpo",)
    )
    assert not found.run_dir.file("sft", "merged").exists()
    model, tokenizer = found.load("sft")
    assert tokenizer.eos_token
    with pytest.raises(LabError, match="A replay has no model"):
        found.make_engine(model, tokenizer).sample([])
    merged = found.run("merge/sft")
    assert merged == read_json(RECORD / "metrics.json")["merge/sft"]


def test_replay_over_work_of_ones_own_is_refused(tmp_path, tiny_recipe):
    run = RunDir.open(tmp_path / "run", load_recipe("pocket"))
    with run.stage("distill", {"a": "b"}) as stage:
        run.file("sft.jsonl").write_text("mine")
        stage["outputs"] = ["sft.jsonl"]
    with pytest.raises(LabError, match="'distill' of its own"):
        begin(tmp_path, mode="replay", makes=("distill",))
    assert run.file("sft.jsonl").read_text() == "mine"


def test_replay_with_other_settings_is_refused(tmp_path):
    with pytest.raises(LabError, match="No recorded 'distill'"):
        begin(tmp_path, mode="replay", seed=7, makes=("distill",))


def test_needs_come_from_the_record_and_merges_are_made(tmp_path, capsys):
    found = begin(tmp_path, needs=("distill", "merge/sft"))
    said = capsys.readouterr().out
    assert "distill: taken from the recorded run" in said
    assert "sft: taken from the recorded run" in said
    assert "merge/sft: not there yet, computed now" in said
    assert found.run_dir.file("sft", "merged", "config.json").is_file()
    begin(tmp_path, needs=("distill", "merge/sft"))
    assert "merge/sft: found" in capsys.readouterr().out


def test_recorded_dpo_is_loaded_on_a_merge_made_here(tmp_path, capsys):
    """The merged model is known by its parts, not by its last bits."""
    begin(tmp_path, needs=("dpo",))
    assert "merge/sft" not in capsys.readouterr().out
    begin(tmp_path, needs=("dpo",))
    said = capsys.readouterr().out
    assert "merge/sft: not there yet, computed now" in said
    assert "dpo: found in the run folder" in said
    assert "dpo is done" in said


@pytest.fixture
def record(tmp_path, tiny_recipe, monkeypatch):
    """A made-up record of the tiny recipe, with one evaluation."""
    monkeypatch.setattr("helpers.base.run.DATA_DIR", tmp_path / "shipped")
    kept = RunDir.open(tmp_path / "kept", tiny_recipe)
    with kept.stage("evaluate/base", {"model": "m"}) as stage:
        kept.file("eval", "base").mkdir(parents=True)
        kept.file("eval", "base", "bench.txt").write_text("recorded")
        stage.update(outputs=["eval/base/bench.txt"], metrics={"n": 8})
    recording.record_run(kept, ["evaluate/base"])
    return kept


def test_a_record_is_taken_into_a_folder_without_work(run, record):
    assert recording.take_stage(run, "evaluate/base")
    assert run.file("eval/base/bench.txt").read_text() == "recorded"
    assert run.metrics() == record.metrics()


def test_a_record_never_overwrites_work_that_was_begun(run, record):
    begun = run.file("eval", "base", "bench.txt")
    begun.parent.mkdir(parents=True)
    begun.write_text("live")
    assert not recording.take_stage(run, "evaluate/base")
    assert begun.read_text() == "live" and run.metrics() == {}


def test_a_found_stage_is_checked_not_only_seen(tmp_path, tiny_recipe, capsys):
    tiny = {"tier": str(tmp_path / "tiny.yaml"), "needs": ("distill",)}
    rows = begin(tmp_path, **tiny).run_dir.file("sft.jsonl")
    assert "computed now" in capsys.readouterr().out
    before = rows.read_bytes()
    rows.unlink()
    begin(tmp_path, **tiny)
    assert "distill: found in the run folder" in capsys.readouterr().out
    assert rows.read_bytes() == before
    with pytest.raises(LabError, match="changed: "):
        begin(tmp_path, **tiny, overrides=["sampling.temperature=0.5"])
    assert rows.read_bytes() == before


@pytest.mark.parametrize("tier", ["pocket", "smol"])
def test_stages_name_their_needs_and_every_chain_ends(tier):
    recipe = load_recipe(tier)
    known = session.list_stages(recipe)
    for stage in known:
        todo, seen = [stage], set()
        while todo:
            more = session.list_dependencies(recipe, todo.pop())
            assert set(more) <= set(known), stage
            assert stage not in more, stage
            todo += [s for s in more if s not in seen]
            seen |= set(more)


def test_worked_solutions_come_before_what_is_sampled():
    recipe, pocket = load_recipe("smol"), load_recipe("pocket")
    assert session.list_dependencies(recipe, "distill") == ("merge/sft",)
    assert session.list_dependencies(recipe, "seeding") == ("merge/sft",)
    assert session.list_dependencies(recipe, "sft") == ("solutions",)
    assert session.list_dependencies(pocket, "seeding") == ()
    assert session.list_dependencies(pocket, "sft") == ("distill",)


def test_run_gives_the_metrics_of_a_stage_and_loads_it_then(tmp_path, capsys):
    found = begin(tmp_path, needs=("distill", "merge/sft"))
    metrics = found.run("merge/sft")
    assert metrics == found.run_dir.metrics()["merge/sft"]
    assert "loaded" in capsys.readouterr().out
    with pytest.raises(LabError, match="no stage 'merg/sft'"):
        found.run("merg/sft")


def test_start_says_what_the_last_run_took(tmp_path, capsys):
    found = begin(tmp_path)
    write_json(found.run_dir.file("notebooks/timings.json"), {"03_sft": 61.5})
    begin(tmp_path, notebook="04_dpo")
    assert "last run" not in capsys.readouterr().out
    begin(tmp_path, notebook="03_sft")
    assert "last run of 03_sft: 62 s" in capsys.readouterr().out


def test_the_cost_of_a_notebook(tmp_path, tiny_recipe, capsys):
    run = RunDir.open(tmp_path / "run", tiny_recipe)
    with run.stage("distill", {"a": "b"}) as stage:
        stage["outputs"] = []
    session.Session(tiny_recipe, run, "auto").show_cost("distill", "sft")
    said = capsys.readouterr().out
    assert "distill, when it was made: 0 s" in said and "sft" not in said
    assert "memory of this kernel" in said


def test_plain_bar_prints_one_line_at_the_end(capsys):
    bar = session.make_plain_bar()
    for _ in bar(range(50), desc="work"):
        continue
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "50/50" in out
    assert err == ""
