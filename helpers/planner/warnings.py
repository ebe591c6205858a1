"""Warnings in words: what is likely to waste the run, before it starts."""

from __future__ import annotations

import math

from helpers.planner.cards import GIB
from helpers.planner.guards import check_card_memory, check_travel
from helpers.planner.memory import MemoryEstimate, full_logits_bytes
from helpers.planner.serving import ReplicaPlan
from helpers.planner.steps import (
    JobSteps,
    find_cards,
    learning_rate_travel,
    sum_learning_rates,
)
from helpers.planner.time_and_cost import dpo_over_sft, sharding_overhead
from helpers.planner.workload import Benchmark, SampleJob, TrainJob, Workload

# Below this many steps a preference run has little chance to move: the
# published 60 moved nothing, its authors' next try was to be 200.
FEW_DPO_STEPS = 100
# Ten times what those 60 steps summed to.
SMALL_TRAVEL = 1.5e-4
# Two-sided 5 %, 80 % power: 1.96 + 0.84 standard errors.
POWER = 1.96 + 0.84
# The published SFT gain, 6.3 points of the macro average.
CLAIMED_GAIN = 0.063


def collect_warnings(
    workload: Workload,
    steps: dict[str, JobSteps],
    memory: list[MemoryEstimate],
    replicas: ReplicaPlan | None,
    has_token: bool,
) -> list[str]:
    """Every warning that applies, the costliest first."""
    found = [warn_memory(workload, estimate) for estimate in memory]
    found += [
        warn_dtype(workload),
        warn_gated(workload, has_token),
        warn_idle(workload, replicas),
    ]
    for job_steps in steps.values():
        found += [
            warn_batch(job_steps),
            warn_packing(job_steps),
            warn_few_steps(job_steps),
            warn_rounding(workload, job_steps),
            warn_sharding(workload, job_steps.job),
        ]
    found += [warn_small_sets(workload), warn_unplanned(workload)]
    return [text for text in found if text]


def warn_memory(workload: Workload, estimate: MemoryEstimate) -> str:
    """A job that does not fit its card."""
    card = workload.card
    if card is None:
        return ""
    name = f"a {card.name}"
    return judge_memory(estimate, name, card.memory_gib) or ""


def judge_memory(
    estimate: MemoryEstimate, card: str, have_gib: float
) -> str | None:
    """The guard's verdict on this estimate and a card of this memory."""
    largest, size = estimate.largest
    return check_card_memory(
        estimate.title,
        estimate.gib,
        card,
        have_gib,
        f"{largest} ({size / GIB:.1f} GiB)",
    )


def warn_dtype(workload: Workload) -> str:
    """A card without bf16."""
    card = workload.card
    if card is None or card.has_bf16 or workload.dtype != "bfloat16":
        return ""
    return (
        f"A {card.name} has no bf16 arithmetic (compute capability below "
        "8.0). Set model.dtype to float16."
    )


def warn_gated(workload: Workload, has_token: bool) -> str:
    """A gated model and no token of the hub."""
    if not workload.shape.gated or has_token:
        return ""
    return (
        f"{workload.shape.name} is gated and no token of the hub is set. "
        "Accept its licence on its page and run 'hf auth login', or choose "
        "an ungated model of the tier."
    )


def warn_idle(workload: Workload, plan: ReplicaPlan | None) -> str:
    """Cards without work while sampling."""
    samples = any(isinstance(job, SampleJob) for job in workload.jobs)
    if workload.card is None or not samples:
        return ""
    if workload.engine == "transformers" and workload.cards > 1:
        idle = workload.cards - 1
        return (
            f"Sampling in process uses one card; {idle} of {workload.cards} "
            "stay idle. Set engine.name to vllm."
        )
    idle = workload.cards - plan.cards_used if plan else 0
    if idle <= 0:
        return ""
    price = workload.usd_per_hour * idle / workload.cards
    return (
        f"{idle} of {workload.cards} cards stay idle while sampling"
        + (f", {price:.2f} USD an hour" if price else "")
        + ". Start more replicas of fewer cards each."
    )


def warn_batch(found: JobSteps) -> str:
    """An effective batch that this number of cards cannot make."""
    batch, job = found.batch, found.job
    rows = batch.per_device_batch
    if batch.is_exact and rows == job.per_device_batch:
        return ""
    if batch.is_exact:
        what = (
            f"{job.per_device_batch} rows a card on {batch.world_size} "
            f"process(es) do not divide an effective batch of {batch.wanted}:"
            " the stage will refuse. Planned is"
        )
        fix = f"Set per_device_batch={rows}"
    else:
        what = (
            f"an effective batch of {batch.wanted} is not possible on "
            f"{batch.world_size} processes; the nearest is"
        )
        fix = f"Set effective_batch={batch.effective_batch} and "
        fix += f"per_device_batch={rows}"
    cards = find_cards(
        job.effective_batch, job.per_device_batch, batch.world_size
    )
    other = f", or use {cards} card(s)" if cards else ""
    return f"{job.title}: {what} {batch}. {fix}{other}."


