"""Merging: exact in fp32, and honest about what 16 bits keep."""

from __future__ import annotations

import pytest

pytest.importorskip("peft")

import torch
from training_rows import save_adapter

from helpers.base import LabError, load_recipe, read_json
from helpers.planner import sum_learning_rates
from helpers.stages import merge


@pytest.fixture
def loaded(tiny_recipe):
    from helpers.models import load_model

    return load_model(tiny_recipe)


@pytest.fixture
def adapted(run, loaded):
    """A run with an SFT adapter that changes the model visibly."""
    save_adapter(loaded[0], run.file("sft", "adapter"), scale=0.05)
    return run


def test_fp32_merge_keeps_the_update_and_the_logits(tiny_recipe, adapted):
    fidelity = merge.run_merge(tiny_recipe, adapted, "sft")
    assert fidelity["cosine"] == pytest.approx(1, abs=1e-5)
    assert fidelity["norm_kept"] == pytest.approx(1, abs=1e-4)
    assert fidelity["max_abs_logit_diff"] < 1e-3
    assert 0 < fidelity["greedy_total"] == fidelity["greedy_agree"]
    assert fidelity["dtype"] == "float32"
    stored = read_json(adapted.file("sft", "merge_fidelity.json"))
    assert stored == fidelity == adapted.metrics()["merge/sft"]


def test_merged_folder_is_a_plain_model_unlike_its_base(tiny_recipe, adapted):
    from helpers.models import load_model

    merge.run_merge(tiny_recipe, adapted, "sft")
    merged, tokenizer = load_model(tiny_recipe, adapted.file("sft", "merged"))
    base, _ = load_model(tiny_recipe)
    assert type(merged) is type(base)
    changed = {
        name.split(".")[-2]
        for name, weight in merged.state_dict().items()
        if not torch.equal(weight, base.state_dict()[name])
    }
    assert changed == {"q_proj", "v_proj", "up_proj", "down_proj"}
    assert tokenizer.chat_template
    assert not adapted.file("sft", "merged.partial").exists()


def test_second_merge_is_loaded(tiny_recipe, adapted, capsys):
    first = merge.run_merge(tiny_recipe, adapted, "sft")
    assert merge.run_merge(tiny_recipe, adapted, "sft") == first
    assert "is loaded" in capsys.readouterr().out


def test_a_merge_of_an_earlier_adapter_is_not_used(
    tiny_recipe, adapted, loaded
):
    from helpers.stages import dpo, evaluate

    merge.run_merge(tiny_recipe, adapted, "sft")
    dpo.find_base(tiny_recipe, adapted, smoke=False)
    save_adapter(loaded[0], adapted.file("dpo", "adapter"), scale=0.05)
    save_adapter(loaded[0], adapted.file("sft", "adapter"), scale=0.07)
    for use in (
        lambda: dpo.find_base(tiny_recipe, adapted, smoke=False),
        lambda: merge.run_merge(tiny_recipe, adapted, "dpo"),
        lambda: evaluate.run_evaluate(tiny_recipe, adapted, ("sft",)),
    ):
        with pytest.raises(LabError, match="merge --model sft .*--force"):
            use()
    merge.run_merge(tiny_recipe, adapted, "sft", force=True)
    dpo.find_base(tiny_recipe, adapted, smoke=False)


@pytest.mark.parametrize("text", [None, ""])
def test_missing_dev_problems_are_refused_before_a_model_loads(
    tiny_recipe, adapted, monkeypatch, text
):
    from pathlib import Path

    dev = Path(tiny_recipe.data.dev)
    dev.unlink()
    if text is not None:
        dev.write_text(text)
    monkeypatch.delattr(merge, "load_unmerged")
    with pytest.raises(LabError, match="bench.jsonl"):
        merge.run_merge(tiny_recipe, adapted, "sft")


def test_timid_update_is_erased_by_bf16_and_a_strong_one_is_not(
    tiny_recipe, run, loaded
):
    # The tiny model's weights are about 0.3: 15 times the usual 0.02.
    travel = sum_learning_rates(5e-7, 60, 0.03) * 15
    kept = {}
    for name, scale in (("timid", travel), ("strong", 0.5)):
        save_adapter(loaded[0], run.file("sft", "adapter"), scale=scale)
        kept[name] = merge.measure_fidelity(tiny_recipe, run, "sft")
    assert kept["timid"]["entries_changed"] < 0.3
    assert kept["timid"]["cosine"] < 0.5
    assert kept["strong"]["entries_changed"] > 0.9
    assert kept["strong"]["cosine"] > 0.99
    assert kept["timid"]["dtype"] == "bfloat16"


