"""QLoRA with the real libraries: train on 4 and 8 bits, merge, evaluate."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("bitsandbytes")

import torch
from training_rows import save_adapter, write_pairs, write_sft_rows

from helpers.base import LabError, RunDir, load_recipe, read_json
from helpers.models import find_base, load_model, measure_fp32, widen_adapter
from helpers.models.load import is_quantized
from helpers.planner import find_shape
from helpers.planner.workload import count_weight_bytes
from helpers.stages import dpo, evaluate, merge, merge_base, sft

QUICK = (
    "sft.epochs=1",
    "sft.effective_batch=4",
    "sft.per_device_batch=4",
    "sft.min_steps_per_epoch=1",
    "sft.max_length=200",
    "dpo.effective_batch=4",
    "dpo.per_device_batch=2",
    "dpo.max_length=200",
)


def make_run(tmp_path, tiny_recipe, kind, *changes):
    """A run of the tiny recipe in this quantization."""
    path = tmp_path / "tiny.yaml"
    overrides = [*QUICK, f"model.quantization={kind}", *changes]
    recipe = load_recipe(path, overrides)
    return recipe, RunDir.open(tmp_path / f"run-{kind}", recipe)


def find_trained_base(tmp_path, tiny_recipe, kind):
    """The recipe and its base, on whatever device there is."""
    auto = "hardware.device=auto"
    recipe, _ = make_run(tmp_path, tiny_recipe, kind, auto)
    return recipe, find_base(recipe)


def test_a_quantized_model_is_made_ready_for_training(tiny_recipe, tmp_path):
    recipe, _ = make_run(tmp_path, tiny_recipe, "nf4", "model.dtype=bfloat16")
    plain, _ = load_model(recipe)
    ready, _ = load_model(recipe, training=True)
    assert is_quantized(ready)
    assert plain.get_input_embeddings().weight.dtype == torch.bfloat16
    for name, weight in ready.named_parameters():
        assert not weight.requires_grad
        packed = type(weight).__name__ == "Params4bit"
        assert packed == ("_proj" in name)
        assert weight.dtype == (torch.uint8 if packed else torch.float32)


def test_a_4_bit_model_still_learns_after_it_was_asked(tiny_recipe, tmp_path):
    """A pass in eval mode must not cut the gradient of the next one."""
    recipe, _ = make_run(tmp_path, tiny_recipe, "nf4")
    model, tokenizer = load_model(recipe, training=True)
    batch = tokenizer("What is 1 + 1?", return_tensors="pt")
    with torch.no_grad():
        before = model(**batch).logits
    assert torch.equal(model(**batch).logits, before)
    model.train()
    words = model.get_input_embeddings().weight.requires_grad_()
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    assert words.grad.abs().sum() > 0
    exact = model.eval().dequantize(torch.float32)
    again = exact(**batch).logits
    assert torch.allclose(again, before, atol=1e-4)


def test_hidden_states_of_a_prepared_model_are_fp32(tiny_recipe, tmp_path):
    """So the planner counts four bytes for each that a checkpoint keeps."""
    recipe, _ = make_run(tmp_path, tiny_recipe, "nf4", "model.dtype=bfloat16")
    model, tokenizer = load_model(recipe, training=True)
    seen = []
    model.model.layers[1].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        model(**tokenizer("What is 1 + 1?", return_tensors="pt"))
    assert seen == [torch.float32]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_on_a_quantized_base_stay_in_fp32(
    tiny_recipe, tmp_path, kind
):
    recipe, run = make_run(tmp_path, tiny_recipe, kind)
    model, tokenizer = load_model(recipe, training=True)
    rows = write_sft_rows(run, tokenizer, 8)
    trainer = sft.build_trainer(recipe, model, tokenizer, rows, tmp_path)
    mine = [w for w in trainer.model.parameters() if w.requires_grad]
    assert {w.dtype for w in mine} == {torch.bfloat16}  # as TRL leaves them
    assert widen_adapter(trainer.model) == len(mine) > 0
    assert {w.dtype for w in mine} == {torch.float32}
    assert widen_adapter(trainer.model) == 0
    plain, _ = load_model(tiny_recipe)
    assert widen_adapter(plain) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_train_merge_and_evaluate(tiny_recipe, tmp_path, kind, capsys):
    """SFT → merge → DPO → merge → evaluate, on the tiny model."""
    recipe, run = make_run(tmp_path, tiny_recipe, kind)
    tokenizer = load_model(recipe)[1]
    write_sft_rows(run, tokenizer, 24)
    write_pairs(run, tokenizer, 12)
    metrics = sft.run_sft(recipe, run)
    assert metrics["steps"] == 6 and math.isfinite(metrics["last_loss"])
    fidelity = merge.run_merge(recipe, run, "sft")
    assert fidelity["base"] == f"dequantized {kind}"
    assert fidelity["cosine"] == pytest.approx(1, abs=1e-4)
    assert fidelity["max_abs_logit_diff"] < 1e-2
    assert read_json(run.file("sft", "merge_fidelity.json")) == fidelity
    config = read_json(run.file("sft", "merged", "config.json"))
    assert "quantization_config" not in config
    found = dpo.run_dpo(recipe, run)
    assert found["start_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert merge.run_merge(recipe, run, "dpo")["base"] == "as stored"
    scores = evaluate.run_evaluate(recipe, run, ("base", "sft", "dpo"))
    assert {s["bench"]["n"] for s in scores.values()} == {8}
    assert sft.run_sft(recipe, run) == metrics  # loaded, not trained again


@pytest.mark.slow
def test_dpo_on_4_bits_starts_at_the_reference(tiny_recipe, tmp_path):
    """The reference is the same 4-bit model with the adapter off."""
    recipe, run = make_run(
        tmp_path, tiny_recipe, "nf4", "model.merged_quantization=nf4"
    )
    tokenizer = load_model(recipe)[1]
    write_sft_rows(run, tokenizer, 8)
    write_pairs(run, tokenizer, 12)
    sft.run_sft(recipe, run)
    fidelity = merge.run_merge(recipe, run, "sft")
    assert fidelity["as_loaded"]["in"] == "nf4"
    assert (
        fidelity["as_loaded"]["max_abs_logit_diff"]
        > fidelity["max_abs_logit_diff"]
    )
    for precompute in ("true", "false"):
        settings = recipe.dpo.model_copy(
            update={"precompute_ref_log_probs": precompute == "true"}
        )
        changed = recipe.model_copy(update={"dpo": settings})
        found = dpo.run_dpo(changed, run, force=True)
        assert found["start_loss"] == pytest.approx(math.log(2), abs=1e-3)
        assert found["first_loss"] == pytest.approx(math.log(2), abs=1e-2)
    merged = merge.run_merge(recipe, run, "dpo")
    assert merged["base"] == "dequantized nf4"


def test_the_dequantized_base_is_the_one_that_was_trained(
    tiny_recipe, tmp_path
):
    recipe, run = make_run(tmp_path, tiny_recipe, "nf4")
    plain, _ = load_model(tiny_recipe)
    save_adapter(plain, run.file("sft", "adapter"), scale=0.05)
    found = merge.compare_bases(recipe, run)
    names = ["dequantized nf4", "merged, nf4 again", "as stored"]
    assert list(found) == names
    diffs = [found[name]["max_abs_logit_diff"] for name in names]
    assert diffs[0] < 1e-2 < min(diffs[1:])


@pytest.fixture
def small_card(monkeypatch):
    """A card whose memory ends while it unpacks; the CPU's does not.

    ``fails`` of what it returns is how often unpacking fails, ``calls`` how
    often it was tried.
    """
    from transformers import PreTrainedModel

    unpack, seen = (
        PreTrainedModel.dequantize,
        SimpleNamespace(
            calls=0,
            fails=1,
            error=torch.OutOfMemoryError("CUDA out of memory."),
        ),
    )

    def dequantize(self, dtype=None):
        seen.calls += 1
        if seen.calls <= seen.fails:
            raise seen.error
        return unpack(self, dtype)

    def pick(recipe):
        asked = recipe.hardware.device
        return "cuda" if asked == "auto" else asked

    monkeypatch.setattr(PreTrainedModel, "dequantize", dequantize)
    monkeypatch.setattr(merge_base, "pick_device", pick)
    return seen


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_base_too_large_for_its_card_is_unpacked_on_the_cpu(
    tiny_recipe, tmp_path, small_card, capsys, kind
):
    recipe, path = find_trained_base(tmp_path, tiny_recipe, kind)
    model, _ = merge_base.load_trained_base(recipe, path)
    assert "merging on the CPU" in capsys.readouterr().out
    assert {w.dtype for w in model.parameters()} == {torch.float32}
    assert small_card.calls == 2
    sets = [f"model.quantization={kind}", "hardware.device=cpu"]
    there = load_recipe(tmp_path / "tiny.yaml", sets)
    direct, _ = merge_base.load_unpacked(there, path)
    weights = direct.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])


def test_a_merge_that_fits_nowhere_says_what_it_takes(
    tiny_recipe, tmp_path, small_card, monkeypatch
):
    recipe, path = find_trained_base(tmp_path, tiny_recipe, "nf4")
    plain, _ = load_model(tiny_recipe)
    need = 4 * sum(weight.numel() for weight in plain.parameters())
    assert measure_fp32(path, None, True) == need
    monkeypatch.setattr(merge_base, "measure_cpu_room", lambda: need - 1)
    monkeypatch.setattr(merge_base, "GIB", 1)
    with pytest.raises(LabError, match=f"needs {need}.0 GiB .* fp32"):
        merge_base.load_trained_base(recipe, path)
    assert small_card.calls == 1  # the CPU was not even tried


def test_a_cpu_without_memory_says_it_too(tiny_recipe, tmp_path, small_card):
    recipe, path = find_trained_base(tmp_path, tiny_recipe, "nf4")
    small_card.fails = 2
    with pytest.raises(LabError, match="The merge needs"):
        merge_base.load_trained_base(recipe, path)
    assert small_card.calls == 2


def test_another_error_of_the_unpacking_is_no_lack_of_memory(
    tiny_recipe, tmp_path, small_card
):
    recipe, path = find_trained_base(tmp_path, tiny_recipe, "nf4")
    small_card.error = RuntimeError("no kernel")
    with pytest.raises(RuntimeError, match="no kernel"):
        merge_base.load_trained_base(recipe, path)


def test_room_is_that_of_the_container(monkeypatch):
    from helpers.models import ladder

    monkeypatch.setattr(ladder, "read_container_limit", lambda: 100)
    assert ladder.measure_cpu_room() == 100
    monkeypatch.setattr(ladder, "read_container_limit", lambda: None)
    assert ladder.measure_cpu_room() > 100


def read_storage(weight):
    """Bytes that a weight and its scales occupy."""
    size = weight.numel() * weight.element_size()
    state = getattr(weight, "quant_state", None)
    if state is not None:
        size += state.absmax.numel() * state.absmax.element_size()
        inner = state.state2
        size += inner.absmax.numel() * inner.absmax.element_size()
    if (scales := getattr(weight, "SCB", None)) is not None:
        size += scales.numel() * scales.element_size()
    return size


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
@pytest.mark.parametrize(
    "tier", ["pocket", pytest.param("smol", marks=pytest.mark.slow)]
)
def test_planned_weights_are_those_of_the_loaded_model(tier, kind, training):
    if tier == "smol":
        from helpers.models.smol import find_obstacles

        if reasons := find_obstacles():
            pytest.skip("; ".join(reasons))
    dtype = "bfloat16" if tier == "smol" else "float32"
    text = kind or "null"
    recipe = load_recipe(
        tier, [f"model.quantization={text}", f"model.dtype={dtype}"]
    )
    if training and kind is None:
        pytest.skip("only quantized models are prepared")
    model, _ = load_model(recipe, training=training)
    held = {id(weight): read_storage(weight) for weight in model.parameters()}
    said = count_weight_bytes(
        find_shape(recipe.model.id), dtype, kind, rest=4 if training else 0
    )
    print(f"{sum(held.values()) / 1e6:.2f} MB held, {said / 1e6:.2f} said")
    assert said == pytest.approx(sum(held.values()), rel=0.02)


@pytest.mark.slow
def test_qlora_of_the_pocket_model_learns(pocket_model, tmp_path):
    """Trained in 4 bits on recorded rows, its loss falls; it merges well."""
    from helpers.base import DATA_DIR, SftRow, read_records, write_records

    raw = {
        "extends": "pocket",
        "name": "qlora",
        "model": {"quantization": "nf4"},
        "sft": {"max_steps": 12, "min_steps_per_epoch": 1},
    }
    path = tmp_path / "qlora.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    recipe = load_recipe(path)
    run = RunDir.open(tmp_path / "run", recipe)
    recorded = DATA_DIR / "measured" / "pocket" / "run" / "sft.jsonl"
    write_records(run.file("sft.jsonl"), read_records(recorded, SftRow)[:200])
    metrics = sft.run_sft(recipe, run)
    assert metrics["last_loss"] < metrics["first_loss"]
    fidelity = merge.run_merge(recipe, run, "sft")
    assert fidelity["greedy_agree"] > 0.98 * fidelity["greedy_total"]
    found = merge.compare_bases(recipe, run)
    print(found)
    trained = found["dequantized nf4"]["max_abs_logit_diff"]
    assert trained < 0.1 * found["as stored"]["max_abs_logit_diff"]
