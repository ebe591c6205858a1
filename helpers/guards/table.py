"""The list of all guards: what each is for, when it runs, who calls it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helpers.guards.machine import (
    check_card_count,
    check_card_memory,
    check_precision,
    check_tensor_parallel,
)
from helpers.guards.outputs import (
    check_same_inputs,
    check_space,
    check_writable,
    check_written,
)
from helpers.guards.pairs import (
    check_cut_pairs,
    check_length_ratio,
    check_pairs,
)
from helpers.guards.preference import (
    check_dpo_start,
    check_noop,
    check_overfit,
    check_reference_control,
)
from helpers.guards.steps import check_steps_per_epoch, check_travel
from helpers.guards.texts import (
    check_distinct_fraction,
    check_initial_loss,
    check_markers,
    check_prompt_text,
    check_single_bos,
    check_supervision,
)
from helpers.guards.weights import check_lora_targets, check_merge_fidelity

PLANNING = "before anything is loaded"
LOADED = "before training"
SAMPLING = "while sampling"
TRAINING = "while training"
AFTER = "after training"
STORY = re.compile(r"\bStory: (.*?)(?:\n\s*\n|\Z)", re.S)


@dataclass(frozen=True)
class Guard:
    """One guard: what it is for, its function, when it runs, and where.

    ``callers`` are the functions that call it, as ``module.function``;
    ``doctor``: ``mathslm doctor --tier`` runs it too.
    """

    title: str
    check: Callable[..., Any]
    when: str
    callers: tuple[str, ...]
    doctor: bool = False

    @property
    def name(self) -> str:
        """Name of the function in :mod:`helpers.guards`."""
        return self.check.__name__

    @property
    def story(self) -> str:
        """What happened to whom, from the function's docstring."""
        found = STORY.search(inspect.getdoc(self.check) or "")
        return " ".join(found[1].split()) if found else ""

    def as_row(self) -> dict[str, str]:
        """For a table in a notebook."""
        return {
            "guard": self.title,
            "function": self.name,
            "runs": self.when,
            "story": self.story,
        }


GUARDS = (
    Guard(
        "tensor parallelism that does not divide the model",
        check_tensor_parallel,
        PLANNING,
        ("helpers.planner.rule.require_tensor_parallel",),
        doctor=True,
    ),
    Guard(
        "more cards than there are",
        check_card_count,
        PLANNING,
        ("helpers.engines.placement.place_replicas",),
        doctor=True,
    ),
    Guard(
        "bf16 on a card that has none",
        check_precision,
        PLANNING,
        (
            "helpers.precision.explain_precision",
            "helpers.preflight.machine.judge_precision",
        ),
        doctor=True,
    ),
    Guard(
        "a card that is too small",
        check_card_memory,
        PLANNING,
        ("helpers.planner.cautions.judge_memory",),
        doctor=True,
    ),
    Guard(
        "learning rates too small to be stored",
        check_travel,
        PLANNING,
        ("helpers.planner.cautions.warn_rounding",),
        doctor=True,
    ),
    Guard(
        "packing trap",
        check_steps_per_epoch,
        LOADED,
        ("helpers.sft.require_steps",),
        doctor=True,
    ),
    Guard(
        "unwritable output",
        check_writable,
        PLANNING,
        ("helpers.records.require_writable",),
        doctor=True,
    ),
    Guard(
        "a disk that is too small",
        check_space,
        PLANNING,
        ("helpers.runs.require_space",),
        doctor=True,
    ),
    Guard(
        "results that would be overwritten",
        check_same_inputs,
        PLANNING,
        ("helpers.runs.RunDir.is_done",),
        doctor=True,
    ),
    Guard(
        "copies among the samples",
        check_distinct_fraction,
        SAMPLING,
        ("helpers.distill._check_samples_differ",),
    ),
    Guard(
        "another template in training than in sampling",
        check_prompt_text,
        LOADED,
        ("helpers.training.check_rendered",),
    ),
    Guard(
        "double BOS",
        check_single_bos,
        LOADED,
        ("helpers.prompts._check_bos",),
        doctor=True,
    ),
    Guard(
        "</think> lost in tokenisation",
        check_markers,
        LOADED,
        (
            "helpers.prompts._check_marks",
            "helpers.training.check_completions",
        ),
        doctor=True,
    ),
    Guard(
        "other tokens in training than in sampling",
        check_supervision,
        LOADED,
        ("helpers.training.check_supervision",),
    ),
    Guard(
        "a LoRA target that matches nothing",
        check_lora_targets,
        LOADED,
        ("helpers.training.build_lora",),
    ),
    Guard(
        "first loss far from -log p of the samples",
        check_initial_loss,
        TRAINING,
        (
            "helpers.training.LossWatch.on_log",
            "helpers.sft.summarise",
        ),
    ),
    Guard(
        "a merge that keeps another update",
        check_merge_fidelity,
        AFTER,
        ("helpers.merge.run_merge",),
    ),
    Guard(
        "chosen = rejected, and other useless pairs",
        check_pairs,
        LOADED,
        ("helpers.pair_checks.select_pairs",),
    ),
    Guard(
        "long pairs left out",
        check_cut_pairs,
        LOADED,
        ("helpers.pair_checks.select_pairs",),
    ),
    Guard(
        "pairs that length alone tells apart",
        check_length_ratio,
        LOADED,
        ("helpers.pair_checks.select_pairs",),
    ),
    Guard(
        "a reference that moves with the policy",
        check_reference_control,
        LOADED,
        ("helpers.dpo.check_trainer",),
    ),
    Guard(
        "a reference that is not the SFT model",
        check_dpo_start,
        LOADED,
        ("helpers.dpo.check_trainer",),
    ),
    Guard(
        "DPO that does nothing",
        check_noop,
        TRAINING,
        ("helpers.guards.preference.DpoMonitor._judge_noop",),
    ),
    Guard(
        "DPO that overfits",
        check_overfit,
        TRAINING,
        ("helpers.guards.preference.DpoMonitor._judge_overfit",),
    ),
    Guard(
        "unwritten output",
        check_written,
        AFTER,
        ("helpers.runs.RunDir._finish_stage",),
    ),
)
