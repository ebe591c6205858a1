"""Sampling engines: the same requests in, the same texts out.

``make_engine(recipe, model, tokenizer)`` gives the one the recipe names.
"""

from __future__ import annotations

from helpers.engines.base import (
    Engine,
    SampledText,
    SampleRequest,
    derive_seed,
)
from helpers.recipes import Recipe

__all__ = [
    "Engine",
    "SampleRequest",
    "SampledText",
    "derive_seed",
    "make_engine",
]


def make_engine(recipe: Recipe, model, tokenizer) -> Engine:
    """The recipe's engine around a loaded model; imports torch."""
    from helpers.engines.transformers_engine import TransformersEngine

    return TransformersEngine(
        model, tokenizer, max_batch_size=recipe.engine.max_batch_size
    )
