"""Will it fit, how long will it take, what will it cost: pure arithmetic.

``plan(recipe)`` answers in well under a second, without torch and without a
network. The parts can be used alone: ``choose_replicas`` lays out vLLM,
``estimate_training`` counts memory, ``count_lora`` counts parameters.
"""

from helpers.planner.cards import CARDS, Card, find_card
from helpers.planner.convert import Assumptions, make_workload
from helpers.planner.core import Plan, plan, plan_workload
from helpers.planner.disk import estimate_run_space, estimate_space
from helpers.planner.memory import (
    MemoryEstimate,
    estimate_sampling,
    estimate_training,
)
from helpers.planner.parallelism import (
    LayoutComparison,
    ReplicaPlan,
    choose_replicas,
    compare_layouts,
    require_tensor_parallel,
    valid_tensor_parallel_sizes,
)
from helpers.planner.shapes import (
    ModelShape,
    count_parameters,
    find_shape,
    list_shapes,
    read_shape,
)
from helpers.planner.speed import Efficiency
from helpers.planner.steps import solve_batch
from helpers.planner.workload import (
    Lora,
    SampleJob,
    TrainJob,
    Workload,
    count_lora,
    count_trainable,
)

__all__ = [
    "CARDS",
    "Assumptions",
    "Card",
    "Efficiency",
    "LayoutComparison",
    "Lora",
    "MemoryEstimate",
    "ModelShape",
    "Plan",
    "ReplicaPlan",
    "SampleJob",
    "TrainJob",
    "Workload",
    "choose_replicas",
    "compare_layouts",
    "count_lora",
    "count_parameters",
    "count_trainable",
    "estimate_run_space",
    "estimate_sampling",
    "estimate_space",
    "estimate_training",
    "find_card",
    "find_shape",
    "list_shapes",
    "make_workload",
    "plan",
    "plan_workload",
    "read_shape",
    "require_tensor_parallel",
    "solve_batch",
    "valid_tensor_parallel_sizes",
]