def test_another_dtype_is_measured_without_writing(tiny_recipe, adapted):
    before = sorted(adapted.path.rglob("*"))
    fidelity = merge.measure_fidelity(tiny_recipe, adapted, "sft", "float16")
    assert sorted(adapted.path.rglob("*")) == before
    assert fidelity["max_abs_logit_diff"] > 0
    assert fidelity.keys() >= {"cosine", "greedy_agree", "dtype"}


def test_update_is_measured_as_plain_torch_measures_it(tiny_recipe, adapted):
    model, _ = merge.load_unmerged(
        tiny_recipe, adapted.file("sft", "adapter"), tiny_recipe.model.id
    )
    measured = merge.measure_update(model, torch.bfloat16)
    before = {n: w.clone() for n, w in base_weights(model).items()}
    after = model.merge_and_unload().state_dict()
    meant = torch.cat([(after[n] - w).flatten() for n, w in before.items()])
    stored = torch.cat(
        [
            (after[n].bfloat16().float() - w.bfloat16().float()).flatten()
            for n, w in before.items()
        ]
    )
    cosine = torch.cosine_similarity(meant, stored, dim=0).item()
    assert measured["cosine"] == pytest.approx(cosine, abs=1e-4)
    assert measured["norm_kept"] == pytest.approx(
        (stored.norm() / meant.norm()).item(), rel=1e-4
    )
    assert measured["entries_changed"] == pytest.approx(
        (stored != 0).float().mean().item(), abs=1e-4
    )


def base_weights(model):
    """Weights under an adapter, by their name in the merged model."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): w
        for name, w in model.state_dict().items()
        if ".base_layer." in name
    }


def test_zero_adapter_changes_nothing(tiny_recipe, run, loaded):
    save_adapter(loaded[0], run.file("sft", "adapter"), scale=0.0)
    fidelity = merge.run_merge(tiny_recipe, run, "sft")
    assert fidelity["entries_changed"] == 0
    assert fidelity["max_abs_logit_diff"] == 0


def test_bf16_recipe_stores_bf16(tmp_path, tiny_recipe, adapted):
    recipe = load_recipe(tmp_path / "tiny.yaml", ["model.dtype=bfloat16"])
    from helpers.base import RunDir

    run = RunDir.open(tmp_path / "bf16", recipe)
    adapted.file("sft").rename(run.file("sft"))
    fidelity = merge.run_merge(recipe, run, "sft")
    assert fidelity["dtype"] == "bfloat16"
    assert 0.9 < fidelity["cosine"] < 1
    config = read_json(run.file("sft", "merged", "config.json"))
    assert config["dtype"] == "bfloat16"


def test_dpo_merge_stands_on_the_merged_sft_model(
    tiny_recipe, adapted, loaded
):
    save_adapter(loaded[0], adapted.file("dpo", "adapter"), 0.05, seed=1)
    with pytest.raises(LabError, match="merge --model sft"):
        merge.run_merge(tiny_recipe, adapted, "dpo")
    merge.run_merge(tiny_recipe, adapted, "sft")
    fidelity = merge.run_merge(tiny_recipe, adapted, "dpo")
    assert fidelity["cosine"] == pytest.approx(1, abs=1e-5)
    assert adapted.file("dpo", "merged", "config.json").is_file()


@pytest.mark.parametrize("tag", ["base", "sft-x", "grpo"])
def test_unknown_tag_is_refused(tiny_recipe, run, tag):
    with pytest.raises(LabError, match="no adapter"):
        merge.run_merge(tiny_recipe, run, tag)


def test_missing_adapter_and_variant_are_named(tiny_recipe, run):
    with pytest.raises(LabError, match="make it first: mathslm sft"):
        merge.run_merge(tiny_recipe, run, "sft")
    with pytest.raises(LabError, match="--variant published"):
        merge.run_merge(tiny_recipe, run, "dpo-published")
    with pytest.raises(LabError, match="Did you mean 'published'"):
        merge.run_merge(tiny_recipe, run, "dpo-publisht")


def test_a_check_looks_at_all_but_the_model(tiny_recipe, adapted, monkeypatch):
    monkeypatch.setattr(merge, "load_model", None)
    assert merge.run_merge(tiny_recipe, adapted, "sft", check=True) == {}
    assert not adapted.file("sft", "merged").exists()
    with pytest.raises(LabError, match="make it first: mathslm dpo"):
        merge.run_merge(tiny_recipe, adapted, "dpo", check=True)
