"""Which tensor-parallel sizes vLLM accepts for a model."""

from __future__ import annotations

from helpers.errors import LabError
from helpers.planner.shapes import ModelShape

# vLLM pads the vocabulary to a multiple of this before it splits it
# (DEFAULT_VOCAB_PADDING_SIZE in vocab_parallel_embedding.py).
VOCAB_PADDING = 64


def _find_faults(shape: ModelShape, tp: int) -> list[str]:
    """Every reason for which vLLM would refuse this size, in words."""
    heads, kv = shape.num_attention_heads, shape.num_key_value_heads
    padded = -(-shape.vocab_size // VOCAB_PADDING) * VOCAB_PADDING
    faults = []
    if heads % tp:
        faults.append(f"{heads} attention heads are not divisible by {tp}")
    if kv >= tp and kv % tp:
        faults.append(f"{kv} KV heads are not divisible by {tp}")
    if kv < tp and tp % kv:
        faults.append(
            f"{kv} KV heads, fewer than {tp}, would be copied to every card, "
            f"and {tp} is no multiple of {kv}"
        )
    if shape.intermediate_size % tp:
        faults.append(
            f"the intermediate size {shape.intermediate_size} is not "
            f"divisible by {tp}"
        )
    if padded % tp:
        faults.append(
            f"the padded vocabulary {padded} is not divisible by {tp}"
        )
    return faults


def valid_tensor_parallel_sizes(
    shape: ModelShape, limit: int | None = None
) -> tuple[int, ...]:
    """All sizes that vLLM accepts, up to ``limit`` (default: the heads)."""
    limit = min(limit or shape.num_attention_heads, shape.num_attention_heads)
    return tuple(t for t in range(1, limit + 1) if not _find_faults(shape, t))


def require_tensor_parallel(shape: ModelShape, tp: int) -> None:
    """Refuse a tensor-parallel size that does not divide this model.

    vLLM's rule: the attention heads, the intermediate size and the padded
    vocabulary must be divisible by it; KV heads too, unless there are fewer
    of them than cards: then each is copied, and the size must be a multiple
    of their number. Source: ``ModelConfig.verify_with_parallel_config``,
    ``models/qwen2.py``, ``layers/linear.py`` and
    ``layers/vocab_parallel_embedding.py`` of vLLM.

    Raises:
        LabError: names the number that does not divide, and the valid sizes.
    """
    faults = _find_faults(shape, tp) if tp > 0 else ["it is not positive"]
    if faults:
        valid = ", ".join(map(str, valid_tensor_parallel_sizes(shape)))
        raise LabError(
            f"tensor_parallel_size={tp} does not work for {shape.name}: "
            f"{faults[0]}.",
            why="tensor parallelism gives every card the same number of "
            "attention heads and an equal slice of every matrix",
            fix=f"choose one of {valid}; to use more cards, start more "
            "replicas (data_parallel_size)",
        )
