"""Which tensor-parallel sizes vLLM accepts for a model."""

from __future__ import annotations

from helpers.base import LabError, Recipe
from helpers.planner.guards import check_tensor_parallel, find_split_faults
from helpers.planner.shapes import ModelShape, find_shape


def _read_sizes(shape: ModelShape) -> dict[str, int]:
    """What tensor parallelism splits."""
    return {
        "heads": shape.num_attention_heads,
        "kv_heads": shape.num_key_value_heads,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
    }


def valid_tensor_parallel_sizes(
    shape: ModelShape, limit: int | None = None
) -> tuple[int, ...]:
    """All sizes that vLLM accepts, up to ``limit`` (default: the heads)."""
    limit = min(limit or shape.num_attention_heads, shape.num_attention_heads)
    return tuple(
        tp
        for tp in range(1, limit + 1)
        if not find_split_faults(tp, **_read_sizes(shape))
    )


def require_tensor_parallel(shape: ModelShape, tp: int) -> None:
    """:func:`helpers.planner.guards.check_tensor_parallel` for this model.

    Raises:
        LabError: names the number that does not divide, and the valid sizes.
    """
    check_tensor_parallel(shape.name, tp, **_read_sizes(shape))


def check_engine(recipe: Recipe) -> None:
    """Refuse servers of a size that the recipe's model cannot be split in.

    Needs neither the model nor the data, so it is asked before both. A model
    of unknown shape is judged by its own config, when its servers start.

    Raises:
        LabError: see :func:`require_tensor_parallel`.
    """
    tp = recipe.engine.tensor_parallel_size
    if recipe.engine.name != "vllm" or tp is None:
        return
    try:
        shape = find_shape(recipe.model.id)
    except LabError:
        return
    require_tensor_parallel(shape, tp)
