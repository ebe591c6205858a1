"""Tokens, hours and dollars of every phase."""

from __future__ import annotations

from dataclasses import dataclass

from helpers.planner.convert import Assumptions
from helpers.planner.measured import Measured, scale_recorded_rate
from helpers.planner.parallelism import ReplicaPlan
from helpers.planner.speed import (
    Efficiency,
    Rate,
    estimate_sampling_rate,
    estimate_training_rate,
)
from helpers.planner.steps import JobSteps
from helpers.planner.workload import SampleJob, TrainJob, Workload


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
    assumed: Assumptions,
    efficiency: Efficiency,
) -> list[Phase]:
    """All phases in order, the machine's own set-up first."""
    phases = []
    if workload.card and workload.usd_per_hour > 0:
        phases.append(
            _fixed("set-up", assumed.setup_minutes, workload, "assumed")
        )
    for job in workload.jobs:
        held = workload.holding(job)  # unpacking 4 bits takes time
        if isinstance(job, SampleJob):
            rate = measured.rate("distill")
            rate = rate or _sampling_rate(held, job, replicas, efficiency)
            rate = rate or scale_recorded_rate(held, job)
            phases.append(
                _worked(job.name, job.tokens, rate, workload, assumed)
            )
            continue
        found = steps[job.title]
        if job.kind == "grpo":
            phases += _grpo_phases(
                workload, job, found, replicas, assumed, efficiency
            )
            continue
        rate = measured.rate(job.kind)
        rate = rate or estimate_training_rate(held, job, efficiency)
        rate = rate or scale_recorded_rate(held, job)
        phases.append(
            _worked(job.title, count_tokens(found), rate, workload, assumed)
        )
        merge = _fixed(
            f"merge {job.title}", assumed.merge_minutes, workload, "assumed"
        )
        phases.append(merge)
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


def _sampling_rate(
    workload: Workload,
    job: SampleJob,
    replicas: ReplicaPlan | None,
    efficiency: Efficiency,
) -> Rate | None:
    if replicas is None:
        return estimate_sampling_rate(workload, job, efficiency)
    return estimate_sampling_rate(
        workload,
        job,
        efficiency,
        replicas.replicas,
        replicas.tensor_parallel_size,
        replicas.kv_tokens_per_replica,
    )


def _grpo_phases(
    workload: Workload,
    job: TrainJob,
    found: JobSteps,
    replicas: ReplicaPlan | None,
    assumed: Assumptions,
    efficiency: Efficiency,
) -> list[Phase]:
    """Sampling and learning take turns; planned as two phases."""
    completions = found.count.total * found.batch.effective_batch
    prompt = job.mean_length - job.completion_length
    sampling = SampleJob(
        f"{job.title} sampling",
        found.batch.effective_batch,
        1,
        prompt,
        job.completion_length,
        job.max_length,
    )
    rate = _sampling_rate(workload, sampling, replicas, efficiency)
    drawn = completions * job.completion_length
    learn = estimate_training_rate(workload, job, efficiency)
    return [
        _worked(sampling.name, drawn, rate, workload, assumed),
        _worked(
            f"{job.title} learning",
            completions * job.mean_length,
            learn,
            workload,
            assumed,
        ),
    ]


def _worked(
    name: str,
    tokens: float,
    rate: Rate | None,
    workload: Workload,
    assumed: Assumptions,
) -> Phase:
    """A phase that is tokens over a rate; a measured rate includes starts."""
    if rate is None:
        return Phase(name, tokens, None, None, "no rate is known here")
    hours = tokens / rate.tokens_per_second / 3600
    if not rate.measured:
        hours += assumed.start_minutes / 60
    how = f"{rate.tokens_per_second:,.0f} tokens/s: {rate.source}"
    return Phase(name, tokens, hours, hours * workload.usd_per_hour, how)


def _fixed(name: str, minutes: float, workload: Workload, how: str) -> Phase:
    if workload.card is None:
        return Phase(name, 0.0, 0.0, 0.0, "seconds")
    hours = minutes / 60
    return Phase(name, 0.0, hours, hours * workload.usd_per_hour, how)
