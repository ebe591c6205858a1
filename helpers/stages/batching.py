"""Which rows make a batch, in one process or several: similar lengths.

The order is a function of the seed, the epoch and the recipe's batch sizes.
It does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler


class LengthSampler(LengthGroupedSampler):
    """Batches of similar length, in an order that only (seed, epoch) fixes.

    Similar lengths save padding. The parent draws from torch's global state,
    so a run resumed in epoch 2 would see other batches than it had left, and
    it hands out each group from long to short, which puts a saw into the
    loss curve; here the order of the batches is random too.

    Of several processes the k-th takes every k-th batch (accelerate's
    ``BatchSamplerShard``), so a step has the rows that it would have in one
    process. Inside a step batches go from long to short: then those that are
    computed at the same moment are of similar length.

    Args:
        batch_size: rows of one forward pass on one device.
        lengths: tokens of each row.
        step: batches of one optimizer step, over all devices.
    """

    def __init__(
        self, batch_size: int, lengths: list[int], seed: int, step: int = 1
    ):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.step = seed, step
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        order, size = list(super().__iter__()), self.batch_size
        full = len(order) // size
        batches = torch.randperm(full, generator=self.generator).tolist()
        for first in range(0, full, self.step):
            # The parent's order within a batch is from long to short.
            for batch in sorted(
                batches[first : first + self.step],
                key=lambda number: -self.lengths[order[number * size]],
            ):
                yield from order[batch * size : (batch + 1) * size]
        yield from order[full * size :]


class TellEpoch(TrainerCallback):
    """Tells the sampler its epoch, which a resumed run would not.

    In several processes accelerate 1.15 wraps the sampler three deep to skip
    batches, and transformers 5.23 tells two: a run resumed in its second
    epoch would go on with the batches of the first.
    """

    def __init__(self, sampler: LengthSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Called before the first batch is drawn."""
        self.sampler.set_epoch(int(state.epoch))


class GroupedByLength:
    """Mixin for a TRL trainer: batches come from :class:`LengthSampler`."""

    def __init__(self, *arguments: Any, args: Any, **settings: Any):
        # One process trains on one card. Else transformers would divide every
        # batch among all that it sees, and the effective batch would grow.
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(*arguments, args=args, **settings)

    def _get_train_sampler(self, train_dataset=None) -> LengthSampler:
        rows = self.train_dataset
        names = [
            name
            for name in ("input_ids", "chosen_ids", "rejected_ids")
            if name in rows.column_names
        ]
        columns = [[len(ids) for ids in rows[name]] for name in names]
        lengths = [max(sizes) for sizes in zip(*columns, strict=True)]
        step = self.args.gradient_accumulation_steps * self.args.world_size
        sampler = LengthSampler(
            self.args.train_batch_size, lengths, self.args.seed, step
        )
        self.add_callback(TellEpoch(sampler))
        return sampler