def warn_packing(found: JobSteps) -> str:
    """Too few steps an epoch, above all by packing short rows."""
    job, count = found.job, found.count
    if count.per_epoch >= job.min_steps_per_epoch:
        return ""
    few = (
        f"{count.per_epoch} steps an epoch, fewer than "
        f"{job.min_steps_per_epoch}: the stage will refuse. More epochs would "
        "only repeat the same rows."
    )
    if not job.packing:
        return (
            f"{job.title}: {count.rows} rows make {few} Get more data or "
            "lower effective_batch."
        )
    return (
        f"{job.title}: packing turns {job.rows} rows of about "
        f"{job.mean_length:.0f} tokens into {count.rows} of "
        f"{job.max_length}, {few} Set packing to false, lower "
        "effective_batch, or get more data."
    )


def warn_few_steps(found: JobSteps) -> str:
    """Too few DPO steps at too small a rate to move the policy.

    AdamW moves an entry by at most the sum of the learning rates.
    """
    job, total = found.job, found.count.total
    travel = sum_learning_rates(
        job.learning_rate, total, job.warmup_ratio, job.lr_scheduler
    )
    moves = travel >= SMALL_TRAVEL
    if job.kind != "dpo" or total >= FEW_DPO_STEPS or moves:
        return ""
    return (
        f"{job.title}: only {total} steps, whose learning rates sum to "
        f"{travel:.2g}. The published run took 60 that summed to 1.5e-05, and "
        "ended as its own reference. Harvest more pairs, lower "
        "effective_batch, or raise the learning rate; then watch "
        "rewards/margins."
    )


def warn_rounding(workload: Workload, found: JobSteps) -> str:
    """The whole run moves a weight by less than merging keeps."""
    job = found.job
    if job.lora is None:
        return ""
    travel = learning_rate_travel(
        job.learning_rate,
        found.count.total,
        warmup_ratio=job.warmup_ratio,
        scheduler=job.lr_scheduler,
        dtype=workload.dtype,
    )
    warning = check_travel(travel)
    return f"{job.title}: {warning}" if warning else ""


def warn_sharding(workload: Workload, job: TrainJob) -> str:
    """ZeRO-3 for a LoRA that every card could hold whole."""
    slower = sharding_overhead(workload, job)
    if job.lora is None or slower < 0.01:
        return ""
    return (
        f"{job.title}: DDP is faster for a LoRA. ZeRO-3 gathers all frozen "
        f"weights for every pass: up to {slower:.0%} more time a step here "
        f"(links of {workload.card.link_gb_s:.0f} GB/s, nothing hidden behind "
        "the computation). Take ZeRO-3 for a full fine-tune, or when a card "
        "can load the model but not train beside it: every card loads it "
        "whole before it is sharded."
    )


def warn_small_sets(workload: Workload) -> str:
    """Evaluation sets that cannot show a gain of the published size."""
    gain = CLAIMED_GAIN
    blind = [b for b in workload.benchmarks if smallest_gain(b) > gain]
    if not blind:
        return ""
    listed = ", ".join(
        f"{b.name} (n={b.n}: {100 * smallest_gain(b):.0f} points)"
        for b in blind
    )
    return (
        f"Too small to show a gain of {100 * gain:.1f} points: {listed}. In "
        "brackets the smallest gain each would show with 80 % power. Use "
        "more problems, or several samples a problem, and report intervals."
    )


def smallest_gain(benchmark: Benchmark) -> float:
    """The gain, as a share, that so many problems show with 80 % power.

    Two independent runs of the same size, two-sided 5 %; pairing by problem
    helps when few answers flip.
    """
    p = benchmark.expected
    return POWER * math.sqrt(2 * p * (1 - p) / benchmark.n)


def warn_unplanned(workload: Workload) -> str:
    """A section of the recipe that no stage of this version runs."""
    if not workload.unplanned:
        return ""
    names = " and ".join(workload.unplanned)
    return (
        f"{names}: not planned yet. The recipe has a section for it, and this "
        "version no stage: its steps, memory, hours and dollars are not in "
        "this plan."
    )


def list_facts(workload: Workload, jobs: list[TrainJob]) -> list[str]:
    """What is good to know about the training jobs."""
    facts = [describe_logits(workload, job) for job in jobs[:1]]
    return facts + [describe_dpo_cost(j) for j in jobs if j.kind == "dpo"]


def describe_logits(workload: Workload, job: TrainJob) -> str:
    """What the tiled output head spares, as a fact."""
    tokens = job.sequences_per_device * job.max_length
    full = full_logits_bytes(workload, tokens) / GIB
    return (
        f"{job.title}: all logits of a batch would take {full:.1f} GiB a "
        "card; TRL's output head works in tiles"
    )


def describe_dpo_cost(job: TrainJob) -> str:
    """Why a DPO step takes longer than an SFT step, as a fact."""
    what = "done once" if job.precompute_ref else "done every step"
    return (
        f"a {job.title} step takes {dpo_over_sft(job):.1f} times an SFT step "
        "of as many rows: two sequences a pair, and its share of the "
        f"reference pass ({what})"
    )
