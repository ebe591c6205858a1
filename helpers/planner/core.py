"""One answer for a recipe: sizes, steps, memory, time, money, warnings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from helpers.base import LabError, Recipe
from helpers.planner import cautions
from helpers.planner.cards import CARDS, Card
from helpers.planner.convert import Assumptions, make_workload
from helpers.planner.measured import Measured, load_measured
from helpers.planner.memory import (
    MemoryEstimate,
    estimate_sampling,
    estimate_training,
)
from helpers.planner.parallelism import ReplicaPlan, choose_replicas
from helpers.planner.phases import Phase, plan_phases, sum_phases
from helpers.planner.rule import require_tensor_parallel
from helpers.planner.serving import count_kv_tokens
from helpers.planner.shapes import count_parameters
from helpers.planner.speed import Efficiency
from helpers.planner.steps import JobSteps, plan_steps
from helpers.planner.workload import (
    SampleJob,
    TrainJob,
    Workload,
    count_trainable,
    mean_weight_bytes,
)

# The published SFT gain, 6.3 points of the macro average.
CLAIMED_GAIN = 0.063
ASSUMED, EFFICIENCY, UNMEASURED = Assumptions(), Efficiency(), Measured()


@dataclass(frozen=True)
class Plan:
    """What is known about a run before it starts.

    ``trainable`` is ``{job: (trainable, total)}`` parameters; ``memory`` one
    estimate a job, for one card; ``fits`` is ``{card: {job: bool}}`` with as
    many cards as the workload has; ``replicas`` is None where nothing is
    served by vLLM.
    """

    workload: Workload
    parameters: int
    trainable: dict[str, tuple[int, int]]
    steps: dict[str, JobSteps]
    memory: list[MemoryEstimate]
    fits: dict[str, dict[str, bool]]
    replicas: ReplicaPlan | None
    phases: list[Phase]
    total: Phase
    warnings: list[str]
    facts: list[str]
    assumptions: list[str]


def plan(
    recipe: Recipe,
    *,
    card: str | None = None,
    cards: int | None = None,
    assumed: Assumptions = ASSUMED,
    efficiency: Efficiency = EFFICIENCY,
    has_token: bool | None = None,
) -> Plan:
    """Plan a recipe, on its own machine or on ``cards`` of ``card``.

    Args:
        card: a name of the card table; None: the recipe's machine.
        cards: how many; None: as many as the recipe says.
        has_token: whether a hub token is set; None: look for one, when the
            model is gated.

    Raises:
        LabError: an unknown model or card, a tensor-parallel size that does
            not divide the model, a LoRA target it does not have.
    """
    measured = load_measured(recipe.name)
    workload = make_workload(recipe, measured, assumed, card=card, cards=cards)
    if card or cards:
        # recorded on another machine: lengths hold, rates do not
        measured = replace(measured, rates=None)
    return plan_workload(
        workload,
        measured=measured,
        assumed=assumed,
        efficiency=efficiency,
        has_token=has_token,
    )


def plan_workload(
    workload: Workload,
    *,
    measured: Measured = UNMEASURED,
    assumed: Assumptions = ASSUMED,
    efficiency: Efficiency = EFFICIENCY,
    has_token: bool | None = None,
) -> Plan:
    """Plan a workload; see :func:`plan`."""
    jobs = [job for job in workload.jobs if isinstance(job, TrainJob)]
    steps = {job.title: plan_steps(workload, job) for job in jobs}
    replicas, refusal = place_engine(workload)
    served = workload
    if replicas:
        served = replace(
            workload, tensor_parallel_size=replicas.tensor_parallel_size
        )
    memory = estimate_memory(served)
    phases = plan_phases(
        workload, steps, replicas, measured, assumed, efficiency
    )
    if has_token is None:
        has_token = workload.shape.gated and find_token()
    warnings = collect_warnings(
        workload, steps, memory, replicas, efficiency, has_token
    )
    facts = [cautions.describe_logits(workload, job) for job in jobs[:1]]
    facts += [
        cautions.describe_dpo_cost(job) for job in jobs if job.kind == "dpo"
    ]
    return Plan(
        workload=workload,
        parameters=count_parameters(workload.shape),
        trainable={j.title: count_trainable(workload.shape, j) for j in jobs},
        steps=steps,
        memory=memory,
        fits=check_cards(workload),
        replicas=replicas,
        phases=phases,
        total=sum_phases(phases),
        warnings=([refusal] if refusal else []) + warnings,
        facts=facts,
        assumptions=list_assumptions(
            workload, measured, assumed, efficiency, phases
        ),
    )


def place_engine(workload: Workload) -> tuple[ReplicaPlan | None, str]:
    """vLLM's layout on the workload's cards, or why there is none.

    A size that the recipe fixes is checked and kept.
    """
    if workload.engine != "vllm" or workload.card is None:
        return None, ""
    fixed = workload.tensor_parallel_size
    if fixed:
        require_tensor_parallel(workload.shape, fixed)
        return _keep_size(workload, fixed), ""
    try:
        found = choose_replicas(
            workload.shape,
            workload.cards,
            workload.card.memory_gib,
            dtype_bytes=engine_bytes(workload),
            gpu_memory_utilization=workload.gpu_memory_utilization,
            max_model_len=workload.max_model_len,
            card=workload.card,
        )
    except LabError as error:
        return None, f"{error.what} {error.why}"
    wanted = workload.data_parallel_size
    if wanted in (None, found.replicas):
        return found, ""
    _require_cards(workload, wanted, found.tensor_parallel_size)
    why = f"{found.why} The recipe asks for {wanted} replica(s)."
    return replace(found, replicas=wanted, why=why), ""


def _require_cards(workload: Workload, replicas: int, size: int) -> None:
    """LabError where the engine would refuse: fewer cards than it needs."""
    if replicas * size > workload.cards:
        raise LabError(
            f"{replicas} replica(s) of tensor_parallel_size={size} need more "
            f"than the {workload.cards} card(s) there are.",
            fix="choose a smaller size, fewer replicas, or more cards",
        )


def _keep_size(workload: Workload, size: int) -> ReplicaPlan:
    """Engines of the size that the recipe asks for, as they are started.

    As many as the recipe says, or as there are cards for.
    """
    fixed = workload.data_parallel_size
    replicas = fixed or max(1, workload.cards // size)
    _require_cards(workload, replicas, size)
    budget = workload.card.memory_gib * 2**30 * workload.gpu_memory_utilization
    tokens = count_kv_tokens(
        workload.shape, size, budget, engine_bytes(workload), 2
    )
    return ReplicaPlan(
        replicas,
        size,
        max(0, tokens),
        f"{replicas} × TP={size}: as the recipe says.",
    )


def engine_bytes(workload: Workload) -> float:
    """Bytes of an average weight while serving."""
    return mean_weight_bytes(
        workload.shape, workload.dtype, workload.quantization
    )


def estimate_memory(workload: Workload) -> list[MemoryEstimate]:
    """One estimate a job, for one card."""
    return [
        estimate_sampling(workload.holding(job), job)
        if isinstance(job, SampleJob)
        else estimate_training(workload.holding(job), job)
        for job in workload.jobs
    ]


def check_cards(workload: Workload) -> dict[str, dict[str, bool]]:
    """Which jobs fit on which cards of the table."""
    return {
        name: check_card(workload.on(card, workload.cards), card)
        for name, card in CARDS.items()
    }


def check_card(workload: Workload, card: Card) -> dict[str, bool]:
    """Which jobs fit on this card. A card without bf16 computes in fp16."""
    if not card.has_bf16 and workload.dtype == "bfloat16":
        workload = replace(workload, dtype="float16")
    serves = None
    if workload.engine == "vllm":
        free = replace(
            workload, tensor_parallel_size=None, data_parallel_size=None
        )
        serves = place_engine(free)[0] is not None
    out = {}
    for job, estimate in zip(
        workload.jobs, estimate_memory(workload), strict=True
    ):
        if isinstance(job, SampleJob) and serves is not None:
            out[estimate.title] = serves
        else:
            out[estimate.title] = estimate.fits(card.memory_gib)
    return out


def collect_warnings(
    workload: Workload,
    steps: dict[str, JobSteps],
    memory: list[MemoryEstimate],
    replicas: ReplicaPlan | None,
    efficiency: Efficiency,
    has_token: bool,
) -> list[str]:
    """Every warning that applies, the costliest first."""
    found = [cautions.warn_memory(workload, m) for m in memory]
    found += [
        cautions.warn_dtype(workload),
        cautions.warn_gated(workload, has_token),
        cautions.warn_idle(workload, replicas),
    ]
    for job_steps in steps.values():
        found += [
            cautions.warn_batch(job_steps),
            cautions.warn_packing(job_steps),
            cautions.warn_few_steps(job_steps),
            cautions.warn_rounding(workload, job_steps),
            cautions.warn_sharding(workload, job_steps.job, efficiency),
        ]
    found.append(cautions.warn_small_sets(workload, CLAIMED_GAIN))
    return [text for text in found if text]


def list_assumptions(
    workload: Workload,
    measured: Measured,
    assumed: Assumptions,
    efficiency: Efficiency,
    phases: list[Phase],
) -> list[str]:
    """What the hours and the memory rest on."""
    lines = assumed.as_lines(measured, workload.guessed)
    if workload.card and any(p.hours for p in phases):
        lines.append(
            f"training at {efficiency.mfu:.0%} of the card's arithmetic, vLLM "
            f"at {efficiency.decode:.0%} and the in-process engine at "
            f"{efficiency.generate:.0%} of its memory bandwidth, where no "
            "rate was measured"
        )
    lines.append("memory is for a batch whose rows are all of full length")
    if not workload.card:
        lines.append(
            "on a CPU the process itself takes about 0.6 GiB more, and the "
            "C library may hold freed memory"
        )
    return lines


def find_token() -> bool:
    """Whether a hub token is set on this machine."""
    from huggingface_hub import get_token

    return get_token() is not None
