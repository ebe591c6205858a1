"""How many copies of a model to serve, and over how many cards each.

The rule is vLLM's own, the advice is replicas first: independent prompts
need no card to wait for another. Tensor parallelism is for a model that one
card cannot hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.base import LabError
from helpers.planner.cards import CARDS, GIB, Card
from helpers.planner.rule import (
    require_tensor_parallel,
    valid_tensor_parallel_sizes,
)
from helpers.planner.serving import (
    SEQUENCES,
    LayoutComparison,
    compare_layouts,
    count_kv_tokens,
    serving_overhead_bytes,
)
from helpers.planner.shapes import (
    ModelShape,
    count_parameters,
    find_shape,
    read_shape,
)

__all__ = [
    "LayoutComparison",
    "ModelShape",
    "ReplicaPlan",
    "choose_replicas",
    "compare_layouts",
    "count_parameters",
    "find_shape",
    "read_shape",
    "require_tensor_parallel",
    "valid_tensor_parallel_sizes",
]


@dataclass(frozen=True)
class ReplicaPlan:
    """What to start: ``replicas`` engines of ``tensor_parallel_size`` cards.

    ``kv_tokens_per_replica`` is the estimated size of the KV cache; ``why``
    gives the arithmetic in words.
    """

    replicas: int
    tensor_parallel_size: int
    kv_tokens_per_replica: int
    why: str

    @property
    def cards_used(self) -> int:
        """Cards that have work to do."""
        return self.replicas * self.tensor_parallel_size


def choose_replicas(
    shape: ModelShape,
    cards: int,
    card_gib: float,
    *,
    dtype_bytes: float = 2,
    gpu_memory_utilization: float = 0.9,
    max_model_len: int,
    kv_dtype_bytes: float = 2,
    min_concurrency: int = 16,
    card: Card = CARDS["H100"],
) -> ReplicaPlan:
    """As many copies as fit, each over as few cards as it needs.

    Args:
        cards: cards of the machine.
        card_gib: memory of one card in GiB.
        dtype_bytes: bytes of one weight; 2 for bf16, about 0.55 for NF4.
        max_model_len: longest sequence, prompt and completion, in tokens.
        min_concurrency: full-length sequences that should fit at once. Where
            no size holds so many, the one that holds most is taken.
        card: whose bandwidth the comparison in ``why`` is made with.

    Raises:
        LabError: no valid size holds even one sequence, or the sequence is
            longer than the model's context.
    """
    _check_request(shape, cards, max_model_len)
    budget = card_gib * GIB * gpu_memory_utilization
    room = {
        tp: count_kv_tokens(shape, tp, budget, dtype_bytes, kv_dtype_bytes)
        for tp in valid_tensor_parallel_sizes(shape, cards)
    }
    wanted = min_concurrency * max_model_len
    tp = next((t for t, tokens in room.items() if tokens >= wanted), None)
    if tp is None:
        tp = max(room, key=lambda t: (cards // t) * (room[t] // max_model_len))
    if room[tp] < max_model_len:
        _refuse(shape, cards, card_gib, max_model_len, dtype_bytes, list(room))
    memory = _explain_memory(shape, tp, dtype_bytes, budget)
    sequences = room[tp] // max_model_len
    parts = [
        _explain_layout(cards, tp, tuple(room)),
        memory,
        f"That is {room[tp]:,} tokens of cache a copy: {sequences} sequences "
        f"of {max_model_len} tokens at once.",
    ]
    if sequences < min_concurrency:
        parts.append(
            f"Fewer than the {min_concurrency} wished for: expect it slow."
        )
    largest = max(room)
    if tp == 1 and largest > 1:
        comparison = compare_layouts(
            shape,
            cards,
            tensor_parallel_size=largest,
            card=card,
            sequences=min(SEQUENCES, 2 * sequences),
            engine_sequences=min(
                SEQUENCES, 2 * room[largest] // max_model_len
            ),
            context=max_model_len / 2,
            dtype_bytes=dtype_bytes,
            kv_dtype_bytes=kv_dtype_bytes,
        )
        parts.append(comparison.describe())
    return ReplicaPlan(cards // tp, tp, room[tp], " ".join(parts))


def _check_request(shape: ModelShape, cards: int, max_model_len: int) -> None:
    if cards < 1 or max_model_len < 1:
        raise LabError(
            f"Cannot place {shape.name} on {cards} card(s) for sequences of "
            f"{max_model_len} tokens.",
            fix="give at least one card and one token",
        )
    longest = shape.max_position_embeddings
    if longest and max_model_len > longest:
        raise LabError(
            f"max_model_len={max_model_len} is more than {shape.name} can "
            f"read: {longest} tokens.",
            why="it was trained with no position beyond that",
            fix=f"set engine.max_model_len to {longest} or less",
        )


def _refuse(
    shape: ModelShape,
    cards: int,
    card_gib: float,
    max_model_len: int,
    dtype_bytes: float,
    tried: list[int],
) -> None:
    weights = count_parameters(shape) * dtype_bytes / GIB
    raise LabError(
        f"{shape.name} cannot be served on {cards} card(s) of "
        f"{card_gib:.0f} GiB with sequences of {max_model_len} tokens.",
        why=f"its weights take {weights:.1f} GiB, and none of the valid "
        f"tensor-parallel sizes ({', '.join(map(str, tried))}) leaves room "
        "for the cache of one sequence",
        fix="quantize the weights, shorten engine.max_model_len, or use more "
        "or larger cards",
    )


def _explain_layout(cards: int, tp: int, tried: tuple[int, ...]) -> str:
    """How the cards are used, and why no other way."""
    replicas = cards // tp
    text = f"{replicas} × TP={tp}: "
    if tp == 1:
        text += "one card holds the whole model, so every card serves a copy."
    else:
        smaller = ", ".join(str(t) for t in tried if t < tp)
        text += (
            f"TP={smaller} leaves too little memory for the cache, so each "
            f"copy is spread over {tp} cards."
        )
    idle = cards - replicas * tp
    return text + (f" Idle: {idle} of {cards} cards." if idle else "")


def _explain_memory(
    shape: ModelShape, tp: int, dtype_bytes: float, budget: float
) -> str:
    weights = count_parameters(shape) * dtype_bytes / tp / GIB
    work = serving_overhead_bytes(shape, tp) / GIB
    rest = budget / GIB - weights - work
    return (
        f"A card may use {budget / GIB:.1f} GiB = {weights:.1f} weights + "
        f"{work:.1f} work space + {rest:.1f} cache."
    )
