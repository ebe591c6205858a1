"""Time, tokens and memory of real training steps, beside the planner's."""

from __future__ import annotations

import statistics
import time
import types
from dataclasses import dataclass, field, replace
from typing import Any

from helpers.base import Recipe
from helpers.models import widen_adapter
from helpers.planner import (
    CARDS,
    Card,
    ModelShape,
    TrainJob,
    estimate_training,
    make_workload,
    train_flops_per_token,
)

WARM_STEPS = 2  # not counted: allocation, compilation


@dataclass
class StepMeter:
    """Seconds and real tokens of each optimizer step."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def attach(self, trainer: Any) -> None:
        """Watch this trainer: tokens of its batches, time of its steps."""
        from transformers import TrainerCallback

        meter, inner = self, trainer.training_step

        class Watch(TrainerCallback):
            """Starts and stops the clock around a step."""

            def on_step_begin(self, args, state, control, **kwargs):
                meter.tokens.append(0)
                meter.clock = read_clock()

            def on_step_end(self, args, state, control, **kwargs):
                meter.seconds.append(read_clock() - meter.clock)

        def step(model: Any, inputs: dict, *rest: Any) -> Any:
            meter.tokens[-1] += count_tokens(inputs)
            return inner(model, inputs, *rest)

        trainer.training_step = step
        trainer.add_callback(Watch())

    def summarise(self) -> dict[str, float]:
        """Over the steps after the first ones."""
        skip = min(WARM_STEPS, len(self.seconds) - 1)
        seconds, tokens = self.seconds[skip:], self.tokens[skip:]
        return {
            "steps": len(seconds),
            "step_seconds": round(statistics.fmean(seconds), 5),
            "tokens_per_second": round(sum(tokens) / sum(seconds), 1),
        }


def read_clock() -> float:
    """Seconds, when the device has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def count_tokens(inputs: dict[str, Any]) -> int:
    """Tokens of a batch that are not padding."""
    mask = inputs.get("attention_mask")
    return int(inputs["input_ids"].numel() if mask is None else mask.sum())


def measure_steps(trainer: Any, *, full_logits: bool = False) -> dict:
    """Train to the end; seconds a step, tokens a second, peak memory.

    ``full_logits``: the loss as transformers computes it, from all logits,
    instead of TRL's tiled output head.
    """
    import torch
    from transformers import Trainer

    if full_logits:
        trainer.compute_loss = types.MethodType(Trainer.compute_loss, trainer)
    widen_adapter(trainer.model)
    meter = StepMeter()
    meter.attach(trainer)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    return meter.summarise() | {"peak_gib": read_peak()}


def read_peak() -> float | None:
    """GiB that torch held on the card at most; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.max_memory_reserved() / 2**30, 3)


def compare_with_plan(
    recipe: Recipe, shape: ModelShape, kind: str, found: dict[str, Any]
) -> dict[str, Any]:
    """Measured memory beside the planner's, and how busy the card was.

    ``mfu`` counts the arithmetic that a step needs (forward, and the
    gradients of activations; a frozen base has no others), ``hfu`` also the
    forward pass that checkpointing does again. Both None off the table of
    cards.
    """
    work = make_workload(recipe)
    work = replace(work, shape=shape, card=find_this_card() or work.card)
    job = next(j for j in work.jobs if getattr(j, "kind", "") == kind)
    job = replace(job, mean_length=job.max_length)
    said = estimate_training(work.holding(job), job)
    peak = found["peak_gib"]
    done = {
        "planned_gib": round(said.gib, 3),
        "measured_over_planned": round(peak / said.gib, 3) if peak else None,
        "planned_parts_gib": {
            k: round(v / 2**30, 3) for k, v in said.parts.items()
        },
    }
    return found | done | measure_use(shape, job, found)


def measure_use(
    shape: ModelShape, job: TrainJob, found: dict[str, Any]
) -> dict[str, float | None]:
    """Model and hardware FLOPs utilisation of a measured speed."""
    card, speed = find_this_card(), found["tokens_per_second"]
    plain = replace(job, gradient_checkpointing=False)
    shares = {}
    for name, kind in (("mfu", plain), ("hfu", job)):
        needed = train_flops_per_token(shape, kind) * speed
        shares[name] = (
            round(needed / (card.tflops * 1e12), 4) if card else None
        )
    return shares


def find_this_card() -> Card | None:
    """The table's card that torch's name of this one contains."""
    import torch

    if not torch.cuda.is_available():
        return None
    words = torch.cuda.get_device_name().replace("-", " ").split()
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    # "A100" and "80GB" are one card in the table, "RTX" and "3090" another.
    near = [
        card
        for card in CARDS.values()
        if card.name.removeprefix("RTX ").split()[0] in words
    ]
    return min(near, key=lambda c: abs(c.memory_gib - memory), default=None)
