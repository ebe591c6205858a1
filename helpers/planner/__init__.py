"""Will it fit, how long will it take, what will it cost: pure arithmetic.

``plan(recipe)`` answers in well under a second, without torch and without a
network. The parts can be used alone: ``choose_replicas`` lays out vLLM,
``estimate_training`` counts memory, ``count_lora`` counts parameters.
"""

from helpers.planner.cards import CARDS, GIB, Card, find_card
from helpers.planner.cautions import judge_memory
from helpers.planner.convert import Assumptions, choose_format, make_workload
from helpers.planner.core import (
    ASSUMED,
    Plan,
    estimate_memory,
    find_token,
    plan,
    plan_workload,
)
from helpers.planner.disk import estimate_run_space, estimate_space
from helpers.planner.gpus import (
    Gpu,
    find_gpus,
    list_gpus,
    measure_gpu_memory,
    query_gpus,
)
from helpers.planner.guards import (
    BF16_CAPABILITY,
    USABLE,
    check_card_count,
    check_card_memory,
    check_precision,
    check_steps_per_epoch,
    check_tensor_parallel,
    check_travel,
)
from helpers.planner.measured import Measured
from helpers.planner.memory import (
    MemoryEstimate,
    estimate_sampling,
    estimate_training,
)
from helpers.planner.parallelism import ReplicaPlan, choose_replicas
from helpers.planner.rule import (
    check_engine,
    require_tensor_parallel,
    valid_tensor_parallel_sizes,
)
from helpers.planner.schedule import (
    StepCount,
    count_steps,
    half_ulp,
    learning_rate_travel,
    solve_accumulation,
    sum_learning_rates,
)
from helpers.planner.serving import (
    LayoutComparison,
    compare_layouts,
    estimate_decode_step,
)
from helpers.planner.shapes import (
    ModelShape,
    count_parameters,
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
from helpers.planner.speed import Efficiency, train_flops_per_token
from helpers.planner.steps import JobSteps, solve_batch
from helpers.planner.workload import (
    DTYPE_BYTES,
    Lora,
    SampleJob,
    TrainJob,
    Workload,
    count_lora,
    count_trainable,
    mean_weight_bytes,
)

__all__ = [
    "ASSUMED",
    "BF16_CAPABILITY",
    "CARDS",
    "DTYPE_BYTES",
    "GIB",
    "USABLE",
    "Assumptions",
    "Card",
    "Efficiency",
    "Gpu",
    "JobSteps",
    "LayoutComparison",
    "Lora",
    "Measured",
    "MemoryEstimate",
    "ModelShape",
    "Plan",
    "ReplicaPlan",
    "SampleJob",
    "StepCount",
    "TrainJob",
    "Workload",
    "check_card_count",
    "check_card_memory",
    "check_engine",
    "check_precision",
    "check_steps_per_epoch",
    "check_tensor_parallel",
    "check_travel",
    "choose_format",
    "choose_replicas",
    "compare_layouts",
    "count_lora",
    "count_parameters",
    "count_steps",
    "count_trainable",
    "describe_machine",
    "estimate_decode_step",
    "estimate_memory",
    "estimate_run_space",
    "estimate_sampling",
    "estimate_space",
    "estimate_training",
    "find_card",
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
    "plan_workload",
    "query_gpus",
    "read_shape",
    "require_tensor_parallel",
    "show_plan_command",
    "solve_accumulation",
    "solve_batch",
    "sum_learning_rates",
    "train_flops_per_token",
    "valid_tensor_parallel_sizes",
]
