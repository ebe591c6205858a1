"""One inference engine on one kind of card: memory and decode speed.

Estimates from sizes alone. Decoding a token reads every weight and the whole
cache of keys and values, so its speed is that of the memory (the roofline of
Williams et al., 2009), and several cards of one engine wait for each other
twice a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.base import LabError
from helpers.planner.cards import CARDS, GIB, Card
from helpers.planner.rule import require_tensor_parallel
from helpers.planner.shapes import (
    ModelShape,
    count_parameters,
    count_streamed_parameters,
)

# vLLM's own settings, for the size of its trial run: tokens of one prefill
# step and sequences of one decode step.
BATCHED_TOKENS, SEQUENCES = 8192, 256
# One all-reduce of a few MB over NVLink.
ALL_REDUCE_S = 20e-6


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
