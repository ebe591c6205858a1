"""Will it fit, how long will it take, what will it cost: pure arithmetic.

``plan(recipe)`` answers in well under a second, without torch and without a
network. The parts can be used alone: ``choose_replicas`` lays out vLLM,
``estimate_training`` counts memory, ``count_steps`` counts steps.
"""

from helpers.planner.cards import CARDS, GIB, Card, find_card
from helpers.planner.gpus import Gpu, find_gpus, list_gpus, measure_gpu_memory
from helpers.planner.guards import (
    BF16_CAPABILITY,
    USABLE,
    check_card_count,
    check_precision,
    check_steps_per_epoch,
    check_travel,
)
from helpers.planner.memory import MemoryEstimate, estimate_training
from helpers.planner.plan import (
    Plan,
    choose_format,
    estimate_memory,
    estimate_run_space,
    estimate_space,
    find_token,
    make_workload,
    plan,
)
from helpers.planner.serving import (
    check_engine,
    choose_replicas,
    compare_layouts,
    estimate_decode_step,
    require_tensor_parallel,
    valid_tensor_parallel_sizes,
)
from helpers.planner.shapes import (
    ModelShape,
    find_shape,
    list_shapes,
    read_shape,
)
from helpers.planner.show import (
    describe_machine,
    memory_rows,
    phase_rows,
    show_plan_command,
)
from helpers.planner.steps import (
    JobSteps,
    StepCount,
    count_steps,
    find_cards,
    half_ulp,
    learning_rate_travel,
    solve_accumulation,
    solve_batch,
    sum_learning_rates,
)
from helpers.planner.time_and_cost import train_flops_per_token
from helpers.planner.warnings import judge_memory
from helpers.planner.workload import DTYPE_BYTES, TrainJob, mean_weight_bytes

__all__ = [
    "BF16_CAPABILITY",
    "CARDS",
    "DTYPE_BYTES",
    "GIB",
    "USABLE",
    "Card",
    "Gpu",
    "JobSteps",
    "MemoryEstimate",
    "ModelShape",
    "Plan",
    "StepCount",
    "TrainJob",
    "check_card_count",
    "check_engine",
    "check_precision",
    "check_steps_per_epoch",
    "check_travel",
    "choose_format",
    "choose_replicas",
    "compare_layouts",
    "count_steps",
    "describe_machine",
    "estimate_decode_step",
    "estimate_memory",
    "estimate_run_space",
    "estimate_space",
    "estimate_training",
    "find_card",
    "find_cards",
    "find_gpus",
    "find_shape",
    "find_token",
    "half_ulp",
    "judge_memory",
    "learning_rate_travel",
    "list_gpus",
    "list_shapes",
    "make_workload",
    "mean_weight_bytes",
    "measure_gpu_memory",
    "memory_rows",
    "phase_rows",
    "plan",
    "read_shape",
    "require_tensor_parallel",
    "show_plan_command",
    "solve_accumulation",
    "solve_batch",
    "sum_learning_rates",
    "train_flops_per_token",
    "valid_tensor_parallel_sizes",
]
