"""How many servers, on which cards, with which variables."""

import json
import os

import pytest

from helpers.base import LabError, load_recipe
from helpers.planner import find_gpus, measure_gpu_memory
from helpers.sampling.vllm_serve import (
    Placement,
    build_arguments,
    build_environment,
    choose_length,
    place_replicas,
    read_lora_rank,
    read_model_shape,
)

QWEN_7B = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"


def make_recipe(*overrides):
    """Tier pocket on whatever cards there are."""
    return load_recipe("pocket", ("hardware.device=auto", *overrides))


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """``cards(n, GiB)`` puts an nvidia-smi with so many cards on the path."""

    def put(count, gib=80.0, used_mib=100):
        rows = {
            "compute_cap": f"NVIDIA H100, {gib * 1024:.0f}, 9.0",
            "memory.used": used_mib,
        }
        lines = ["#!/bin/sh"]
        for field, value in rows.items():
            text = "\\n".join(
                f"{i}, GPU-{i}{i}{i}, {value}" for i in range(count)
            )
            lines.append(f"case $1 in *{field}) printf '{text}\\n';; esac")
        path = tmp_path / "nvidia-smi"
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return put


def place(recipe, model=QWEN_7B):
    """Where the recipe's servers would go."""
    return place_replicas(
        recipe, read_model_shape(model, None), find_gpus(recipe)
    )


def test_replicas_first(cards):
    cards(8)
    placed = place(make_recipe("model.dtype=bfloat16"))
    assert placed.tensor_parallel_size == 1 and placed.replicas == 8
    assert placed.devices == tuple((str(i),) for i in range(8))


def test_tensor_parallel_only_when_one_card_is_too_small(cards):
    cards(4, gib=15)
    placed = place(make_recipe("model.dtype=bfloat16"))
    assert placed.tensor_parallel_size > 1
    taken = [name for names in placed.devices for name in names]
    assert len(taken) == len(set(taken)) <= 4


def test_sizes_that_the_recipe_names(cards):
    cards(8)
    recipe = make_recipe(
        "engine.tensor_parallel_size=2", "engine.data_parallel_size=3"
    )
    assert place(recipe).devices == (("0", "1"), ("2", "3"), ("4", "5"))


def test_more_cards_than_there_are(cards):
    cards(2)
    recipe = make_recipe("engine.data_parallel_size=3")
    with pytest.raises(LabError, match="need 3, and there are 2"):
        place(recipe)
    recipe = make_recipe("engine.tensor_parallel_size=4")
    with pytest.raises(LabError, match="need 4, and there are 2"):
        place(recipe)


def test_a_size_that_does_not_divide(cards):
    cards(8)
    with pytest.raises(LabError, match="28 attention heads"):
        place(make_recipe("engine.tensor_parallel_size=8"))


def test_only_visible_cards_are_used(cards, monkeypatch):
    cards(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-111")
    found = find_gpus(make_recipe())
    assert [gpu.id for gpu in found] == ["3", "GPU-111"]
    assert [gpu.memory_gib for gpu in found] == [80, 80]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpus(make_recipe()) == []


def test_a_recipe_for_the_cpu_uses_no_card(cards):
    cards(4)
    assert find_gpus(load_recipe("pocket")) == []


def test_cuda_without_a_card(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LabError, match="nvidia-smi finds no card"):
        find_gpus(make_recipe("hardware.device=cuda"))
    assert find_gpus(make_recipe()) == []


def test_memory_in_use_is_summed_over_our_cards(cards):
    cards(4, used_mib=512)
    assert measure_gpu_memory(["0", "GPU-222"]) == pytest.approx(1.0)


def test_each_replica_sees_its_own_cards(cards):
    cards(4)
    recipe = make_recipe("engine.tensor_parallel_size=2")
    shape = read_model_shape(QWEN_7B, None)
    placed = place(recipe)
    seen = [
        build_environment(recipe, shape, placed, i)["CUDA_VISIBLE_DEVICES"]
        for i in range(2)
    ]
    assert seen == ["0,1", "2,3"]


# --- without cards ---------------------------------------------------------


def test_one_server_on_a_cpu(monkeypatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    recipe = load_recipe("pocket")
    shape = read_model_shape("data/pocket/model", None)
    placed = place_replicas(recipe, shape, [])
    assert placed == Placement(1, ((),), 512)
    env = build_environment(recipe, shape, placed, 0)
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert env["CUDA_VISIBLE_DEVICES"] == ""


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    recipe = load_recipe("pocket")
    shape = read_model_shape("data/pocket/model", None)
    env = build_environment(recipe, shape, Placement(1, ((),), 512), 0)
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "7"


# --- options ---------------------------------------------------------------


def test_the_length_served():
    shape = read_model_shape(QWEN_7B, None)
    recipe = make_recipe("sampling.max_new_tokens=4000")
    assert choose_length(recipe, shape) == 8096, "cap, and room for prompts"
    recipe = make_recipe("engine.max_model_len=1000")
    assert choose_length(recipe, shape) == 1000
    small = read_model_shape("data/pocket/model", None)
    assert choose_length(make_recipe(), small) == 512, "all it has"
    with pytest.raises(LabError, match="more than the 512 positions"):
        choose_length(make_recipe("engine.max_model_len=513"), small)


def test_quantized_and_pinned():
    recipe = make_recipe("model.quantization=nf4", "seed=9")
    words = build_arguments(
        recipe,
        QWEN_7B,
        Placement(1, (("0",),), 512),
        adapter=None,
        revision="abc",
    )
    assert words[0] == QWEN_7B
    assert words[words.index("--quantization") + 1] == "bitsandbytes"
    assert words[words.index("--revision") + 1] == "abc"
    assert words[words.index("--tokenizer-revision") + 1] == "abc"
    assert words[words.index("--seed") + 1] == "9"
    assert "--no-enable-chunked-prefill" not in words, "of CPUs only"


def test_no_model_there():
    with pytest.raises(LabError, match="Cannot read the configuration"):
        read_model_shape("nobody/nothing", None)


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({"r": 4}, 8),
        ({"r": 16}, 16),
        ({"r": 17}, 32),
        ({"r": 8, "rank_pattern": {"x": 65}}, 128),
    ],
)
def test_lora_ranks(tmp_path, config, rank):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA"} | config))
    assert read_lora_rank(tmp_path) == rank


@pytest.mark.parametrize(
    "config", [{"peft_type": "IA3"}, {"peft_type": "LORA", "r": 600}]
)
def test_adapters_that_cannot_be_served(tmp_path, config):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(LabError, match="merge it first"):
        read_lora_rank(tmp_path)


def test_no_adapter_there(tmp_path):
    with pytest.raises(LabError, match="adapter_config"):
        read_lora_rank(tmp_path)
