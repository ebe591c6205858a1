"""Records of finished runs: packed, checked, taken back, replayed."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil

import pytest

from helpers import replay as recording
from helpers.base import (
    DATA_DIR,
    Completion,
    LabError,
    RunDir,
    read_json,
    read_records,
    write_json,
    write_records,
)
from helpers.grading import read_graded
from helpers.replay import INDEX, record_run, take_stage
from helpers.sampling import open_samples
from helpers.session import Session

SHIPPED = sorted(
    path.parent for path in (DATA_DIR / "measured").glob("*/run/recipe.yaml")
)


def check_record(folder):
    """What is wrong with a record: files missing, changed or unlisted."""
    listed = read_json(folder / INDEX)["sha256"]
    there = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != INDEX
    }
    faults = [f"{name}: not in {INDEX}" for name in there - set(listed)]
    for name, digest in listed.items():
        if name not in there:
            faults.append(f"{name}: missing")
        elif (
            hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
        ):
            faults.append(f"{name}: changed")
    return sorted(faults)


def make_rows(n=40):
    """Completions, right and wrong in turn."""
    return [
        Completion(
            problem_id=f"p{i}",
            sample=0,
            prompt="What is 2 + 2?",
            response=rf"\boxed{{{4 + i % 2}}}",
            finish_reason="stop",
            tokens=6,
            mean_logprob=-0.5,
            seed=i,
            gold="4",
        )
        for i in range(n)
    ]


def show_seen(session):
    """A notebook's value, kept under the name '03 seen'."""

    @session.recorded("03 {what}")
    def show(what="seen"):
        return 1, "two"

    return show()


@pytest.fixture
def kept(tmp_path, tiny_recipe, monkeypatch):
    """A finished run: one sampled stage, one merge, one value."""
    monkeypatch.setattr("helpers.base.run.DATA_DIR", tmp_path / "data")
    run = RunDir.open(tmp_path / "kept", tiny_recipe)
    with run.stage("distill", {"model": "m"}) as stage:
        run.file("samples").mkdir()
        write_records(run.file("samples", "distill.jsonl"), make_rows())
        run.file("sft.jsonl").write_text("row\n")
        stage["outputs"] = ["samples/distill.jsonl", "sft.jsonl"]
        stage["metrics"] = {"n": 8}
    with run.stage("merge/sft", {"model": "m"}) as stage:
        run.file("sft", "merged").mkdir(parents=True)
        run.file("sft", "merged", "model.safetensors").write_bytes(b"w" * 999)
        run.file("sft", "merge_fidelity.json").write_text("{}")
        stage["outputs"] = ["sft/merged", "sft/merge_fidelity.json"]
        stage["metrics"] = {"cosine": 1.0}
    show_seen(Session(run.recipe, run, "auto"))
    return run


