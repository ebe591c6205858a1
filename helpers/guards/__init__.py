"""Refuse a doomed run before it costs anything, and say why.

Every function here is pure: numbers, token ids or texts in, a verdict out.
No torch, no files. What must not happen raises
:class:`~helpers.errors.LabError`; what may be wrong comes back as a sentence
to print. The stages call these guards; a notebook can call them on made-up
numbers to see them fire. :data:`GUARDS` lists them all, each with its story.
"""

from helpers.guards.machine import (
    BF16_CAPABILITY,
    check_card_count,
    check_card_memory,
    check_precision,
    check_tensor_parallel,
    find_split_faults,
)
from helpers.guards.outputs import (
    check_same_inputs,
    check_space,
    check_writable,
    check_written,
)
from helpers.guards.pairs import (
    PairCheck,
    check_cut_pairs,
    check_length_ratio,
    check_pairs,
)
from helpers.guards.preference import (
    LN2,
    DpoMonitor,
    check_dpo_start,
    check_noop,
    check_overfit,
    check_reference_control,
)
from helpers.guards.steps import check_steps_per_epoch, check_travel
from helpers.guards.table import GUARDS, Guard
from helpers.guards.texts import (
    MARKERS,
    check_distinct_fraction,
    check_initial_loss,
    check_markers,
    check_prompt_text,
    check_single_bos,
    check_supervision,
)
from helpers.guards.weights import check_lora_targets, check_merge_fidelity
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

__all__ = [
    "BF16_CAPABILITY",
    "GUARDS",
    "LN2",
    "MARKERS",
    "DpoMonitor",
    "Guard",
    "PairCheck",
    "StepCount",
    "Travel",
    "check_card_count",
    "check_card_memory",
    "check_cut_pairs",
    "check_distinct_fraction",
    "check_dpo_start",
    "check_initial_loss",
    "check_length_ratio",
    "check_lora_targets",
    "check_markers",
    "check_merge_fidelity",
    "check_noop",
    "check_overfit",
    "check_pairs",
    "check_precision",
    "check_prompt_text",
    "check_reference_control",
    "check_same_inputs",
    "check_single_bos",
    "check_space",
    "check_steps_per_epoch",
    "check_supervision",
    "check_tensor_parallel",
    "check_travel",
    "check_writable",
    "check_written",
    "count_steps",
    "find_split_faults",
    "half_ulp",
    "learning_rate_travel",
    "solve_accumulation",
    "sum_learning_rates",
    "world_size",
]
