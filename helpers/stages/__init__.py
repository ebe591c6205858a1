"""stages"""

from importlib import import_module
from typing import Any

from helpers.base.guards import GUARDS
from helpers.stages.distill import (
    Harvest,
    distinct_fraction,
    find_model,
    harvest_pairs,
    load_training,
    measure_samples,
    require_kept,
    run_distill,
)
from helpers.stages.dpo import run_dpo
from helpers.stages.evaluate import TOP_P, run_evaluate
from helpers.stages.guards import (
    LN2,
    DpoMonitor,
    PairCheck,
    check_cut_pairs,
    check_distinct_fraction,
    check_dpo_start,
    check_initial_loss,
    check_length_ratio,
    check_lora_targets,
    check_merge_fidelity,
    check_pairs,
    check_reference_control,
)
from helpers.stages.merge import measure_fidelity, run_merge
from helpers.stages.merge_base import load_exact, load_unmerged
from helpers.stages.merge_probe import measure_update
from helpers.stages.needs import NEEDS
from helpers.stages.sft import find_rows, run_sft
from helpers.stages.solutions import list_against, run_solutions
from helpers.stages.table import (
    STAGES,
    StageInfo,
    list_needs,
    list_stages,
    run_stage,
)

__all__ = [
    "GUARDS",
    "LN2",
    "NEEDS",
    "STAGES",
    "TOP_P",
    "DpoMonitor",
    "Harvest",
    "PairCheck",
    "StageInfo",
    "check_cut_pairs",
    "check_distinct_fraction",
    "check_dpo_start",
    "check_initial_loss",
    "check_length_ratio",
    "check_lora_targets",
    "check_merge_fidelity",
    "check_pairs",
    "check_reference_control",
    "check_supervision",
    "distinct_fraction",
    "encode_pair",
    "find_model",
    "find_rows",
    "harvest_pairs",
    "list_against",
    "list_needs",
    "list_stages",
    "load_exact",
    "load_training",
    "load_unmerged",
    "measure_fidelity",
    "measure_samples",
    "measure_start_loss",
    "measure_update",
    "require_kept",
    "run_distill",
    "run_dpo",
    "run_evaluate",
    "run_merge",
    "run_sft",
    "run_solutions",
    "run_stage",
]
# Loaded when first asked for: these import torch or a client.
_LAZY = {
    "check_supervision": "helpers.stages.trainer",
    "encode_pair": "helpers.stages.trainer",
    "measure_start_loss": "helpers.stages.dpo_trainer",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(name)
