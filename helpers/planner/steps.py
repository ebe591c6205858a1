"""Batch and steps of a run, and how far they can carry a weight.

cards → rows a card × accumulation → steps → sum of the learning rates

Pure arithmetic: no torch, no files. Steps are counted as the installed
trainer counts them; learning rates are summed as its schedules hand them out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from helpers.base import LabError
from helpers.planner.workload import TrainJob, Workload

MANTISSA_BITS = {"float32": 23, "float16": 10, "bfloat16": 7}


@dataclass(frozen=True)
class StepCount:
    """How often the optimizer will step.

    ``per_epoch`` and ``total`` are counted as transformers 5 counts them: a
    ragged last batch is a step of its own. ``floor_per_epoch`` and
    ``floor_total`` are the older count, ``rows // effective_batch``, which
    published runs often quote.
    """

    rows: int
    effective_batch: int
    accumulation: int
    micro_batches: int
    per_epoch: int
    total: int
    floor_per_epoch: int
    floor_total: int

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, {self.effective_batch} a step: "
            f"{self.per_epoch} steps an epoch, {self.total} in all "
            f"(counted by rows // batch, as older reports do: "
            f"{self.floor_per_epoch} and {self.floor_total})"
        )


def solve_accumulation(
    effective_batch: int, per_device_batch: int, world_size: int = 1
) -> int:
    """Gradient accumulation that keeps the effective batch on any machine.

    Raises:
        LabError: the effective batch is no multiple of what all devices
            take at once.
    """
    at_once = per_device_batch * world_size
    accumulation, rest = divmod(effective_batch, at_once)
    if rest or not accumulation:
        raise LabError(
            f"effective_batch={effective_batch} is not a multiple of "
            f"{per_device_batch} rows on each of {world_size} device(s).",
            why="the effective batch must be the same on every machine, or "
            "the learning rate no longer fits",
            fix="choose a per_device_batch that divides "
            f"{effective_batch / world_size:g}",
        )
    return accumulation


def count_steps(
    rows: int,
    effective_batch: int,
    per_device_batch: int,
    epochs: float,
    *,
    world_size: int = 1,
    max_steps: int = -1,
) -> StepCount:
    """Count optimizer steps exactly as the trainer will.

    Source: ``Trainer.set_initial_training_values`` of transformers 5.23.

    Args:
        rows: training sequences (packed ones when packing is on).
        effective_batch: sequences per optimizer step over all devices.
        per_device_batch: sequences per forward pass on one device.
        epochs: passes over the rows.
        world_size: number of processes.
        max_steps: a fixed number of steps instead of epochs, or -1.
    """
    if rows < 1:
        raise LabError(
            "There is no row to train on.",
            fix="look at the harvest; sample more problems",
        )
    accumulation = solve_accumulation(
        effective_batch, per_device_batch, world_size
    )
    micro_batches = math.ceil(rows / (per_device_batch * world_size))
    per_epoch = math.ceil(micro_batches / accumulation)
    floor = rows // effective_batch
    fixed = max_steps > 0
    return StepCount(
        rows=rows,
        effective_batch=effective_batch,
        accumulation=accumulation,
        micro_batches=micro_batches,
        per_epoch=per_epoch,
        total=max_steps if fixed else math.ceil(epochs * per_epoch),
        floor_per_epoch=floor,
        floor_total=max_steps if fixed else int(epochs * floor),
    )


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
    """Batch and steps of one job."""

    job: TrainJob
    batch: BatchPlan
    count: StepCount


def plan_steps(workload: Workload, job: TrainJob) -> JobSteps:
    """The steps the pinned trainer will take, and the older floor count.

    With packing, the rows are the packed ones, estimated from the mean
    length.
    """
    batch = solve_batch(
        job.effective_batch, job.per_device_batch, workload.world_size
    )
    rows = job.rows
    if job.packing:
        mean = min(job.mean_length, job.max_length)
        rows = max(1, math.ceil(job.rows * mean / job.max_length))
    count = count_steps(
        rows,
        batch.effective_batch,
        batch.per_device_batch,
        job.epochs,
        world_size=workload.world_size,
        max_steps=job.max_steps,
    )
    return JobSteps(job, batch, count)


def sum_learning_rates(
    learning_rate: float,
    total_steps: int,
    warmup_ratio: float = 0.0,
    scheduler: str = "cosine",
) -> float:
    """Sum of the learning rates of a whole run.

    Adam moves a weight by about the learning rate a step, so no entry of a
    LoRA matrix can travel much further than this sum. The schedules are
    those of ``transformers.optimization``.
    """
    shapes = {
        "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
        "linear": lambda x: 1 - x,
        "constant": lambda x: 1.0,
        "constant_with_warmup": lambda x: 1.0,
    }
    if scheduler not in shapes:
        raise LabError(
            f"The travel of the schedule '{scheduler}' is not known here.",
            fix="choose one of: " + ", ".join(shapes),
        )
    warmup = math.ceil(total_steps * warmup_ratio)
    if scheduler == "constant":
        warmup = 0
    ramp = sum(step / warmup for step in range(min(warmup, total_steps)))
    rest = total_steps - warmup
    decay = sum(shapes[scheduler](step / rest) for step in range(max(rest, 0)))
    return learning_rate * (ramp + decay)


def half_ulp(weight: float, dtype: str = "bfloat16") -> float:
    """Half the gap between ``weight`` and its neighbour in ``dtype``.

    A change smaller than this is rounded away when a weight is stored.
    """
    exponent = math.floor(math.log2(abs(weight)))
    return 2.0 ** (exponent - MANTISSA_BITS[dtype] - 1)


@dataclass(frozen=True)
class Travel:
    """How far a run can move an entry, against what the dtype can store."""

    sum_lr: float
    half_ulp: float
    weight: float
    dtype: str

    @property
    def is_erased(self) -> bool:
        """The whole run stays below half an ulp of a typical weight."""
        return self.sum_lr < self.half_ulp

    def __str__(self) -> str:
        verdict = "below" if self.is_erased else "above"
        return (
            f"sum of learning rates {self.sum_lr:.2g}; {verdict} half an ulp "
            f"of a {self.dtype} weight of {self.weight:g} "
            f"({self.half_ulp:.2g})"
        )


def learning_rate_travel(
    learning_rate: float,
    total_steps: int,
    *,
    warmup_ratio: float = 0.0,
    scheduler: str = "cosine",
    weight: float = 0.02,
    dtype: str = "bfloat16",
) -> Travel:
    """Can this run survive being merged into ``dtype`` weights?

    Args:
        weight: a typical weight of the model (0.02 is the usual initial
            standard deviation).
    """
    total = sum_learning_rates(
        learning_rate, total_steps, warmup_ratio, scheduler
    )
    return Travel(total, half_ulp(weight, dtype), weight, dtype)
