"""Records of finished runs: packed, checked, taken back, replayed."""

from __future__ import annotations

import gzip

import pytest

from helpers import recording
from helpers.errors import LabError
from helpers.recording import Values, check_record, record_run, take_stage
from helpers.records import Completion, read_json, read_records
from helpers.runs import DATA_DIR, RunDir

SHIPPED = sorted(
    path.parent for path in (DATA_DIR / "measured").glob("*/run/recipe.yaml")
)


@pytest.fixture
def kept(tmp_path, tiny_recipe, monkeypatch):
    """A finished run: one sampled stage, one merge, one value."""
    monkeypatch.setattr(recording, "DATA_DIR", tmp_path / "data")
    run = RunDir.open(tmp_path / "kept", tiny_recipe)
    with run.stage("distill", {"model": "m"}) as stage:
        run.file("samples").mkdir()
        run.file("samples", "distill.jsonl").write_text("sampled\n" * 99)
        run.file("sft.jsonl").write_text("row\n")
        stage["outputs"] = ["samples/distill.jsonl", "sft.jsonl"]
        stage["metrics"] = {"n": 8}
    with run.stage("merge/sft", {"model": "m"}) as stage:
        run.file("sft", "merged").mkdir(parents=True)
        run.file("sft", "merged", "model.safetensors").write_bytes(b"w" * 999)
        run.file("sft", "merge_fidelity.json").write_text("{}")
        stage["outputs"] = ["sft/merged", "sft/merge_fidelity.json"]
        stage["metrics"] = {"cosine": 1.0}
    Values(run, replay=False).recall("03 seen", lambda: (1, "two"))
    return run


def test_a_record_holds_all_but_the_weights(kept, tmp_path):
    folder = record_run(kept, ["distill", "merge/sft"])
    assert folder == tmp_path / "data" / "measured" / "tiny" / "run"
    packed = (folder / "samples" / "distill.jsonl.gz").read_bytes()
    assert gzip.decompress(packed).decode() == "sampled\n" * 99
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
    for name in ("samples/distill.jsonl", "sft.jsonl"):
        assert run.file(name).read_bytes() == kept.file(name).read_bytes()
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
    live = Values(kept, replay=False).recall("03 seen", lambda: (1, "two"))
    record_run(kept, ["distill"])
    run = RunDir.open(tmp_path / "other", tiny_recipe)
    replayed = Values(run, replay=True)
    fail = lambda: pytest.fail("computed")  # noqa: E731
    assert replayed.recall("03 seen", fail) == live == [1, "two"]
    assert replayed.recall("distill", fail) == {"n": 8}
    with pytest.raises(LabError, match="no value '04 other'"):
        replayed.recall("04 other", fail)


def test_completions_are_recalled_as_completions(tmp_path, tiny_recipe):
    path = DATA_DIR / "measured" / "pocket" / "run" / "eval" / "base"
    rows = read_records(path / "hard.jsonl", Completion)[:3]
    run = RunDir.open(tmp_path / "run", tiny_recipe)
    values = Values(run, replay=False)
    assert values.recall("x", lambda: rows, rows=Completion) == rows


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.parent.name)
def test_shipped_records_are_whole(folder):
    assert check_record(folder) == []
