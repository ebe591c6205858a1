"""Memory of the device before a model is there: free, needed, divided.

What training takes beside the weights is the planner's figure; that it is
really free is asked of the device.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from helpers.base import LabError, Recipe
from helpers.models.ladder import Rung

OFFLOAD_SHARE = 0.8  # of the free memory, for layers; the rest is for work


def make_offload_folder() -> str:
    """A fresh folder for layers that stay on disk while they are used."""
    return tempfile.mkdtemp(prefix="mathslm-offload-")


def map_layers(
    path: Path, revision: str | None, device: str, rung: Rung
) -> Any:
    """Where each layer goes when not all fit: device first, then outside.

    Outside of a card is the machine's memory, of the machine's memory the
    disk.
    """
    import torch
    from accelerate import infer_auto_device_map

    model = build_empty(path, revision)
    inside, outside = (0, "cpu") if device == "cuda" else (device, "disk")
    room = measure_free_memory(device)
    # Four bits inside, with room for what the making of them takes;
    # embeddings and head, at the ends, are not quantized.
    full = getattr(torch, rung.dtype)
    wide = {
        name: full
        for name, _ in model.named_parameters()
        if ".layers." not in name
    }
    return infer_auto_device_map(
        model,
        max_memory={inside: int(room * OFFLOAD_SHARE), outside: 1 << 50},
        no_split_module_classes=model._no_split_modules,
        dtype=torch.int8 if rung.quantization else full,
        special_dtypes=wide,
    )


def build_empty(path: Path, revision: str | None) -> Any:
    """The model without weights: names and shapes, and no memory."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path.as_posix(), revision=revision)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def measure_fp32(path: Path, revision: str | None, base: bool) -> int:
    """Bytes that a model's weights take in fp32.

    ``revision`` names a commit of the recipe's ``base``, of no other model.
    """
    model = build_empty(path, revision if base else None)
    return 4 * sum(weight.numel() for weight in model.parameters())


def measure_cpu_room() -> int:
    """Bytes that are free in the machine's memory, or in its container."""
    from helpers.models.device_memory import read_container_limit

    free = measure_free_memory("cpu")
    return min(free, read_container_limit() or free)


def measure_free_memory(device: str) -> int:
    """Bytes that are free on the device now."""
    import psutil
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def measure_training_room(recipe: Recipe, base: bool) -> int:
    """Bytes that training takes beside the weights, as the planner says.

    Of the base model that is SFT, of a merged one DPO; 0 for a model that
    the planner does not know.
    """
    from helpers.planner import estimate_training, make_workload

    kind = "sft" if base else "dpo"
    try:
        work = make_workload(recipe)
    except LabError:
        return 0
    job = next(job for job in work.jobs if getattr(job, "kind", "") == kind)
    parts = estimate_training(work.holding(job), job).parts
    # The runtime is there by the time that weights are.
    return int(sum(parts.values()) - parts["weights"] - parts["runtime"])


def reserve_room(room: int, device: str) -> None:
    """Out of memory, as torch says it, unless so many bytes are free.

    On a CPU, which promises more memory than it has, nothing is asked.
    """
    if room and device == "cuda":
        import torch

        torch.empty(room, dtype=torch.uint8, device=device)
        torch.cuda.empty_cache()


def read_container_limit() -> int | None:
    """Memory limit in bytes of a Linux container, if there is one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
