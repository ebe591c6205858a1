"""DPO: starts from its reference, counts ties, and says when it is dead."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from helpers.planner import count_training_steps

pytest.importorskip("trl")

import torch
from training_rows import write_pairs
from trl import DPOConfig

from helpers.base import LabError, load_recipe
from helpers.stages import check_dpo_start, dpo
from helpers.stages import trainer as training
from helpers.stages.dpo import measure_start_loss

FAST = (
    "dpo.per_device_batch=4",
    "dpo.effective_batch=4",
    "dpo.epochs=2",
    "dpo.learning_rate=1e-2",
)


@pytest.fixture
def recipe(tmp_path, tiny_recipe):
    return load_recipe(tmp_path / "tiny.yaml", FAST)


@pytest.fixture
def pairs(run, tokenizer, tiny_model_dir):
    """A run with pairs and a merged SFT model (the tiny one itself)."""
    shutil.copytree(tiny_model_dir, run.file("sft", "merged"))
    return write_pairs(run, tokenizer)


def change(tmp_path, *overrides):
    return load_recipe(tmp_path / "tiny.yaml", (*FAST, *overrides))


def test_no_pairs_are_refused_before_a_model_loads(
    recipe, run, pairs, monkeypatch
):
    run.file("pairs.jsonl").write_text("")
    monkeypatch.delattr(dpo, "train")
    with pytest.raises(LabError, match=r"pairs\.jsonl holds no pairs"):
        dpo.run_dpo(recipe, run)


def make_trainer(recipe, run, tokenizer, pairs):
    from helpers.models import load_model

    model, _ = load_model(recipe)
    return dpo.build_trainer(
        recipe, recipe.dpo, model, tokenizer, pairs, run.file("out")
    )


def read_log(run, tag="dpo"):
    lines = run.file(tag, "log.jsonl").read_text().splitlines()
    return [x for x in map(json.loads, lines) if "loss" in x]


def spoil(trainer):
    """Give the fresh adapter another start than zero."""
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)


@pytest.mark.parametrize("precompute", ["true", "false"])
def test_loss_before_any_update_is_ln_2_only_for_the_right_reference(
    tmp_path, run, tokenizer, pairs, precompute
):
    recipe = change(tmp_path, f"dpo.precompute_ref_log_probs={precompute}")
    trainer = make_trainer(recipe, run, tokenizer, pairs)
    assert trainer.ref_model is None
    loss = measure_start_loss(trainer)
    assert loss == pytest.approx(math.log(2), abs=1e-5)
    check_dpo_start(loss)
    spoil(trainer)
    with pytest.raises(LabError, match="not ln 2"):
        check_dpo_start(measure_start_loss(trainer))
    assert trainer.model.training


def test_first_step_is_all_ties_and_accuracy_zero(
    tmp_path, run, tokenizer, pairs
):
    # Without precomputing, both passes are bit for bit the same.
    recipe = change(tmp_path, "dpo.precompute_ref_log_probs=false")
    metrics = dpo.run_dpo(recipe, run)
    first, last = read_log(run)[0], read_log(run)[-1]
    assert first["tie_fraction"] == 1.0 == metrics["first_tie_fraction"]
    assert first["rewards/accuracies"] == 0.0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["tie_fraction"] == 0.0


def test_tie_fraction_counts_the_pairs_that_moved(
    tmp_path, run, tokenizer, pairs
):
    recipe = change(tmp_path, "dpo.precompute_ref_log_probs=false")
    trainer = make_trainer(recipe, run, tokenizer, pairs)
    spoil(trainer)
    row = dict(trainer.train_dataset[0])
    same = row | {"rejected_ids": row["chosen_ids"]}
    inputs = trainer._prepare_inputs(
        trainer.data_collator([row, same, same, same])
    )
    trainer.model.train()
    trainer.compute_loss(trainer.model, inputs)
    assert trainer._metrics["train"]["tie_fraction"] == [0.75]
    assert len(trainer._metrics["train"]["rewards/margins"]) == 1


def test_precomputed_reference_gives_the_same_run(
    tmp_path, run, tokenizer, pairs
):
    logs = []
    for precompute in ("true", "false"):
        recipe = change(tmp_path, f"dpo.precompute_ref_log_probs={precompute}")
        dpo.run_dpo(recipe, run, smoke_steps=4)
        logs.append(read_log(run, "smoke/dpo"))
    for ours, theirs in zip(*logs, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-3)
        assert ours["rewards/margins"] == pytest.approx(
            theirs["rewards/margins"], abs=5e-3
        )


def test_stage_trains_announces_and_is_loaded(recipe, run, pairs, capsys):
    metrics = dpo.run_dpo(recipe, run)
    assert metrics["steps"] == 12 and metrics["floor_steps"] == 10
    assert metrics["start_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics["margin"] > 0.02 and not metrics["noop"]
    assert "No-op" not in capsys.readouterr().out
    assert run.file("dpo", "adapter", "adapter_model.safetensors").is_file()
    assert dpo.run_dpo(recipe, run) == metrics
    assert "is loaded" in capsys.readouterr().out


def test_published_settings_are_called_a_noop_while_training(
    recipe, run, pairs, capsys
):
    metrics = dpo.run_dpo(recipe, run, variant="published")
    said = capsys.readouterr().out
    assert metrics["steps"] == 60 and metrics["noop"]
    assert said.count("No-op alarm at step 20") == 1
    assert metrics["sum_learning_rates"] == pytest.approx(1.5e-5, rel=0.02)
    # Accuracy alone would not have told.
    assert max(x["rewards/accuracies"] for x in read_log(run, "dpo-published"))
    assert run.file("dpo-published", "adapter").is_dir()
    assert not run.file("dpo").exists()


@pytest.mark.parametrize(("nats", "steps"), [(1.0, 20), (1e-6, 60)])
def test_a_run_that_will_show_nothing_is_ended_early(
    tmp_path, run, pairs, capsys, nats, steps
):
    recipe = change(tmp_path, f"dpo_variants.published.stop_below_nats={nats}")
    metrics = dpo.run_dpo(recipe, run, variant="published")
    assert metrics["steps"] == steps
    assert metrics["stopped_early"] == (steps == 20)
    assert ("Stopped at step 20 of 60" in capsys.readouterr().out) == (
        steps == 20
    )
    assert run.file("dpo-published", "adapter").is_dir()


def test_overfitting_is_called_while_training(
    tmp_path, run, tokenizer, pairs, capsys
):
    write_pairs(run, tokenizer, n=8)
    recipe = change(tmp_path, "dpo.epochs=15", "dpo.overfit_margin=1.0")
    metrics = dpo.run_dpo(recipe, run)
    assert metrics["overfit"]
    assert capsys.readouterr().out.count("Overfit alarm") == 1


def test_useless_pairs_are_counted_and_not_trained_on(
    tmp_path, run, tokenizer, pairs, capsys
):
    from helpers.base import write_records

    pairs[0].rejected = pairs[0].chosen
    pairs[1].rejected = pairs[1].chosen + " and so on" * 40
    write_records(run.file("pairs.jsonl"), pairs)
    recipe = change(tmp_path, "dpo.max_length=200")
    metrics = dpo.run_dpo(recipe, run, smoke_steps=1)
    assert (metrics["pairs_identical"], metrics["pairs_too_long"]) == (1, 1)
    # A smoke run trains on what its steps need and no more.
    assert metrics["pairs"] == recipe.dpo.effective_batch < len(pairs) - 2
    assert "1 over max_length" in capsys.readouterr().out


def test_answers_are_never_cut(recipe, run, tokenizer, pairs):
    # TRL's own default would cut at 1,024 tokens without a word.
    assert DPOConfig("unused", use_cpu=True).max_length == 1024
    trainer = make_trainer(recipe, run, tokenizer, pairs)
    assert trainer.args.max_length == recipe.dpo.max_length
    dpo.check_trainer(recipe, trainer, tokenizer, pairs)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    ends = (batch["input_ids"] == tokenizer.eos_token_id).sum(dim=1)
    assert ends.tolist() == [1, 1]


@pytest.mark.parametrize("legacy", [False, True])
def test_pairs_of_a_zephyr_model_are_the_tokens_that_sampling_feeds(
    tmp_path, tiny_recipe, run, legacy
):
    """Tier t4: the chat format leaves the first token to the tokenizer."""
    from tiny_models import make_llama_tokenizer

    zephyr = make_llama_tokenizer(legacy)
    pairs = write_pairs(run, zephyr)
    recipe = change(tmp_path, "dpo.precompute_ref_log_probs=false")
    trainer = make_trainer(recipe, run, zephyr, pairs)
    for row, pair in zip(trainer.train_dataset, pairs, strict=True):
        assert row["prompt_ids"] == training.encode_prompt(zephyr, pair.prompt)
        assert row["prompt_ids"].count(zephyr.bos_token_id) == 1
        for part in ("chosen_ids", "rejected_ids"):
            assert row[part][-1] == zephyr.eos_token_id


def test_variant_settings_reach_the_trainer(recipe):
    published = recipe.dpo_variant("published")
    count = count_training_steps(published, 21)
    assert (count.total, published.learning_rate) == (60, 5e-7)


def test_trl_default_learning_rate_is_not_the_published_one():
    assert DPOConfig("unused", use_cpu=True).learning_rate == 1e-6


def test_smoke_run_has_no_noop_alarm(recipe, run, pairs, capsys):
    dpo.run_dpo(recipe, run, smoke_steps=2)
    assert "No-op" not in capsys.readouterr().out
    assert run.metrics() == {}


def test_missing_parts_are_named(recipe, run, tokenizer):
    with pytest.raises(LabError, match="mathslm distill"):
        dpo.run_dpo(recipe, run)
    write_pairs(run, tokenizer)
    with pytest.raises(LabError, match="mathslm merge --model sft"):
        dpo.run_dpo(recipe, run)
    with pytest.raises(LabError, match="no DPO variant 'publish'"):
        dpo.run_dpo(recipe, run, variant="publish")


@pytest.mark.parametrize("precompute", ["true", "false"])
def test_kl_to_the_reference_is_logged(
    tmp_path, run, tokenizer, pairs, precompute
):
    """As plain torch computes it, and where one looks for it."""
    recipe = change(tmp_path, f"dpo.precompute_ref_log_probs={precompute}")
    trainer = make_trainer(recipe, run, tokenizer, pairs)
    spoil(trainer)
    rows = [trainer.train_dataset[i] for i in range(3)]
    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    trainer.model.eval()
    trainer.compute_loss(trainer.model, inputs)
    found = []
    for part in ("chosen_ids", "rejected_ids"):
        for row in rows:
            ids = torch.tensor([row["prompt_ids"] + row[part]])
            policy = mean_logprob(trainer.model, ids, len(row[part]))
            with trainer.model.disable_adapter():
                other = mean_logprob(trainer.model, ids, len(row[part]))
            found.append(math.exp(policy - other) - 1 - (policy - other))
    (logged,) = trainer._metrics["eval"]["kl"]
    assert logged == pytest.approx(sum(found) / len(found), rel=1e-3)
    assert logged > 0


def mean_logprob(model, ids, answer):
    """Mean log p of the last ``answer`` tokens."""
    with torch.no_grad():
        logits = model(ids).logits[0, -answer - 1 : -1].log_softmax(-1)
    return logits.gather(1, ids[0, -answer:, None]).mean().item()


def test_the_kl_starts_at_zero_and_ends_in_the_metrics(recipe, run, pairs):
    metrics = dpo.run_dpo(recipe, run)
    log = [row["kl"] for row in read_log(run)]
    assert log[0] == pytest.approx(0, abs=1e-8)
    assert all(kl >= 0 for kl in log) and log[-1] > 1e-4
    assert metrics["kl"] == log[-1]


def test_a_check_looks_at_all_but_the_model(
    tmp_path, recipe, run, pairs, monkeypatch
):
    monkeypatch.setattr(dpo, "load_model", None)
    assert dpo.run_dpo(recipe, run, check=True) == {}
    assert dpo.run_dpo(recipe, run, variant="published", check=True) == {}
    assert not run.file("dpo").exists() and not run.ledger()
    with pytest.raises(LabError, match="No preference pair can be used"):
        dpo.run_dpo(change(tmp_path, "dpo.max_length=5"), run, check=True)
