"""The planner's memory against what autograd and real runs really hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from helpers.base import LORA_MODULES, LoraSettings
from helpers.planner import TrainJob, estimate_training, find_shape, read_shape
from helpers.planner.memory import layer_bytes_per_token
from helpers.planner.workload import Workload

SIZES = {
    "small": (256, 4, 2, 704),
    "many heads": (192, 6, 6, 512),
    "wide": (320, 5, 1, 1728),
}


def build_model(layers, sizes, dtype, lora):
    """A Llama of these sizes with TRL's head and PEFT's LoRA."""
    hidden, heads, kv, inner = sizes
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=inner,
        vocab_size=512,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(dtype)
    add_fused_lm_head(model)
    settings = LoraConfig(
        r=lora.r,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    return config, get_peft_model(model, settings).train()


def count_saved_bytes(model, tokens, dtype):
    """Bytes of the distinct tensors that one forward pass saves."""
    own = [*model.parameters(), *model.buffers()]
    known = {t.untyped_storage().data_ptr() for t in own}
    seen = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            # the tensor is kept, or its address would be used again
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.randint(5, 500, (2, tokens // 2))
    half = dtype == torch.bfloat16
    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        model(input_ids=ids, labels=ids, fused_lm_head=True)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "targets", [LORA_MODULES, ("q_proj", "v_proj")], ids=["all", "qv"]
)
def test_saved_tensors_of_a_layer(sizes, dropout, dtype, targets):
    """One more layer saves what the planner says, within 5 %."""
    lora = LoraSettings(r=8, dropout=dropout, target_modules=targets)
    tokens, found = 512, []
    for layers in (2, 3):
        kind = getattr(torch, dtype)
        config, model = build_model(layers, sizes, kind, lora)
        found.append(count_saved_bytes(model, tokens, kind))
    shape = read_shape(config.to_dict())
    job = TrainJob("sft", 1, 1, 2, tokens // 2, tokens // 2, lora=lora)
    said = tokens * layer_bytes_per_token(
        Workload("test", shape, (job,), dtype=dtype), job
    )
    assert found[1] - found[0] == pytest.approx(said, rel=0.05)


SHAPE_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)
POCKET, SMOL = "data/pocket/model", "smollm2-135m-instruct"


def measure_peak(shape, job, dtype):
    """Memory that two real training steps add to the process, in bytes.

    The C library is told to give freed memory back at once; otherwise the
    peak would also depend on what it happens to keep.
    """
    asked = {
        "config": {key: getattr(shape, key) for key in SHAPE_KEYS},
        "dtype": dtype,
        "kind": job.kind,
        "rows": job.per_device_batch,
        "length": job.max_length,
        "dropout": job.lora.dropout,
        "checkpointing": job.gradient_checkpointing,
    }
    script = Path(__file__).parents[1] / "peak_memory.py"
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(asked)],
        capture_output=True,
        text=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak"] - found["before"]


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="the peak of a process is reset through /proc, which Linux has",
)
@pytest.mark.parametrize(
    ("model", "dtype", "kind", "rows", "length", "dropout", "checkpointing"),
    [
        (POCKET, "float32", "sft", 16, 320, 0.05, False),
        (POCKET, "float32", "dpo", 16, 320, 0.0, False),
        pytest.param(
            *(SMOL, "bfloat16", "sft", 4, 256, 0.05, True),
            marks=pytest.mark.long,
        ),
        pytest.param(
            *(SMOL, "bfloat16", "sft", 2, 256, 0.05, False),
            marks=pytest.mark.long,
        ),
    ],
)
def test_peak_of_a_real_run(
    model, dtype, kind, rows, length, dropout, checkpointing
):
    """The planner's total is within 25 % of what TRL's trainer takes."""
    shape = find_shape(model)
    job = TrainJob(
        kind,
        rows,
        rows,
        rows,
        length,
        length,
        lora=LoraSettings(r=16, dropout=dropout),
        gradient_checkpointing=checkpointing,
    )
    said = estimate_training(Workload("t", shape, (job,), dtype=dtype), job)
    measured = measure_peak(shape, job, dtype)
    print(f"{said.total / 1e6:.0f} MB said, {measured / 1e6:.0f} measured")
    assert said.total == pytest.approx(measured, rel=0.25)
