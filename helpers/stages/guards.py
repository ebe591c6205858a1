"""What may be wrong with rows, pairs, losses and merges: pure checks.

Each tells the story of the run that needed it, see helpers/base/guards.py.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.base import (
    AFTER,
    LOADED,
    SAMPLING,
    TRAINING,
    LabError,
    did_you_mean,
    guard,
)
from helpers.models import check_prompt_text, check_template, render_prompt

# --- the text that is trained on ---

Document = tuple[Sequence[int], Sequence[int]]
# Llama 3's chat template writes a date into the system prompt: in rows made
# elsewhere, or by an older version, it is the day's.
DATE = re.compile(r"\b\d{1,2} [A-Z][a-z]{2} \d{4}\b")


@guard("copies among the samples", SAMPLING)
def check_distinct_fraction(
    fraction: float, floor: float, temperature: float
) -> None:
    """Refuse sampling whose completions of one problem are copies.

    Story: the published 7B run sampled with a fixed seed, and only 5.4 % of
    its problems gave a pair; a second run, without the seed and hotter, gave
    24.9 %. Its rule "no seed when n > 1" blames the wrong thing: vLLM handed
    one seed to all samples of a prompt in a few versions only. So the
    measured share decides, never whether a seed is set.

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


@guard("first loss far from -log p of the samples", TRAINING)
def check_initial_loss(
    first_loss: float, sampling_logprob: float | None
) -> str | None:
    """Compare the first training loss with what sampling recorded.

    The rows are the model's own samples, so before the first update its loss
    on them is the mean -log p it had while writing them. Another number means
    another text: a different chat template, a doubled BOS, or a loss on the
    prompt.

    Story: the published 7B run trained on its own samples and logged a first
    loss of 1.25, where about 0.3 was to be expected. A published run on a T4
    began at 6.07, with the chat format of another model and BOS twice.

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


@guard("other tokens in training than in sampling", LOADED)
def check_supervision(
    documents: Iterable[Document],
    prompts: Iterable[Sequence[int]],
    tokenizer: Any,
) -> None:
    """Check token by token what the trainer will learn from.

    Each document is (input ids, labels) as the trainer made them. Its prompt
    must be exactly what sampling feeds (so with the same single BOS), carry
    no loss, and be followed by a completion that is supervised to its end
    token.

    Story: the published T4 run trained on the whole text, prompt included,
    and cut its rows at 2,048 tokens, where most answers had not been given
    yet. Both show in the tokens, and in no log.

    Args:
        prompts: token ids of the prompts as sampling feeds them.
        tokenizer: only its ``bos_token_id`` and ``eos_token_id`` count.

    Raises:
        LabError: names the first document that differs and how.
    """
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    known = {tuple(ids) for ids in prompts}
    for number, (ids, labels) in enumerate(documents, 1):
        start = next((i for i, x in enumerate(labels) if x != -100), None)
        if start is None:
            fault = "no token carries a loss"
        elif tuple(ids[:start]) not in known:
            fault = "its prompt tokens differ from those sampling feeds"
        elif list(ids[start:]) != list(labels[start:]):
            fault = "part of the completion carries no loss"
        elif ids[-1] != end:
            fault = "it does not end on the end token"
        elif bos not in (None, end) and bos in ids[max(start, 1) :]:
            fault = "a BOS token stands inside the completion"
        else:
            continue
        raise LabError(
            f"Training row {number} is not what it should be: {fault}.",
            why="the trainer's own tokens were compared with the prompt as "
            "sampled; training on another text undoes the base model",
            fix="look at that row with tokenizer.decode(ids); mend the chat "
            "template or the rows",
        )


def check_rendered(
    tokenizer: Any, prompts: Iterable[str], template: str
) -> None:
    """Refuse rows whose prompts are not of this tokenizer and template.

    Raises:
        LabError: names the first prompt that differs.
    """
    check_template(tokenizer, template)
    mark = "@@problem@@"
    rendered = DATE.sub("", render_prompt(tokenizer, mark, template))
    before, _, after = rendered.partition(mark)
    check_prompt_text(
        (DATE.sub("", prompt) for prompt in prompts), before, after, template
    )


# --- pairs ---

MAX_RATIO = 1.5  # of the median lengths, either way
MAX_CUT = 0.2  # of the pairs


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


@guard("chosen = rejected, and other useless pairs", LOADED)
def check_pairs(
    pairs: Sequence[Any], lengths: Sequence[int], max_length: int
) -> PairCheck:
    """Sort out pairs that would teach nothing or the wrong thing.

    Story: with copies among its samples (see check_distinct_fraction) a
    harvest can pair an answer with itself: its margin is 0 whatever is
    learned. The published 7B run counted none such; it counted. It also
    harvested the same problems twice: two prompts for one problem make
    "chosen" a matter of the prompt.

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


@guard("long pairs left out", LOADED)
def check_cut_pairs(check: PairCheck, max_length: int) -> str | None:
    """Warn when the longest answers are missing from the pairs.

    Story: TRL cuts a pair at ``max_length``, 1,024 by default, and keeps the
    beginning: reasoning of a few thousand tokens then loses its answer, and
    both sides of the pair become the same unfinished text. Here such pairs
    are left out; where they are many, DPO learns from the easy problems.

    Returns:
        A warning, or None when at most a fifth of the pairs is too long.
    """
    total = len(check.kept) + check.identical + check.empty + check.too_long
    if check.too_long <= MAX_CUT * total:
        return None
    return (
        f"{check.too_long} of {total} pairs are over dpo.max_length="
        f"{max_length} tokens and are left out: the hard problems are the "
        "long ones. Raise dpo.max_length (mathslm plan says what fits)."
    )


