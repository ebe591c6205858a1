"""The sweep trains what is missing, and never shows another run's row."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("trl")

from training_rows import write_pairs

from helpers.base import LabError, load_recipe, read_json, write_json
from helpers.experiments.dpo_sweep import (
    RESULT,
    Setting,
    open_trial,
    run_sweep,
)
from helpers.problems import load_problems

SETTING = Setting(5e-4, 0.1, 2)


@pytest.fixture
def ready(run, tokenizer, tiny_model_dir):
    """A run with pairs and a merged SFT model (the tiny one itself)."""
    shutil.copytree(tiny_model_dir, run.file("sft", "merged"))
    write_pairs(run, tokenizer)
    run.save_recipe()
    return run


def read_lines(run):
    text = run.file(RESULT).read_text("utf-8")
    return [json.loads(x) for x in text.splitlines() if x.endswith("}")]


def test_neighbouring_learning_rates_have_names_of_their_own():
    rates = (1.5e-6, 1.6e-6, 2e-6, 5.4e-6, 5e-6)
    names = [Setting(rate, 0.1, 60).name for rate in rates]
    assert len(set(names)) == len(rates)
    assert Setting(2e-4, 0.1, 60).name == "lr2e-04-b0.1-s60"


def test_a_row_of_other_problems_or_pairs_is_not_taken(
    tiny_recipe, ready, tokenizer
):
    n = len(load_problems(tiny_recipe.data.dev))
    (first,) = run_sweep(tiny_recipe, ready, [SETTING], n_dev=2)
    assert first["n"] == 2 and read_lines(ready) == [first]
    assert run_sweep(tiny_recipe, ready, [SETTING], n_dev=2) == [first]
    assert len(read_lines(ready)) == 1, "it was not trained again"
    (all_of_them,) = run_sweep(tiny_recipe, ready, [SETTING])
    assert all_of_them["n"] == n > 2
    shutil.rmtree(ready.file("sweep"))
    write_pairs(ready, tokenizer, n=9, seed=1)
    (other,) = run_sweep(tiny_recipe, ready, [SETTING], n_dev=2)
    assert other["pairs"] == 9


def test_a_kill_between_training_and_row_is_gone_on_from(tiny_recipe, ready):
    """The second start copies the run's metrics, and keeps the trial's."""
    (row,) = run_sweep(tiny_recipe, ready, [SETTING], n_dev=2)
    ready.file(RESULT).write_text('{"name": "lr5e-', encoding="utf-8")
    metrics = ready.metrics()
    write_json(ready.file("metrics.json"), metrics | {"sft": {"loss": 1.0}})
    trial = open_trial(tiny_recipe, ready)
    kept = read_json(trial.file("metrics.json"))
    assert kept["sft"] == {"loss": 1.0}
    assert kept[f"dpo-{SETTING.name}"]["margin"] == row["margin"]
    (again,) = run_sweep(tiny_recipe, ready, [SETTING], n_dev=2)
    assert again == row
    assert read_lines(ready) == [row], "the torn line is cut, not glued on"


def test_a_run_without_sft_is_refused(tiny_recipe, run):
    with pytest.raises(LabError, match="no merged SFT model"):
        run_sweep(tiny_recipe, run, [SETTING])


def test_the_recipe_is_part_of_a_row(tmp_path, tiny_recipe, ready):
    from helpers.experiments.dpo_sweep import describe_start

    other = load_recipe(tmp_path / "tiny.yaml", ("seed=7",))
    assert describe_start(tiny_recipe, ready, []) != describe_start(
        other, ready, []
    )
