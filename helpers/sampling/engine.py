"""Sampling engines: the same requests in, the same kind of texts out.

``open_engine(recipe, path)`` gives the one the recipe names, around the model
in ``path``; use it as a context manager, so that memory and server processes
are freed whatever happens.
"""

from __future__ import annotations

from pathlib import Path

from helpers.base import Recipe
from helpers.sampling.protocol import (
    Engine,
    SampledText,
    SampleRequest,
    derive_seed,
)

__all__ = [
    "Engine",
    "SampleRequest",
    "SampledText",
    "derive_seed",
    "make_engine",
    "open_engine",
]


def open_engine(
    recipe: Recipe,
    path: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    log_dir: str | Path | None = None,
) -> Engine:
    """The recipe's engine around the model in ``path``.

    Args:
        recipe: its ``engine`` section says which engine and how.
        path: a model folder or hub id; None for the recipe's base model.
        adapter: a LoRA folder to sample with, unmerged.
        log_dir: where a server's output goes (default: a temporary folder).

    Raises:
        LabError: the engine is not installed or cannot start, or the model
            cannot be loaded.
    """
    if recipe.engine.name == "vllm":
        from helpers.sampling.vllm_server import open_vllm

        return open_vllm(recipe, path, adapter=adapter, log_dir=log_dir)
    if recipe.engine.name == "replay":
        from helpers.sampling.replay import open_replay

        return open_replay(recipe, path)
    from helpers.models import load_model

    model, tokenizer = load_model(recipe, path)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    return make_engine(recipe, model, tokenizer)


def make_engine(recipe: Recipe, model, tokenizer) -> Engine:
    """The in-process engine around a loaded model; imports torch."""
    from helpers.sampling.transformers_engine import TransformersEngine

    return TransformersEngine(
        model,
        tokenizer,
        max_batch_size=recipe.engine.max_batch_size,
        max_batch_tokens=recipe.engine.max_batch_tokens,
    )
