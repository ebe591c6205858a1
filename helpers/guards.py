"""Refuse a doomed run before it costs anything, and say why.

Every function here is pure: numbers in, a verdict out. No torch, no files.
What must not happen raises :class:`~helpers.errors.LabError`; what may be
wrong comes back as a sentence to print. The stages call these guards; a
notebook can call them on made-up numbers to see them fire.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from helpers.errors import LabError
from helpers.schedule import (
    StepCount,
    Travel,
    count_steps,
    half_ulp,
    learning_rate_travel,
    solve_accumulation,
    sum_learning_rates,
    world_size,
)

LN2 = math.log(2)

__all__ = [
    "LN2",
    "DpoMonitor",
    "PairCheck",
    "StepCount",
    "Travel",
    "check_distinct_fraction",
    "check_dpo_start",
    "check_initial_loss",
    "check_pairs",
    "check_steps_per_epoch",
    "count_steps",
    "half_ulp",
    "learning_rate_travel",
    "solve_accumulation",
    "sum_learning_rates",
    "world_size",
]


def check_steps_per_epoch(
    count: StepCount, minimum: int, *, unpacked_rows: int | None = None
) -> None:
    """Refuse a run with too few steps an epoch: the packing trap.

    Args:
        count: of the rows the trainer sees, that is, packed ones.
        minimum: fewest steps an epoch that are accepted.
        unpacked_rows: number of examples before packing, when packing is on.

    Raises:
        LabError: fewer than ``minimum`` steps an epoch.
    """
    if count.per_epoch >= minimum:
        return
    if unpacked_rows is None:
        packed, first = f"{count.rows} rows make", ""
    else:
        packed = (
            f"packing joined {unpacked_rows} examples into {count.rows} "
            "sequences, which make"
        )
        first = "turn packing off (--set sft.packing=false), "
    raise LabError(
        f"Only {count.per_epoch} optimizer steps an epoch; this recipe asks "
        f"for at least {minimum}.",
        why=f"{packed} {count.per_epoch} batches of "
        f"{count.effective_batch}. So few updates hardly move the adapter, "
        "and adding epochs only repeats the same rows until the model knows "
        "them by heart: this is the packing trap. Count steps before "
        "training, not after",
        fix=f"{first}lower sft.effective_batch, harvest more rows, or, when "
        "it is meant so, lower sft.min_steps_per_epoch",
    )


def check_distinct_fraction(
    fraction: float, floor: float, temperature: float
) -> None:
    """Refuse sampling whose completions of one problem are copies.

    The measured share of distinct texts decides, never the presence of a
    seed: whether one seed collapses n > 1 depends on the engine's version.

    Args:
        fraction: distinct completions / completions, over the first problems.
        floor: smallest accepted share.
        temperature: of sampling; at 0 copies are what was asked for.

    Raises:
        LabError: too few distinct completions at a temperature above 0.
    """
    if temperature <= 0 or fraction >= floor:
        return
    raise LabError(
        f"Only {fraction:.0%} of the sampled completions are distinct; at "
        f"temperature {temperature:g} at least {floor:.0%} should be.",
        why="copies bring no new pairs: the engine reuses one random stream "
        "for all samples of a problem, or the model is nearly sure of every "
        "token",
        fix="derive one seed per (problem, sample), raise "
        "sampling.temperature, or, for a very sure model, lower "
        "harvest.min_distinct_fraction",
    )


def check_initial_loss(
    first_loss: float, sampling_logprob: float | None
) -> str | None:
    """Compare the first training loss with what sampling recorded.

    The rows are the model's own samples, so before the first update its loss
    on them is the mean -log p it had while writing them. Another number means
    another text: a different chat template, a doubled BOS, or a loss on the
    prompt.

    Args:
        first_loss: logged loss of step 1, in nats per token.
        sampling_logprob: mean log p per token of the same rows when sampled;
            None when it was not recorded.

    Returns:
        A warning, or None when the two agree within the larger of 0.05 nat
        and one half (the first batch is a sample of the rows).
    """
    if sampling_logprob is None:
        return None
    expected = -sampling_logprob
    if abs(first_loss - expected) <= max(0.05, 0.5 * expected):
        return None
    return (
        f"The first training loss is {first_loss:.3f}, but the model wrote "
        f"these completions at {expected:.3f} nats a token. Training and "
        "sampling do not see the same text: compare the chat template, the "
        "BOS token, and whether the loss covers the completion only."
    )


def check_dpo_start(loss: float, tolerance: float = 1e-3) -> None:
    """Assert that DPO starts from its own reference: the loss is ln 2.

    Raises:
        LabError: the loss before any update is not ln 2.
    """
    if abs(loss - LN2) <= tolerance:
        return
    raise LabError(
        f"The DPO loss before any update is {loss:.4f}, not ln 2 = {LN2:.4f}.",
        why="at step 0 policy and reference are the same model, so every "
        "margin is 0 and -log sigmoid(0) = ln 2. Another value means that "
        "the reference is another model than the one being trained: an "
        "adapter that was not merged first, a stale cache of reference log "
        "probabilities, or dropout left on",
        fix="merge the SFT adapter, train a fresh adapter on the merged "
        "model, and delete the old output folder",
    )


@dataclass(frozen=True)
class PairCheck:
    """Which preference pairs can be used (indices), and why others cannot."""

    kept: tuple[int, ...]
    identical: int
    empty: int
    too_long: int

    def __str__(self) -> str:
        return (
            f"{len(self.kept)} pairs to train on; left out: "
            f"{self.identical} with chosen = rejected, {self.empty} empty, "
            f"{self.too_long} over max_length"
        )


def check_pairs(
    pairs: Sequence[Any], lengths: Sequence[int], max_length: int
) -> PairCheck:
    """Sort out pairs that would teach nothing or the wrong thing.

    Args:
        pairs: objects with prompt, chosen, rejected and problem_id.
        lengths: tokens of prompt + the longer of the two answers, per pair.
        max_length: longest sequence the trainer keeps whole.

    Raises:
        LabError: one problem appears under two prompts, or no pair is left.
    """
    _check_one_prompt_per_problem(pairs)
    kept, identical, empty, too_long = [], 0, 0, 0
    for index, (pair, length) in enumerate(zip(pairs, lengths, strict=True)):
        if not pair.chosen.strip() or not pair.rejected.strip():
            empty += 1
        elif pair.chosen.strip() == pair.rejected.strip():
            identical += 1
        elif length > max_length:
            too_long += 1
        else:
            kept.append(index)
    check = PairCheck(tuple(kept), identical, empty, too_long)
    if not kept:
        raise LabError(
            f"No preference pair can be used: {check}.",
            fix="sample more problems or raise dpo.max_length",
        )
    return check


def _check_one_prompt_per_problem(pairs: Sequence[Any]) -> None:
    prompts: dict[str, str] = {}
    for pair in pairs:
        first = prompts.setdefault(pair.problem_id, pair.prompt)
        if first != pair.prompt:
            raise LabError(
                f"Problem {pair.problem_id} appears under two prompts.",
                why="chosen and rejected must answer the same text; pairs of "
                "two prompt templates are mixed in one file",
                fix="make the pairs again with one template",
            )


class DpoMonitor:
    """Says while DPO trains what its evaluation would show hours later.

    * no-op: after ``noop_after_steps`` steps the mean margin is still below
      ``noop_margin``: the policy is the reference, and the benchmark will not
      move. Accuracy says nothing here, since it counts a margin of 1e-6.
    * overfit: the mean margin is above ``overfit_margin`` while accuracy
      stays at 1.

    Means are over the last ``window`` logged steps.
    """

    def __init__(
        self,
        noop_margin: float,
        noop_after_steps: int,
        overfit_margin: float,
        window: int = 5,
    ):
        self.noop_margin, self.noop_after_steps = noop_margin, noop_after_steps
        self.overfit_margin, self.window = overfit_margin, window
        self.step = 0
        self._margins: deque[float] = deque(maxlen=window)
        self._accuracies: deque[float] = deque(maxlen=window)
        self._said: set[str] = set()

    @property
    def mean_margin(self) -> float:
        """Mean of the last logged margins (nan before the first)."""
        if not self._margins:
            return math.nan
        return sum(self._margins) / len(self._margins)

    @property
    def is_noop(self) -> bool:
        """The margin is still within ``noop_margin`` of zero."""
        return abs(self.mean_margin) < self.noop_margin

    @property
    def is_overfit(self) -> bool:
        """A full window of accuracy 1 with a margin over the limit."""
        full = len(self._accuracies) == self.window
        stuck = full and min(self._accuracies) >= 1.0
        return stuck and self.mean_margin > self.overfit_margin

    def observe(self, step: int, margin: float, accuracy: float) -> list[str]:
        """Take one logged step; return alarms that are new, each once."""
        self.step = step
        self._margins.append(margin)
        self._accuracies.append(accuracy)
        alarms = []
        if step >= self.noop_after_steps and self.is_noop:
            alarms += self._say_once("noop", self._noop_text())
        if self.is_overfit:
            alarms += self._say_once("overfit", self._overfit_text())
        return alarms

    def finish(self) -> list[str]:
        """The verdict at the end, also of a run shorter than the wait."""
        return (
            self._say_once("noop", self._noop_text()) if self.is_noop else []
        )

    def _say_once(self, key: str, text: str) -> list[str]:
        if key in self._said:
            return []
        self._said.add(key)
        return [text]

    def _noop_text(self) -> str:
        return (
            f"No-op alarm at step {self.step}: the mean reward margin is "
            f"{self.mean_margin:+.4f}, within {self.noop_margin:g} of zero. "
            "The policy is still its own reference, so the evaluation will "
            "show no change. Raise dpo.learning_rate or train for more steps."
        )

    def _overfit_text(self) -> str:
        return (
            f"Overfit alarm at step {self.step}: margin "
            f"{self.mean_margin:.2f} is above {self.overfit_margin:g} and "
            "accuracy stays at 1. Every pair is already told apart; more "
            "steps only push probabilities away from the reference. Stop "
            "earlier, lower dpo.learning_rate or raise dpo.beta."
        )
