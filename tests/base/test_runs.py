"""Run folders: reopened, refused, resumed, and never overwritten."""

from __future__ import annotations

import pytest

from helpers.base import (
    REPO_ROOT,
    LabError,
    RunDir,
    Tag,
    hash_file,
    load_recipe,
    name_folder,
    read_json,
    require_space,
    resolve_data,
)


@pytest.fixture
def run(tmp_path):
    return RunDir.open(tmp_path / "run", load_recipe("pocket"))


def finish(run, stage="sft", inputs=None):
    with run.stage(stage, inputs or {"a": "1"}) as record:
        run.file("out.txt").write_text("result")
        record.update(outputs=["out.txt"], metrics={"loss": 1.5})


def test_a_finished_stage_is_found_again(run):
    assert not run.is_done("sft", {"a": "1"})
    finish(run)
    again = RunDir.open(run.path, run.recipe)
    assert again.is_done("sft", {"a": "1"})
    assert again.metrics()["sft"] == {"loss": 1.5}
    assert [p["phase"] for p in again.ledger()] == ["sft"]


def test_missing_output_means_not_done(run):
    finish(run)
    run.file("out.txt").unlink()
    assert not run.is_done("sft", {"a": "1"})


def test_other_inputs_are_refused_and_force_sets_aside(run):
    finish(run)
    with pytest.raises(LabError, match=r"changed: a\)"):
        run.is_done("sft", {"a": "2"})
    assert not run.is_done("sft", {"a": "2"}, force=True)
    assert run.file("old", "1-sft", "out.txt").read_text() == "result"
    finish(run, inputs={"a": "2"})
    assert not run.is_done("sft", {"a": "2"}, force=True)
    assert run.file("old", "2-sft", "out.txt").exists()


def test_a_failed_stage_records_nothing(run):
    with pytest.raises(RuntimeError), run.stage("sft", {}):
        raise RuntimeError("stop")
    assert run.metrics() == {} and run.ledger() == []


def test_folder_of_another_recipe_is_refused(run):
    other = load_recipe("pocket", ("seed=1",))
    with pytest.raises(LabError, match="another recipe"):
        RunDir.open(run.path, other)
    assert read_json(run.file("manifest.json"))["seed"] == 42


def test_changed_settings_keep_the_folder(run):
    RunDir.open(run.path, load_recipe("pocket", ("sft.epochs=1",)))


def test_the_stored_recipe_is_that_of_the_latest_finished_stage(run):
    before = run.file("recipe.yaml").read_text()
    finish(run)
    other = RunDir.open(run.path, load_recipe("pocket", ("sft.epochs=1",)))
    with pytest.raises(LabError, match="changed: a"):
        other.is_done("sft", {"a": "2"})
    with pytest.raises(RuntimeError), other.stage("dpo", {}):
        raise RuntimeError("stop")
    assert run.file("recipe.yaml").read_text() == before
    finish(other, "dpo")
    assert load_recipe(run.file("recipe.yaml")) == other.recipe


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(LabError, match="does not look like a run folder"):
        RunDir.open(tmp_path, load_recipe("pocket"))


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(LabError, match="Cannot write"):
        RunDir.open(tmp_path / "run", load_recipe("pocket"))


def test_space_is_checked_before_work(tmp_path):
    require_space(tmp_path / "not" / "there", 1)
    with pytest.raises(LabError, match="are needed"):
        require_space(tmp_path, 10**9)


def test_data_override_folder(tmp_path, monkeypatch):
    (tmp_path / "set.jsonl").write_text("{}")
    assert resolve_data("set.jsonl") != tmp_path / "set.jsonl"
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(tmp_path))
    assert resolve_data("set.jsonl") == tmp_path / "set.jsonl"


def test_hash_sees_names_and_bytes(tmp_path):
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_text("x"), two.write_text("x")
    assert hash_file(one) != hash_file(two)
    before = hash_file(tmp_path)
    two.write_text("y")
    assert hash_file(tmp_path) != before


def test_nothing_has_no_hash(tmp_path):
    with pytest.raises(LabError, match="no file or folder"):
        hash_file(tmp_path / "none.jsonl")


def test_folders_are_named_without_this_machine(tmp_path):
    assert name_folder(REPO_ROOT / "runs" / "x") == "runs/x"
    assert name_folder("someone/a-model") == "someone/a-model"
    assert name_folder(tmp_path) == tmp_path.resolve().as_posix()


@pytest.mark.parametrize("text", ["base", "sft", "dpo", "dpo-published"])
def test_a_tag_is_read_and_written(text):
    tag = Tag.parse(text)
    assert str(tag) == text
    assert tag.variant == ("published" if "-" in text else None)


def test_a_tag_that_is_none():
    assert Tag.parse("dpo-a-b").variant == "a-b"
    assert Tag.parse("dpo-published").options == "dpo --variant published"
    for text in ("", "grpo", "sft-x", "base-x", "DPO"):
        with pytest.raises(LabError, match=f"no model '{text}'"):
            Tag.parse(text)
    with pytest.raises(LabError, match="no adapter 'base'"):
        Tag.parse("base", trained=True)
