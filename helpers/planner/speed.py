"""How fast: floating-point work for training, memory traffic for decoding.

A rate that was measured on the machine in question beats any of this; where
there is none, these are roofline estimates with their efficiency named.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.planner.serving import SEQUENCES, estimate_decode_step
from helpers.planner.shapes import (
    ModelShape,
    count_active_parameters,
    count_parameters,
)
from helpers.planner.workload import (
    SampleJob,
    TrainJob,
    Workload,
    mean_weight_bytes,
)


@dataclass(frozen=True)
class Efficiency:
    """What share of the best possible is assumed where nothing is measured.

    ``mfu`` is of a card's 16-bit arithmetic in training, ``decode`` of its
    memory bandwidth in vLLM, ``generate`` in the in-process engine, and
    ``quantized`` is what unpacking 4- or 8-bit weights leaves of a speed.
    """

    mfu: float = 0.40
    decode: float = 0.50
    generate: float = 0.25
    quantized: float = 0.60


@dataclass(frozen=True)
class Rate:
    """Tokens a second of the whole machine, and where that comes from."""

    tokens_per_second: float
    source: str
    measured: bool = False


def train_flops_per_token(shape: ModelShape, job: TrainJob) -> float:
    """Floating-point operations of one trained token, as executed.

    Per weight: 2 forward, 2 for the gradients of the activations, 2 more for
    those of trained weights, 2 for a forward pass done again. A frozen base
    needs no weight gradients. Attention adds 4·layers·width·length forward,
    of which causal masking leaves half.
    """
    passes = 4 if job.lora is not None else 6
    passes += 2 if job.gradient_checkpointing else 0
    if job.kind == "dpo":
        passes += reference_passes(job)
    width = shape.num_attention_heads * shape.head_dim
    length = min(job.mean_length, job.max_length)
    attention = shape.num_hidden_layers * width * length
    return passes * (count_active_parameters(shape) + attention)


def reference_passes(job: TrainJob) -> float:
    """Forward passes for the reference, a trained token; 1 pass is 2.

    Once an epoch, or once in all when precomputed.
    """
    epochs = max(job.epochs, 1e-9)
    return 2 / max(1.0, epochs) if job.precompute_ref else 2.0


def dpo_over_sft(job: TrainJob) -> float:
    """How much longer a step of ``n`` pairs takes than one of ``n`` rows."""
    passes = 4 + (2 if job.gradient_checkpointing else 0)
    return 2 * (passes + reference_passes(job)) / passes


def estimate_training_rate(
    workload: Workload, job: TrainJob, assumed: Efficiency
) -> Rate | None:
    """Trained tokens a second; None without a card (a CPU's is measured)."""
    card = workload.card
    if card is None:
        return None
    share = assumed.mfu * (assumed.quantized if workload.quantization else 1)
    flops = card.tflops * 1e12 * share * workload.world_size
    compute = train_flops_per_token(workload.shape, job)
    rate = flops / compute
    slower = 1 + sharding_overhead(workload, job, assumed)
    return Rate(
        rate / slower,
        f"{share:.0%} of {card.tflops:.0f} TFLOP/s a card and "
        f"{compute / 1e9:.0f} GFLOP a token"
        + (f", {slower:.2f}× for ZeRO-3" if slower > 1.005 else ""),
    )


def sharding_overhead(
    workload: Workload, job: TrainJob, assumed: Efficiency
) -> float:
    """Time that ZeRO-3 spends on gathering weights, over the compute time.

    All weights travel to every card for each forward and each backward pass
    (twice, or three times with checkpointing) of a micro-batch. This is the
    upper end: a part of it hides behind the computation.
    """
    card, world = workload.card, workload.world_size
    if workload.strategy != "zero3" or card is None or world < 2:
        return 0.0
    weights = count_parameters(workload.shape) * workload.compute_bytes
    gathers = 3 if job.gradient_checkpointing else 2
    moving = gathers * weights * (world - 1) / world / (card.link_gb_s * 1e9)
    length = min(job.mean_length, job.max_length)
    tokens = job.sequences_per_device * length
    flops = train_flops_per_token(workload.shape, job) * tokens
    computing = flops / (card.tflops * 1e12 * assumed.mfu)
    return moving / computing


def estimate_sampling_rate(
    workload: Workload,
    job: SampleJob,
    assumed: Efficiency,
    replicas: int = 1,
    tensor_parallel_size: int = 1,
    kv_tokens: int | None = None,
) -> Rate | None:
    """Sampled tokens a second of all replicas; None without a card."""
    card = workload.card
    if card is None:
        return None
    size = mean_weight_bytes(
        workload.shape, workload.dtype, workload.quantization
    )
    context = job.prompt_tokens + job.mean_tokens / 2
    most = SEQUENCES if workload.engine == "vllm" else workload.sampling_batch
    if kv_tokens is not None:
        most = min(most, max(1, int(kv_tokens / context)))
    rows = max(1, min(most, -(-job.completions // replicas)))
    step = estimate_decode_step(
        workload.shape,
        tensor_parallel_size,
        card,
        sequences=rows,
        context=context,
        dtype_bytes=size,
    )
    # many sequences at once: arithmetic may be the limit instead
    flops = 2 * count_active_parameters(workload.shape) * rows
    busy = flops / (card.tflops * 1e12 * tensor_parallel_size)
    share = assumed.decode if workload.engine == "vllm" else assumed.generate
    if workload.quantization:
        share *= assumed.quantized
    rate = replicas * rows / max(step, busy) * share
    return Rate(
        rate,
        f"{share:.0%} of the roofline: {rows} sequences a step of "
        f"{max(step, busy) * 1e3:.1f} ms on each of {replicas} replica(s)",
    )
