"""How many steps a run takes, and how far they can carry a weight.

Pure arithmetic: no torch, no files. Steps are counted as the installed
trainer counts them; learning rates are summed as its schedules hand them out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from helpers.base import LabError

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
