"""Time and money of a run: tokens, rates, and the phases in their order.

tokens of a phase ÷ tokens a second = hours; hours × price = dollars

A rate that was measured on the machine in question (``data/measured``) beats
any other; where there is none, these are roofline estimates with their
efficiency named: floating-point work for training, memory traffic for
decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.base import DATA_DIR, read_json
from helpers.planner.serving import (
    SEQUENCES,
    ReplicaPlan,
    estimate_decode_step,
)
from helpers.planner.shapes import (
    ModelShape,
    count_active_parameters,
    count_parameters,
    find_shape,
)
from helpers.planner.steps import JobSteps
from helpers.planner.workload import (
    SampleJob,
    TrainJob,
    Workload,
    mean_weight_bytes,
)

# The share of the best possible that is assumed where nothing is measured:
# of a card's 16-bit arithmetic in training (model FLOPs utilisation), of its
# memory bandwidth in vLLM and in the in-process engine, and what unpacking
# 4- or 8-bit weights leaves of a speed.
MFU, DECODE, GENERATE, UNPACKING = 0.40, 0.50, 0.25, 0.60
# Minutes before an engine or a trainer works (load, compile), of a merge,
# and of getting a rented machine ready.
START_MINUTES, MERGE_MINUTES, SETUP_MINUTES = 3.0, 1.0, 15.0
MEASURED_DIR = DATA_DIR / "measured"
# The tier whose run on a CPU is always at hand, and its model.
RECORDED_TIER, RECORDED_MODEL = "pocket", "data/pocket/model"


@dataclass(frozen=True)
class Rate:
    """Tokens a second of the whole machine, and where that comes from."""

    tokens_per_second: float
    source: str
    measured: bool = False


# --- what was measured ---


@dataclass(frozen=True)
class Measured:
    """What a recorded run of a tier says, for planning the next one.

    ``rates`` are by phase ("distill", "sft", "dpo"); shares are of the
    problems, lengths in tokens; None where the run does not say.
    """

    where: str = ""
    rates: dict[str, Rate] | None = None
    sft_share: float | None = None
    pair_share: float | None = None
    mean_tokens: float | None = None

    def rate(self, phase: str) -> Rate | None:
        """The measured rate of a phase, if there is one."""
        return (self.rates or {}).get(phase)


def load_measured(tier: str, folder: Path | None = None) -> Measured:
    """The recorded run of a tier; an empty one where there is none."""
    run = (folder or MEASURED_DIR) / tier / "run"
    if not (run / "metrics.json").is_file():
        return Measured()
    metrics: dict[str, Any] = read_json(run / "metrics.json")
    manifest = run / "manifest.json"
    made = read_json(manifest) if manifest.is_file() else {}
    where = f"recorded on {str(made.get('created', '?'))[:10]}"
    if made.get("processor"):
        where += f", {made['processor']}"
    rates = {
        phase: Rate(metrics[phase]["tokens_per_second"], where, True)
        for phase in ("distill", "sft", "dpo")
        if metrics.get(phase, {}).get("tokens_per_second")
    }
    found = metrics.get("distill", {})
    problems = found.get("problems")
    return Measured(
        where=where,
        rates=rates,
        sft_share=_share(found.get("sft_rows"), problems),
        pair_share=_share(found.get("pairs"), problems),
        mean_tokens=(found.get("length") or {}).get("mean"),
    )


def _share(count: int | None, problems: int | None) -> float | None:
    return count / problems if count and problems else None


def scale_recorded_rate(
    workload: Workload, job: SampleJob | TrainJob, folder: Path | None = None
) -> Rate | None:
    """A CPU's rate from the recorded pocket run, by arithmetic alone.

    On the slow side: larger matrices keep a processor busier than those of
    the pocket model, so the hours that follow are an upper bound on a
    machine like the recorded one. None on a card, or without the recording.
    """
    phase = "distill" if isinstance(job, SampleJob) else job.kind
    recorded = load_measured(RECORDED_TIER, folder)
    rate = recorded.rate(phase)
    if workload.card or rate is None:
        return None
    small = find_shape(RECORDED_MODEL)
    if isinstance(job, SampleJob):
        sizes = [count_active_parameters(s) for s in (small, workload.shape)]
    else:
        sizes = [
            train_flops_per_token(s, job) for s in (small, workload.shape)
        ]
    return Rate(
        rate.tokens_per_second * sizes[0] / sizes[1],
        f"at most that long: the pocket model's arithmetic, {rate.source}",
    )


# --- what the hardware could do ---


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


def estimate_training_rate(workload: Workload, job: TrainJob) -> Rate | None:
    """Trained tokens a second; None without a card (a CPU's is measured)."""
    card = workload.card
    if card is None:
        return None
    share = MFU * (UNPACKING if workload.quantization else 1)
    flops = card.tflops * 1e12 * share * workload.world_size
    compute = train_flops_per_token(workload.shape, job)
    rate = flops / compute
    slower = 1 + sharding_overhead(workload, job)
    return Rate(
        rate / slower,
        f"{share:.0%} of {card.tflops:.0f} TFLOP/s a card and "
        f"{compute / 1e9:.0f} GFLOP a token"
        + (f", {slower:.2f}× for ZeRO-3" if slower > 1.005 else ""),
    )


def sharding_overhead(workload: Workload, job: TrainJob) -> float:
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
    computing = flops / (card.tflops * 1e12 * MFU)
    return moving / computing


def estimate_sampling_rate(
    workload: Workload, job: SampleJob, served: ReplicaPlan | None
) -> Rate | None:
    """Sampled tokens a second of all replicas; None without a card.

    Args:
        served: vLLM's layout; None: one engine in this process.
    """
    card = workload.card
    if card is None:
        return None
    replicas = served.replicas if served else 1
    tp = served.tensor_parallel_size if served else 1
    context = job.prompt_tokens + job.mean_tokens / 2
    most = SEQUENCES if workload.engine == "vllm" else workload.sampling_batch
    if served:  # no more sequences than the cache holds
        most = min(most, max(1, int(served.kv_tokens_per_replica / context)))
    rows = max(1, min(most, -(-job.completions // replicas)))
    reading = estimate_decode_step(
        workload.shape,
        tp,
        card,
        sequences=rows,
        context=context,
        dtype_bytes=mean_weight_bytes(
            workload.shape, workload.dtype, workload.quantization
        ),
    )
    # many sequences at once: arithmetic may be the limit instead
    flops = 2 * count_active_parameters(workload.shape) * rows
    step = max(reading, flops / (card.tflops * 1e12 * tp))
    share = DECODE if workload.engine == "vllm" else GENERATE
    if workload.quantization:
        share *= UNPACKING
    return Rate(
        replicas * rows / step * share,
        f"{share:.0%} of the roofline: {rows} sequences a step of "
        f"{step * 1e3:.1f} ms on each of {replicas} replica(s)",
    )


# --- phases ---


@dataclass(frozen=True)
class Phase:
    """One phase of the run.

    ``hours`` is None where no rate is known. ``how`` says where the rate
    comes from.
    """

    name: str
    tokens: float
    hours: float | None
    usd: float | None
    how: str


def plan_phases(
    workload: Workload,
    steps: dict[str, JobSteps],
    replicas: ReplicaPlan | None,
    measured: Measured,
) -> list[Phase]:
    """All phases in order, the machine's own set-up first."""
    phases = []
    if workload.card and workload.usd_per_hour > 0:
        phases.append(_fixed("set-up", SETUP_MINUTES, workload))
    for job in workload.jobs:
        held = workload.holding(job)  # unpacking 4 bits takes time
        if isinstance(job, SampleJob):
            rate = measured.rate("distill")
            rate = rate or estimate_sampling_rate(held, job, replicas)
            rate = rate or scale_recorded_rate(held, job)
            phases.append(_worked(job.name, job.tokens, rate, workload))
            continue
        found = steps[job.title]
        rate = measured.rate(job.kind)
        rate = rate or estimate_training_rate(held, job)
        rate = rate or scale_recorded_rate(held, job)
        phases.append(_worked(job.title, count_tokens(found), rate, workload))
        title = f"merge {job.title}"
        phases.append(_fixed(title, MERGE_MINUTES, workload))
    return phases


def count_tokens(found: JobSteps) -> float:
    """Tokens of a training run; a pair is two sequences.

    Packed rows are full, others of the mean length.
    """
    job = found.job
    rows = found.count.total * found.batch.effective_batch
    if job.max_steps <= 0:  # whole epochs: the last batch may be short
        rows = round(found.count.rows * job.epochs)
    length = job.max_length if job.packing else job.mean_length
    return rows * (2 if job.kind == "dpo" else 1) * length


def sum_phases(phases: list[Phase]) -> Phase:
    """The total; unknown hours stay out of it and are named."""
    unknown = [p.name for p in phases if p.hours is None]
    hours = sum(p.hours or 0.0 for p in phases)
    usd = sum(p.usd or 0.0 for p in phases)
    how = f"without {', '.join(unknown)}" if unknown else ""
    all_unknown = len(unknown) == len([p for p in phases if p.tokens])
    return Phase(
        "total",
        sum(p.tokens for p in phases),
        None if all_unknown else hours,
        None if all_unknown else usd,
        how,
    )


def _worked(
    name: str,
    tokens: float,
    rate: Rate | None,
    workload: Workload,
) -> Phase:
    """A phase that is tokens over a rate; a measured rate includes starts."""
    if rate is None:
        return Phase(name, tokens, None, None, "no rate is known here")
    hours = tokens / rate.tokens_per_second / 3600
    if not rate.measured:
        hours += START_MINUTES / 60
    how = f"{rate.tokens_per_second:,.0f} tokens/s: {rate.source}"
    return Phase(name, tokens, hours, hours * workload.usd_per_hour, how)


def _fixed(name: str, minutes: float, workload: Workload) -> Phase:
    """A phase of an assumed length."""
    if workload.card is None:
        return Phase(name, 0.0, 0.0, 0.0, "seconds")
    hours = minutes / 60
    return Phase(name, 0.0, hours, hours * workload.usd_per_hour, "assumed")
