"""Sessions: what a notebook finds, replays or computes; bad input refused."""

from __future__ import annotations

import pytest

from helpers import session
from helpers.errors import LabError
from helpers.recipes import load_recipe
from helpers.records import read_json
from helpers.runs import DATA_DIR

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
    assert found.run.metrics()["distill"] == metrics["distill"]
    assert found.provenance("distill").startswith("recorded on 20")
    assert found.run.file("eval", "sft", "main.jsonl").is_file()
    assert found.provenance("sft") == "live"


def test_replayed_stage_is_loaded_not_computed(tmp_path, capsys):
    from helpers.distill import run_distill

    found = begin(tmp_path, mode="replay", makes=("distill",))
    metrics = run_distill(found.recipe, found.run)
    assert metrics == read_json(RECORD / "metrics.json")["distill"]
    assert "loaded" in capsys.readouterr().out


def test_replay_with_other_settings_is_refused(tmp_path):
    with pytest.raises(LabError, match="No recorded 'distill'"):
        begin(tmp_path, mode="replay", seed=7, makes=("distill",))


def test_needs_come_from_the_record_and_merges_are_made(tmp_path, capsys):
    found = begin(tmp_path, needs=("distill", "merge/sft"))
    said = capsys.readouterr().out
    assert "distill: taken from the recorded run" in said
    assert "sft: taken from the recorded run" in said
    assert "merge/sft: not there yet, computed now" in said
    assert found.run.file("sft", "merged", "config.json").is_file()
    begin(tmp_path, needs=("distill", "merge/sft"))
    assert "merge/sft: found" in capsys.readouterr().out


def test_recorded_dpo_is_loaded_on_a_merge_made_here(tmp_path, capsys):
    """The merged model is known by its parts, not by its last bits."""
    from helpers.dpo import run_dpo

    found = begin(tmp_path, needs=("merge/sft", "dpo"))
    run_dpo(found.recipe, found.run)
    assert "DPO is done" in capsys.readouterr().out


def test_stages_name_their_needs():
    for stage, needs in session.NEEDS.items():
        assert set(needs) <= set(session.NEEDS), stage


def test_plain_bar_prints_one_line_at_the_end(capsys):
    bar = session.make_plain_bar()
    for _ in bar(range(50), desc="work"):
        continue
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "50/50" in out
    assert err == ""