@guard("pairs that length alone tells apart", LOADED)
def check_length_ratio(
    chosen: Sequence[int], rejected: Sequence[int]
) -> str | None:
    """Warn when length alone tells the two sides of the pairs apart.

    Story: DPO raises what the chosen answers have in common. Where the
    rejected ones ran into the cap, or gave up early, that is their length.
    The published 7B run looked at both lengths before it trained, and found
    them alike; it costs nothing to look.

    Args:
        chosen: tokens of the chosen answers.
        rejected: tokens of the rejected ones.

    Returns:
        A warning, or None when the medians are within a factor of 1.5.
    """
    ours = max(statistics.median(chosen), 1)
    theirs = max(statistics.median(rejected), 1)
    if max(ours, theirs) <= MAX_RATIO * min(ours, theirs):
        return None
    side = "longer" if ours > theirs else "shorter"
    return (
        f"Chosen answers are {side}: a median of {ours:.0f} tokens against "
        f"{theirs:.0f}. DPO may learn the length and nothing else: compare "
        "the lengths of the answers before and after, and sample with a cap "
        "that few answers reach."
    )


# --- DPO while it runs ---

LN2 = math.log(2)
# Parts of names that peft switches off together with the adapter.
SWITCHED = ("lora_", ".modules_to_save.", "trainable_tokens_")


@guard("a reference that is not the SFT model", LOADED)
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


@guard("a reference that moves with the policy", LOADED)
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


@guard("DPO that does nothing", TRAINING)
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


@guard("DPO that overfits", TRAINING)
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
            alarms += self._alarm_once("noop", self._judge_noop())
        return alarms + self._alarm_once("overfit", self._judge_overfit())

    def finish(self) -> list[str]:
        """What to say at the end, also of a run shorter than the wait."""
        return self._alarm_once("noop", self._judge_noop())

    def _judge_noop(self) -> str | None:
        return check_noop(self.step, self.mean_margin, self.noop_margin)

    def _judge_overfit(self) -> str | None:
        full = len(self._accuracies) == self.window
        lowest = min(self._accuracies) if full else 0.0
        return check_overfit(
            self.step, self.mean_margin, self.overfit_margin, lowest
        )

    def _alarm_once(self, key: str, text: str | None) -> list[str]:
        if text is None or key in self._said:
            return []
        self._said.add(key)
        return [text]


# --- adapters and merges ---

MIN_COSINE = 0.9


@guard("a LoRA target that matches nothing", LOADED)
def check_lora_targets(
    targets: Iterable[str],
    modules: Collection[str],
    *,
    layers: Sequence[int] | None = None,
    layer_count: int | None = None,
) -> None:
    """Refuse a LoRA target that matches nothing in the model.

    Story: a published T4 run listed ``W_pack``, a module of another family,
    among the targets of TinyLlama. peft said nothing and adapted the other
    seven. Where *no* target matches, peft does stop; where one of several
    does not, part of the plan is silently dropped.

    Args:
        targets: module names, as in ``lora.target_modules``.
        modules: last names of the model's modules.
        layers: numbers of the layers that get a LoRA; None: all.
        layer_count: how many layers the model has; None: unknown.

    Raises:
        LabError: names the target, or the layer, that is not there.
    """
    for target in targets:
        if target not in modules:
            raise LabError(
                f"The model has no module '{target}'."
                f"{did_you_mean(target, modules)}",
                why="LoRA is put on the modules named in lora.target_modules",
                fix="name the projections of this model's architecture",
            )
    beyond = [n for n in layers or () if layer_count and n >= layer_count]
    if beyond:
        raise LabError(
            f"The model has {layer_count} layers, numbered from 0; "
            f"lora.layers names {', '.join(map(str, beyond))}.",
            why="a layer that is not there gets no LoRA, silently",
            fix=f"name layers from 0 to {layer_count - 1}",
        )


@guard("a merge that keeps another update", AFTER)
def check_merge_fidelity(
    cosine: float, norm_kept: float, entries_changed: float, dtype: str
) -> str | None:
    """Warn when a merged model holds another update than was trained.

    Story: the published 7B run merged its DPO adapter into bf16 weights. Of
    an update of that size 1.4 % of the entries survive the rounding, with a
    fifth of its norm and a cosine of 0.16 to the true one. What was
    evaluated was hardly the model that had been trained.

    Args:
        cosine: of the stored and the intended update.
        norm_kept: ratio of their norms.
        entries_changed: share of entries whose stored value differs at all.
        dtype: that the merged weights are stored in.

    Returns:
        A warning, or None when the stored update is the intended one.
    """
    if entries_changed and cosine >= MIN_COSINE:
        return None
    if not entries_changed:
        return (
            f"The merge into {dtype} changed no weight at all: the adapter "
            "is zero, or every entry was rounded away. The merged model is "
            "its base; evaluating it again would measure nothing."
        )
    return (
        f"The merge into {dtype} kept another update than was trained: "
        f"cosine {cosine:.2f}, {norm_kept:.0%} of its norm, "
        f"{entries_changed:.1%} of the entries changed. Merge in float32 "
        "(--set model.dtype=float32), raise the learning rate or the steps, "
        "or evaluate the adapter unmerged."
    )
