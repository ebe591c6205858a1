"""DPO: the right reference at the start, and a verdict while it trains."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from helpers.errors import LabError

LN2 = math.log(2)
# Parts of names that peft switches off together with the adapter.
SWITCHED = ("lora_", ".modules_to_save.", "trainable_tokens_")


def check_dpo_start(loss: float, tolerance: float = 1e-3) -> None:
    """Assert that DPO starts from its own reference: the loss is ln 2.

    Story: with an older TRL, a model that still carries its SFT adapter gets
    the *base* model as its reference: nothing fails, and DPO pulls against
    SFT. The loss before the first step tells: at a margin of 0 it is ln 2,
    as the EulerForge course has its readers look up.

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


def check_reference_control(
    trainable: Iterable[str], *, precomputed: bool = False
) -> None:
    """Refuse to train weights that the reference shares with the policy.

    The reference of DPO is the model with its adapter switched off. A
    trainable weight that stays in place then moves the reference along with
    the policy, and the margin measures nothing.

    Story: a mixture of experts, whose router was trained as a base weight
    during DPO, moved its own reference by 0.48 logits in ten steps; with the
    router frozen, or under peft's ``modules_to_save``, by 0.00. The
    EulerForge course freezes the router for DPO, and gives another reason.
    ``bias="all"`` of a LoRA does the same.

    Args:
        trainable: names of the parameters that require a gradient.
        precomputed: the reference's log probabilities were stored before
            training, so nothing that is trained can reach them.

    Raises:
        LabError: names the first parameters outside the adapter.
    """
    outside = [
        name
        for name in trainable
        if not any(part in name for part in SWITCHED)
    ]
    if precomputed or not outside:
        return
    shown = ", ".join(outside[:3]) + (", …" if len(outside) > 3 else "")
    raise LabError(
        f"{len(outside)} trainable parameter(s) are outside the adapter: "
        f"{shown}.",
        why="the reference is this model with its adapter switched off; "
        "these weights stay on, so the reference moves with the policy",
        fix="freeze them, put them under modules_to_save, or set "
        "dpo.precompute_ref_log_probs=true",
    )


def check_noop(
    step: int, mean_margin: float, noop_margin: float
) -> str | None:
    """Warn of a policy that is still its own reference.

    Story: the published DPO run paid for its steps and then for the whole
    evaluation, to find its scores unchanged. Its margin had ended at -0.026,
    and was there to be read before the evaluation. Its accuracy of 0.225
    looked alarming and meant nothing: exact ties count as wrong.

    Returns:
        A warning, or None when the margin has left zero.
    """
    if not abs(mean_margin) < noop_margin:
        return None
    return (
        f"No-op alarm at step {step}: the mean reward margin is "
        f"{mean_margin:+.4f}, within {noop_margin:g} of zero. "
        "The policy is still its own reference, so the evaluation will "
        "show no change. Raise dpo.learning_rate or train for more steps."
    )


def check_overfit(
    step: int, mean_margin: float, overfit_margin: float, lowest: float
) -> str | None:
    """Warn of pairs that are learned by heart.

    Story: the EulerForge course lists the signs of a DPO run gone too far:
    margins above 5, an accuracy that sticks at 1, odd lengths of the
    rejected answers.

    Args:
        lowest: smallest accuracy of the last logged steps.

    Returns:
        A warning, or None when a pair is still undecided or the margin is
        within ``overfit_margin``.
    """
    if lowest < 1.0 or not mean_margin > overfit_margin:
        return None
    return (
        f"Overfit alarm at step {step}: margin "
        f"{mean_margin:.2f} is above {overfit_margin:g} and "
        "accuracy stays at 1. Every pair is already told apart; more "
        "steps only push probabilities away from the reference. Stop "
        "earlier, lower dpo.learning_rate or raise dpo.beta."
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
        return self._judge_noop() is not None

    @property
    def is_overfit(self) -> bool:
        """A full window of accuracy 1 with a margin over the limit."""
        return self._judge_overfit() is not None

    def observe(self, step: int, margin: float, accuracy: float) -> list[str]:
        """Take one logged step; return alarms that are new, each once."""
        self.step = step
        self._margins.append(margin)
        self._accuracies.append(accuracy)
        alarms = []
        if step >= self.noop_after_steps:
            alarms += self._say_once("noop", self._judge_noop())
        return alarms + self._say_once("overfit", self._judge_overfit())

    def finish(self) -> list[str]:
        """The verdict at the end, also of a run shorter than the wait."""
        return self._say_once("noop", self._judge_noop())

    def _judge_noop(self) -> str | None:
        return check_noop(self.step, self.mean_margin, self.noop_margin)

    def _judge_overfit(self) -> str | None:
        full = len(self._accuracies) == self.window
        lowest = min(self._accuracies) if full else 0.0
        return check_overfit(
            self.step, self.mean_margin, self.overfit_margin, lowest
        )

    def _say_once(self, key: str, text: str | None) -> list[str]:
        if text is None or key in self._said:
            return []
        self._said.add(key)
        return [text]
