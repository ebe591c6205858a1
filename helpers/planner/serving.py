"""Serving with vLLM: how many copies of a model, over how many cards each.

The rule of which sizes are possible is vLLM's own, the advice is replicas
first: independent prompts need no card to wait for another. Tensor
parallelism is for a model that one card cannot hold.

All estimates are from sizes alone. Decoding a token reads every weight and
the whole cache of keys and values, so its speed is that of the memory (the
roofline of Williams et al., 2009), and several cards of one engine wait for
each other twice a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.base import LabError, Recipe
from helpers.planner.cards import CARDS, GIB, Card
from helpers.planner.guards import check_tensor_parallel, find_split_faults
from helpers.planner.shapes import (
    ModelShape,
    count_parameters,
    count_streamed_parameters,
    find_shape,
)

# vLLM's own settings, for the size of its trial run: tokens of one prefill
# step and sequences of one decode step.
BATCHED_TOKENS, SEQUENCES = 8192, 256
# One all-reduce of a few MB over NVLink.
ALL_REDUCE_S = 20e-6


# --- which sizes vLLM accepts ---


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


# --- memory and speed of one engine ---


def serving_overhead_bytes(
    shape: ModelShape, tp: int = 1, batched_tokens: int = BATCHED_TOKENS
) -> float:
    """Memory on a card that is neither weights nor KV cache.

    An estimate: 1 GiB for the CUDA context and captured graphs, the widest
    activations of one prefill step in 16 bit, and the logits of one decode
    step in 16 bit with two fp32 copies for sampling.
    """
    inner = shape.intermediate_size * max(1, shape.num_experts_per_tok)
    live = batched_tokens * 2 * (2 * inner / tp + 4 * shape.hidden_size)
    logits = SEQUENCES * shape.vocab_size * (2 + 4 + 4)
    return GIB + live + logits


def kv_bytes_per_card(shape: ModelShape, tp: int, size: float) -> float:
    """KV bytes a token leaves on each card; KV heads may be copied."""
    heads = max(1, shape.num_key_value_heads // tp)
    return shape.kv_bytes_per_token(size) * heads / shape.num_key_value_heads


def count_kv_tokens(
    shape: ModelShape,
    tp: int,
    budget_bytes: float,
    dtype_bytes: float,
    kv_dtype_bytes: float,
) -> int:
    """Tokens of KV cache of an engine over ``tp`` cards; may be negative."""
    weights = count_parameters(shape) * dtype_bytes / tp
    free = budget_bytes - weights - serving_overhead_bytes(shape, tp)
    return int(free // kv_bytes_per_card(shape, tp, kv_dtype_bytes))


def estimate_decode_step(
    shape: ModelShape,
    tp: int,
    card: Card,
    *,
    sequences: int = SEQUENCES,
    context: float = 1200,
    dtype_bytes: float = 2,
    kv_dtype_bytes: float = 2,
    all_reduce_s: float = ALL_REDUCE_S,
) -> float:
    """Seconds of one decode step, at best: the roofline of memory traffic.

    Every step reads all weights and the KV cache of every sequence once; two
    all-reduces a layer follow when more than one card works on it.
    """
    weights = count_streamed_parameters(shape) * dtype_bytes / tp
    cache = sequences * context * kv_bytes_per_card(shape, tp, kv_dtype_bytes)
    waiting = 2 * shape.num_hidden_layers * all_reduce_s if tp > 1 else 0.0
    return (weights + cache) / (card.bandwidth_gb_s * 1e9) + waiting


# --- how many replicas ---


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


# --- one replica a card against one engine ---


@dataclass(frozen=True)
class LayoutComparison:
    """One replica a card against one engine over several cards.

    ``alone`` and ``parallel`` are (seconds a decode step, sequences in the
    engine) of a replica on one card and of the engine.
    """

    cards: int
    tensor_parallel_size: int
    card: Card
    context: float
    alone: tuple[float, int]
    parallel: tuple[float, int]

    @property
    def efficiency(self) -> float:
        """Speed of a card inside the engine over one that works alone."""
        return self.cards / self.tensor_parallel_size / self.speedup

    @property
    def speedup(self) -> float:
        """Tokens a second of all replicas over those of the one engine."""
        rates = [n / seconds for seconds, n in (self.alone, self.parallel)]
        return self.cards * rates[0] / rates[1]

    @property
    def idle_cards(self) -> int:
        """Cards that the one engine leaves without work."""
        return self.cards - self.tensor_parallel_size

    def save_minutes(self, minutes: float) -> float:
        """Minutes saved of decoding that took this long on the one engine.

        Loading, compiling and grading are not decoding: leave them out.
        """
        return minutes * (1 - 1 / self.speedup)

    def describe(self) -> str:
        """The comparison with its arithmetic, in words."""
        tp, idle = self.tensor_parallel_size, self.idle_cards
        left = f" (and {idle} of {self.cards} cards idle)" if idle else ""
        (alone, one), (parallel, many) = self.alone, self.parallel
        return (
            f"Against one TP={tp} engine{left}: a decode step reads all "
            "weights and the cache, so memory bandwidth sets its speed. On "
            f"{self.card.name} cards, {self.context:.0f} tokens a sequence, "
            f"at best: {alone * 1e3:.1f} ms for {one} sequences on one card, "
            f"{parallel * 1e3:.1f} ms for {many} on {tp} with their "
            f"all-reduces. A card of the engine does {self.efficiency:.0%} of "
            f"what it does alone; {self.cards} replicas make "
            f"{self.speedup:.1f} times the tokens."
        )


def compare_layouts(
    shape: ModelShape,
    cards: int,
    *,
    tensor_parallel_size: int = 4,
    card: Card = CARDS["H100"],
    sequences: int = SEQUENCES,
    engine_sequences: int | None = None,
    context: float = 1200,
    dtype_bytes: float = 2,
    kv_dtype_bytes: float = 2,
    all_reduce_s: float = ALL_REDUCE_S,
) -> LayoutComparison:
    """``cards`` replicas against one engine of ``tensor_parallel_size``.

    Args:
        sequences: sequences in a replica at once.
        engine_sequences: sequences in the engine at once; None: the same.
        context: mean tokens of a sequence that are in the cache.

    Raises:
        LabError: the size does not divide the model, or exceeds the cards.
    """
    require_tensor_parallel(shape, tensor_parallel_size)
    if tensor_parallel_size > cards:
        raise LabError(
            f"tensor_parallel_size={tensor_parallel_size} needs more than "
            f"the {cards} card(s) there are.",
            fix="choose a smaller size, or more cards",
        )
    pairs = (
        (1, sequences),
        (tensor_parallel_size, engine_sequences or sequences),
    )
    alone, parallel = (
        (
            estimate_decode_step(
                shape,
                tp,
                card,
                sequences=count,
                context=context,
                dtype_bytes=dtype_bytes,
                kv_dtype_bytes=kv_dtype_bytes,
                all_reduce_s=all_reduce_s,
            ),
            count,
        )
        for tp, count in pairs
    )
    return LayoutComparison(
        cards, tensor_parallel_size, card, context, alone, parallel
    )
