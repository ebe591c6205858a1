"""How much disk a stage will write, from sizes alone."""

from __future__ import annotations

import math

from helpers.base import LabError, Recipe
from helpers.planner.shapes import count_parameters, find_shape
from helpers.planner.workload import DTYPE_BYTES, Lora, count_lora

MB = 2**20
# An adapter is saved in fp32; a checkpoint holds it with two moments of
# AdamW. Two checkpoints are kept while a third is written.
ADAPTER_BYTES, CHECKPOINTS = 4, 3
TOKEN_BYTES, ROW_BYTES = 5, 1500  # text of a token; a row's other fields
SMALL_MB = 50  # logs, tokenizer, metrics, a rendered report
UNKNOWN_MB = 200  # a model of unknown size


def estimate_space(recipe: Recipe, stage: str) -> int:
    """Megabytes that one stage writes, at most.

    Args:
        stage: "distill", "sft", "merge", "dpo" or "evaluate".
    """
    if stage in ("distill", "evaluate"):
        return SMALL_MB + _samples_mb(recipe, stage)
    try:
        if stage == "merge":
            shape = find_shape(recipe.model.id)
            each = DTYPE_BYTES.get(recipe.model.dtype, 4)
            size = count_parameters(shape) * each
        else:
            size = _training_bytes(recipe, stage)
    except LabError:  # a model of another architecture: not ours to count
        return UNKNOWN_MB
    return SMALL_MB + math.ceil(size / MB)


def estimate_run_space(recipe: Recipe) -> int:
    """Megabytes of a whole run: samples, adapters, merged models, scores.

    The checkpoints of SFT are gone before those of DPO are written. Every
    variant of DPO is merged beside the others.
    """
    training = max(estimate_space(recipe, name) for name in ("sft", "dpo"))
    merged = (2 + len(recipe.dpo_variants)) * estimate_space(recipe, "merge")
    texts = sum(estimate_space(recipe, n) for n in ("distill", "evaluate"))
    return training + merged + texts


def _samples_mb(recipe: Recipe, stage: str) -> int:
    if stage == "distill":
        rows = recipe.data.n_problems * recipe.sampling.n
        cap = recipe.sampling.max_new_tokens
    else:
        rows = 3 * sum(b.n for b in recipe.evaluate.benchmarks)
        cap = recipe.evaluate.max_new_tokens
    return math.ceil(rows * (cap * TOKEN_BYTES + ROW_BYTES) / MB)


def _training_bytes(recipe: Recipe, stage: str) -> float:
    shape = find_shape(recipe.model.id)
    settings = getattr(recipe, stage).lora
    lora = Lora(
        r=settings.r,
        target_modules=tuple(settings.target_modules),
        layers=settings.layers,
    )
    return count_lora(shape, lora) * ADAPTER_BYTES * (1 + 3 * CHECKPOINTS)
