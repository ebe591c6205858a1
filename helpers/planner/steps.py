"""The batch on any number of cards, and the steps that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from helpers.base import LabError
from helpers.planner.schedule import StepCount, count_steps
from helpers.planner.workload import TrainJob, Workload


@dataclass(frozen=True)
class BatchPlan:
    """Rows of one optimizer step = rows a card × accumulation × cards."""

    per_device_batch: int
    accumulation: int
    world_size: int
    wanted: int

    @property
    def effective_batch(self) -> int:
        """Rows that one optimizer step really sees."""
        return self.per_device_batch * self.accumulation * self.world_size

    @property
    def is_exact(self) -> bool:
        """The effective batch is the wanted one."""
        return self.effective_batch == self.wanted

    def __str__(self) -> str:
        return (
            f"{self.effective_batch} = {self.per_device_batch} rows × "
            f"{self.accumulation} accumulation × {self.world_size} process(es)"
        )


def solve_batch(
    effective_batch: int, per_device_batch: int, world_size: int
) -> BatchPlan:
    """Keep the effective batch on any number of cards.

    The largest batch a card that gives exactly ``effective_batch``; where
    none does (64 rows on 6 cards), the nearest possible one.

    Args:
        effective_batch: rows an optimizer step should see.
        per_device_batch: most rows that a card can take at once.
        world_size: number of processes.

    Raises:
        LabError: a number that is not positive.
    """
    if min(effective_batch, per_device_batch, world_size) < 1:
        raise LabError(
            "A batch, its rows a card and the cards must all be positive.",
            fix="mend effective_batch, per_device_batch or hardware.cards",
        )
    best: tuple[tuple[int, int], BatchPlan] | None = None
    for rows in range(min(per_device_batch, effective_batch), 0, -1):
        at_once = rows * world_size
        for accumulation in (
            max(1, effective_batch // at_once),
            max(1, math.ceil(effective_batch / at_once)),
        ):
            off = abs(at_once * accumulation - effective_batch)
            key = (off, -rows)
            if best is None or key < best[0]:
                found = BatchPlan(
                    rows, accumulation, world_size, effective_batch
                )
                best = (key, found)
    return best[1]


def find_cards(effective_batch: int, per_device_batch: int, most: int) -> int:
    """The largest number of cards whose batch the trainer takes; else 0.

    The trainer never lowers ``per_device_batch`` by itself: it refuses.
    """
    for cards in range(most, 0, -1):
        if effective_batch % (per_device_batch * cards) == 0:
            return cards
    return 0


@dataclass(frozen=True)
class JobSteps:
    """Batch and steps of one job; ``rows`` are those the trainer sees."""

    job: TrainJob
    batch: BatchPlan
    count: StepCount

    @property
    def rows(self) -> int:
        """Sequences (or pairs) in an epoch, packed ones when packing."""
        return self.count.rows


def plan_steps(workload: Workload, job: TrainJob) -> JobSteps:
    """The steps the pinned trainer will take, and the older floor count.

    With packing, the rows are the packed ones, estimated from the mean
    length; with GRPO, every prompt is ``generations`` rows.
    """
    batch = solve_batch(
        job.effective_batch, job.per_device_batch, workload.world_size
    )
    rows = estimate_rows(job)
    count = count_steps(
        rows,
        batch.effective_batch,
        batch.per_device_batch,
        job.epochs,
        world_size=workload.world_size,
        max_steps=job.max_steps,
    )
    return JobSteps(job, batch, count)


def estimate_rows(job: TrainJob) -> int:
    """Rows the trainer sees in an epoch."""
    if job.kind == "grpo":  # TRL's sampler drops a last short batch
        rows = job.rows * job.generations
        return max(rows // job.effective_batch, 1) * job.effective_batch
    if job.packing:
        mean = min(job.mean_length, job.max_length)
        return max(1, math.ceil(job.rows * mean / job.max_length))
    return job.rows