def test_a_record_holds_all_but_the_weights(kept, tmp_path):
    folder = record_run(kept, ["distill", "merge/sft"])
    assert folder == tmp_path / "data" / "measured" / "tiny" / "run"
    packed = (folder / "samples" / "distill.jsonl.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    rows = [Completion.model_validate_json(line) for line in lines]
    assert [row.response for row in rows] == [x.response for x in make_rows()]
    assert (folder / "sft" / "merge_fidelity.json").is_file()
    assert not (folder / "sft" / "merged").exists()
    assert not (folder / "stages" / "merge-sft.json").exists()
    assert (folder / "tokenizer" / "tokenizer.json").is_file()
    assert check_record(folder) == []


def test_heavy_parts_of_an_adapter_are_listed_only(
    kept, tmp_path, tiny_recipe, monkeypatch
):
    """Such a record is for replay; nothing is computed further from it."""
    kept.file("sft", "adapter").mkdir()
    weights = kept.file("sft", "adapter", "adapter_model.safetensors")
    weights.write_bytes(b"w" * 2000)
    kept.file("sft", "adapter", "adapter_config.json").write_text("{}")
    with kept.stage("sft", {"rows": 1}) as stage:
        stage["outputs"] = ["sft/adapter"]
        stage["metrics"] = {"loss": 1.0}
    monkeypatch.setattr(recording, "HEAVY", 1000)
    folder = record_run(kept, ["distill", "sft"])
    assert check_record(folder) == []
    index = read_json(folder / recording.INDEX)
    assert list(index["left_out"]) == ["sft/adapter/adapter_model.safetensors"]
    run = RunDir.open(tmp_path / "again", tiny_recipe)
    assert not take_stage(run, "sft")
    assert not take_stage(run, "distill")
    assert take_stage(run, "sft", replay=True)
    assert run.file("sft", "adapter", "adapter_config.json").is_file()
    assert not run.file("sft", "adapter", weights.name).exists()
    assert run.metrics()["sft"] == {"loss": 1.0}


def test_the_same_run_is_packed_into_the_same_bytes(kept, tmp_path):
    first = record_run(kept, ["distill"], tmp_path / "one")
    second = record_run(kept, ["distill"], tmp_path / "two")
    hashes = [
        read_json(f / recording.INDEX)["sha256"] for f in (first, second)
    ]
    assert hashes[0] == hashes[1]


def test_an_unfinished_run_is_not_recorded(kept, tmp_path):
    with pytest.raises(LabError, match="has not finished: sft, dpo"):
        record_run(kept, ["distill", "sft", "dpo"])
    assert not (tmp_path / "data" / "measured").exists()


def test_a_stage_comes_back_as_it_was(kept, tmp_path, tiny_recipe):
    record_run(kept, ["distill", "merge/sft"])
    run = RunDir.open(tmp_path / "other", tiny_recipe)
    assert take_stage(run, "distill")
    name = "sft.jsonl"
    assert run.file(name).read_bytes() == kept.file(name).read_bytes()
    name = "samples/distill.jsonl"
    before, after = (read_graded(x.file(name)) for x in (kept, run))
    assert after == before
    assert run.metrics() == {"distill": {"n": 8}}
    assert not take_stage(run, "merge/sft"), "weights are not recorded"


@pytest.mark.parametrize("name", ["sft.jsonl", "samples/distill.jsonl.gz"])
def test_a_damaged_record_is_refused(kept, tmp_path, tiny_recipe, name):
    folder = record_run(kept, ["distill"])
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    assert check_record(folder) == [f"{name}: changed"]
    run = RunDir.open(tmp_path / "other", tiny_recipe)
    with pytest.raises(LabError, match="damaged"):
        take_stage(run, "distill")
    assert run.metrics() == {}


def test_missing_and_foreign_files_are_named(kept):
    folder = record_run(kept, ["distill"])
    (folder / "sft.jsonl").rename(folder / "else.jsonl")
    assert check_record(folder) == [
        "else.jsonl: not in record.json",
        "sft.jsonl: missing",
    ]


def test_values_are_the_same_live_and_replayed(kept, tmp_path, tiny_recipe):
    live = show_seen(Session(tiny_recipe, kept, "auto"))
    record_run(kept, ["distill"])
    run = RunDir.open(tmp_path / "other", tiny_recipe)
    replayed = Session(tiny_recipe, run, "replay")

    @replayed.recorded("03 seen")
    def fail():
        pytest.fail("computed")

    @replayed.recorded("04 other")
    def other():
        pytest.fail("computed")

    assert fail() == live == [1, "two"]
    assert replayed.run("distill") == {"n": 8}
    with pytest.raises(LabError, match="no value '04 other'"):
        other()


def test_the_name_of_a_value_holds_the_arguments(kept, tiny_recipe):
    @Session(tiny_recipe, kept, "auto").recorded("03 {n} x T = {t}")
    def ask(n, t=1.0):
        return n * t

    assert (ask(4), ask(1, t=0.0)) == (4.0, 0.0)
    values = read_json(kept.file(recording.VALUES))
    assert values["03 4 x T = 1.0"] == 4.0 and values["03 1 x T = 0.0"] == 0.0


@pytest.mark.parametrize("verdict", [{}, {"correct": True, "grader": "1.0"}])
def test_completions_come_back_graded(
    kept, tmp_path, tiny_recipe, monkeypatch, verdict
):
    """By today's grader, whatever verdict a record may hold."""
    rows = [Completion(**row.model_dump() | verdict) for row in make_rows(4)]
    computed = Session(tiny_recipe, kept, "auto")
    live = computed.recorded("x", rows=Completion)(lambda: rows)()
    record_run(kept, ["distill"])
    run = RunDir.open(tmp_path / "other", tiny_recipe)
    replayed = Session(tiny_recipe, run, "replay")
    again = replayed.recorded("x", rows=Completion)(lambda: None)()
    assert again == live
    assert [row.correct for row in live] == [True, False, True, False]


def test_a_record_keeps_verdicts_as_a_cross_check(kept, tmp_path):
    """Whatever the run's file held, the record has the verdict of its day."""
    path = kept.file("samples", "distill.jsonl")
    wrong = [Completion(**r.model_dump(), correct=True) for r in make_rows()]
    plain = record_run(kept, ["distill"], tmp_path / "plain")
    write_records(path, wrong)
    told = record_run(kept, ["distill"], tmp_path / "told")
    packed = [f / "samples" / "distill.jsonl.gz" for f in (plain, told)]
    assert packed[0].read_bytes() == packed[1].read_bytes()
    lines = gzip.decompress(packed[0].read_bytes()).decode().splitlines()
    found = [json.loads(line) for line in lines]
    assert [x["correct"] for x in found] == [True, False] * 20
    assert found[1]["extracted"] == "5"


@pytest.mark.parametrize("record", SHIPPED, ids=lambda p: p.parent.name)
def test_recorded_verdicts_are_those_of_todays_grader(record):
    paths = sorted(record.glob("eval/*/*.jsonl"))
    assert paths
    for path in paths:
        kept = [r.correct for r in read_records(path, Completion)]
        assert [r.correct for r in read_graded(path)] == kept, path


def test_a_replayed_run_is_not_recorded(kept, tmp_path, tiny_recipe):
    """It would pass for what this machine computed."""
    folder = record_run(kept, ["distill"])
    run = RunDir.open(tmp_path / "other", tiny_recipe)
    assert take_stage(run, "distill", replay=True)
    with pytest.raises(LabError, match="replayed stages: distill"):
        record_run(run, ["distill", "merge/sft"])
    assert check_record(folder) == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_record_replaces_nothing_but_a_record(kept, tmp_path, kind):
    out = tmp_path / "mine"
    file = out if kind == "file" else out / "thesis.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text("years")
    with pytest.raises(LabError, match="holds no record.json"):
        record_run(kept, ["distill"], out)
    assert file.read_text() == "years"
    file.unlink()
    for _ in range(2):  # into nothing, then over a record
        assert check_record(record_run(kept, ["distill"], out)) == []
    assert not list(tmp_path.glob(".record-*"))


def test_timings_lie_beside_the_default_place_only(kept, tmp_path):
    write_json(kept.file("notebooks", "timings.json"), {"02": 1.0})
    folder = record_run(kept, ["distill"])
    assert (folder.parent / "timings.json").is_file()
    assert not (folder / "timings.json").exists()
    out = record_run(kept, ["distill"], tmp_path / "out" / "run")
    assert check_record(out) == [] and (out / "timings.json").is_file()
    assert [path.name for path in out.parent.iterdir()] == ["run"]


def test_recorded_samples_can_be_extended(kept, tmp_path, tiny_recipe):
    path = DATA_DIR / "measured" / "pocket" / "run" / "eval" / "base"
    rows = read_records(path / "hard.jsonl", Completion)[:3]
    inputs = {"model": "m"}
    with kept.stage("evaluate/base", inputs) as stage:
        open_samples(kept, "eval/base/hard.jsonl", inputs)
        write_records(kept.file("eval/base/hard.jsonl"), rows)
        open_samples(kept, "samples/more.jsonl", inputs)
        write_records(kept.file("samples/more.jsonl"), rows)
        stage["outputs"] = ["eval/base/hard.jsonl", "samples/more.jsonl"]
    folder = record_run(kept, ["evaluate/base"])
    assert check_record(folder) == []
    run = RunDir.open(tmp_path / "other", tiny_recipe)
    assert take_stage(run, "evaluate/base")
    for name in ("eval/base/hard.jsonl", "samples/more.jsonl"):
        assert open_samples(run, name, inputs).rows == 3
        with pytest.raises(LabError, match="changed: model"):
            open_samples(run, name, {"model": "other"})


def test_an_interrupted_take_is_done_again(
    kept, tmp_path, tiny_recipe, monkeypatch
):
    record_run(kept, ["distill"])
    run = RunDir.open(tmp_path / "late", tiny_recipe)
    for _ in range(2):  # killed at the very end, and again
        assert take_stage(run, "distill", replay=True)
        recording.stage_file(run.path, "distill").unlink()
    run = RunDir.open(tmp_path / "other", tiny_recipe)

    def die(source, target):
        if target.name == "sft.jsonl":
            raise KeyboardInterrupt
        shutil.move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(recording.os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            take_stage(run, "distill", replay=True)
    assert run.file("samples", "distill.jsonl").is_file()
    assert not run.file("sft.jsonl").exists()
    assert take_stage(run, "distill", replay=True)
    assert run.file("sft.jsonl").read_text() == "row\n"


def test_one_output_of_ones_own_keeps_them_all(kept, tmp_path, tiny_recipe):
    """Also beside others that are the record's, and inside a folder."""
    with kept.stage("sft", {"rows": 1}) as stage:
        kept.file("sft", "adapter").mkdir()
        kept.file("sft", "adapter", "weights").write_text("w")
        stage["outputs"] = ["sft/adapter"]
    record_run(kept, ["distill", "sft"])
    run = RunDir.open(tmp_path / "other", tiny_recipe)
    run.file("sft", "adapter").mkdir(parents=True)
    for name in ("sft.jsonl", "sft/adapter/mine"):
        run.file(name).write_text("mine")
    shutil.copytree(kept.file("samples"), run.file("samples"))
    for stage in ("distill", "sft"):
        assert not take_stage(run, stage, replay=True)
    assert run.file("sft.jsonl").read_text() == "mine"
    assert not run.file("sft", "adapter", "weights").exists()
    assert run.metrics() == {}


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.parent.name)
def test_shipped_records_are_whole(folder):
    assert check_record(folder) == []
