"""The plan of a recipe: sizes, steps, memory, time, money and warnings.

recipe → workload (model, machine, jobs) → steps, memory, phases → plan
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from helpers.base import DpoConfig, LabError, Recipe, SftConfig
from helpers.planner.cards import CARDS, GIB, Card, find_card
from helpers.planner.memory import (
    MemoryEstimate,
    estimate_sampling,
    estimate_training,
)
from helpers.planner.serving import (
    ReplicaPlan,
    choose_replicas,
    count_kv_tokens,
    require_tensor_parallel,
)
from helpers.planner.shapes import count_parameters, find_shape
from helpers.planner.steps import JobSteps, plan_steps
from helpers.planner.time_and_cost import (
    DECODE,
    GENERATE,
    MERGE_MINUTES,
    MFU,
    START_MINUTES,
    Measured,
    Phase,
    load_measured,
    plan_phases,
    sum_phases,
)
from helpers.planner.warnings import collect_warnings, list_facts
from helpers.planner.workload import (
    DTYPE_BYTES,
    Benchmark,
    SampleJob,
    TrainJob,
    Workload,
    count_lora,
    count_trainable,
    mean_weight_bytes,
)

# What a recipe does not say, used where no run was recorded. The shares of
# problems that give an SFT row or a pair are those of the last harvest of
# the published 7B run; FILL is the mean completion over its cap.
SFT_SHARE, PAIR_SHARE = 1128 / 2000, 448 / 2000
FILL, PROMPT_TOKENS, EXPECTED_SCORE = 0.5, 100, 0.5
UNMEASURED = Measured()
# The card of a tier, where the recipe does not name one.
TIER_CARDS = {
    "t4": "T4",
    "rtx3090": "RTX 3090",
    "a40x4": "A40",
    "h100x8": "H100",
}
MODELS_EVALUATED = 3  # base, SFT, SFT + DPO
# Disk. An adapter is saved in fp32; a checkpoint holds it with two moments
# of AdamW. Two checkpoints are kept while a third is written.
MB = 2**20
ADAPTER_BYTES, CHECKPOINTS = 4, 3
TOKEN_BYTES, ROW_BYTES = 5, 1500  # text of a token; a row's other fields
SMALL_MB = 50  # logs, tokenizer, metrics, a rendered report
UNKNOWN_MB = 200  # a model of unknown size


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
    workload = make_workload(recipe, measured, card=card, cards=cards)
    if card or cards:
        # recorded on another machine: lengths hold, rates do not
        measured = replace(measured, rates=None)
    return plan_workload(workload, measured=measured, has_token=has_token)


def plan_workload(
    workload: Workload,
    *,
    measured: Measured = UNMEASURED,
    has_token: bool | None = None,
) -> Plan:
    """Plan a workload; see :func:`plan`."""
    jobs = [job for job in workload.jobs if isinstance(job, TrainJob)]
    steps = {job.title: plan_steps(workload, job) for job in jobs}
    replicas, refusal = place_engine(workload)
    served = workload
    if replicas:
        size = replicas.tensor_parallel_size
        served = replace(workload, tensor_parallel_size=size)
    memory = estimate_memory(served)
    phases = plan_phases(workload, steps, replicas, measured)
    if has_token is None:
        has_token = workload.shape.gated and find_token()
    warnings = collect_warnings(workload, steps, memory, replicas, has_token)
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
        facts=list_facts(workload, jobs),
        assumptions=list_assumptions(workload, measured, phases),
    )


# --- the recipe as a workload ---


def make_workload(
    recipe: Recipe,
    measured: Measured = UNMEASURED,
    *,
    card: str | None = None,
    cards: int | None = None,
) -> Workload:
    """The recipe as a workload on its own machine, or on another.

    Raises:
        LabError: unknown model or card.
    """
    shape = find_shape(recipe.model.id)
    machine = find_machine(recipe, card)
    count = max(1, recipe.hardware.cards if cards is None else cards)
    price = recipe.hardware.usd_per_hour
    if card and machine.usd_per_hour:  # another machine has its own price
        price = count * machine.usd_per_hour
    engine = recipe.engine
    longest = PROMPT_TOKENS + max(
        recipe.sampling.max_new_tokens, recipe.evaluate.max_new_tokens
    )
    if limit := shape.max_position_embeddings:
        longest = min(longest, limit)
    expected = count_expected(recipe)
    return Workload(
        name=recipe.name,
        shape=shape,
        jobs=tuple(make_jobs(recipe, measured)),
        dtype=choose_format(recipe, machine),
        quantization=recipe.model.quantization,
        merged_quantization=recipe.model.merged_quantization,
        card=machine,
        cards=count,
        strategy=recipe.hardware.strategy,
        engine=engine.name,
        tensor_parallel_size=engine.tensor_parallel_size,
        data_parallel_size=engine.data_parallel_size,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_model_len=engine.max_model_len or longest,
        sampling_batch=engine.max_batch_size,
        max_batch_tokens=engine.max_batch_tokens,
        attention=recipe.model.attn_implementation,
        usd_per_hour=price,
        benchmarks=tuple(
            Benchmark(b.name, b.n, EXPECTED_SCORE)
            for b in recipe.evaluate.benchmarks
        ),
        samples_sft=recipe.sampled_model == "sft",
        guessed=tuple(name for name, n in expected.items() if not n),
        unplanned=("GRPO",) if recipe.grpo else (),
    )


def find_machine(recipe: Recipe, card: str | None = None) -> Card | None:
    """The card to plan for: asked for, in the recipe, or the tier's own."""
    if card:
        return find_card(card)
    if recipe.hardware.device == "cpu":
        return None
    tier = recipe.name.split("-")[0]
    named = recipe.hardware.card or TIER_CARDS.get(tier)
    return find_card(named) if named else None


def choose_format(recipe: Recipe, card: Card | None) -> str:
    """The recipe's dtype; "auto" as the stages will choose it on the card.

    On a CPU it depends on the instructions of the machine that runs: fp32,
    the larger one, is planned.
    """
    if recipe.model.dtype != "auto":
        return recipe.model.dtype
    if card is None:
        return "float32"
    return "bfloat16" if card.has_bf16 else "float16"


def count_expected(recipe: Recipe) -> dict[str, int | None]:
    """SFT rows and pairs that the recipe names; None where it does not."""
    rows = recipe.harvest.expected_sft_rows
    if not rows and recipe.solutions:  # worked solutions, if none is lost
        wanted = sum(recipe.solutions.mix.values())
        rows = min(wanted, recipe.solutions.cap or wanted)
    return {"rows": rows, "pairs": recipe.harvest.expected_pairs}


def make_jobs(
    recipe: Recipe, measured: Measured
) -> list[TrainJob | SampleJob]:
    """Sampling, training and evaluation, in the order they are run."""
    data, score = recipe.sampling, recipe.evaluate
    mean, score_mean = (
        min(cap, measured.mean_tokens or FILL * cap)
        for cap in (data.max_new_tokens, score.max_new_tokens)
    )
    problems, length = recipe.data.n_problems, PROMPT_TOKENS + mean
    expected = count_expected(recipe)
    rows = expected["rows"] or max(
        1, round((measured.sft_share or SFT_SHARE) * problems)
    )
    pairs = expected["pairs"] or max(
        1, round((measured.pair_share or PAIR_SHARE) * problems)
    )
    questions = sum(b.n for b in score.benchmarks) * MODELS_EVALUATED
    return [
        SampleJob(
            "distill",
            problems,
            data.n,
            PROMPT_TOKENS,
            mean,
            data.max_new_tokens,
        ),
        replace(
            make_job("sft", recipe.sft, rows, length),
            packing=recipe.sft.packing,
            min_steps_per_epoch=recipe.sft.min_steps_per_epoch,
        ),
        replace(
            make_job("dpo", recipe.dpo, pairs, length),
            precompute_ref=recipe.dpo.precompute_ref_log_probs,
        ),
        SampleJob(
            "evaluate",
            questions,
            score.n,
            PROMPT_TOKENS,
            score_mean,
            score.max_new_tokens,
        ),
    ]


def make_job(
    kind: str, config: SftConfig | DpoConfig, rows: int, mean: float
) -> TrainJob:
    """What SFT and DPO have in common."""
    return TrainJob(
        kind=kind,
        rows=rows,
        effective_batch=config.effective_batch,
        per_device_batch=config.per_device_batch,
        max_length=config.max_length,
        mean_length=min(mean, config.max_length),
        epochs=config.epochs,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        warmup_ratio=config.warmup_ratio,
        lr_scheduler=config.lr_scheduler,
        lora=config.lora,
        gradient_checkpointing=config.gradient_checkpointing,
    )


# --- engines and memory ---


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
    budget = workload.card.memory_gib * GIB * workload.gpu_memory_utilization
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


# --- assumptions ---


def list_assumptions(
    workload: Workload, measured: Measured, phases: list[Phase]
) -> list[str]:
    """What the counts, the hours and the memory rest on."""
    lines = _list_guesses(workload.guessed, measured)
    lines += [
        f"a prompt has {PROMPT_TOKENS} tokens",
        f"{START_MINUTES:g} min to start an engine or a trainer, "
        f"{MERGE_MINUTES:g} min for a merge",
    ]
    if workload.card and any(p.hours for p in phases):
        lines.append(
            f"training at {MFU:.0%} of the card's arithmetic, vLLM at "
            f"{DECODE:.0%} and the in-process engine at {GENERATE:.0%} of its "
            "memory bandwidth, where no rate was measured"
        )
    lines.append("memory is for a batch whose rows are all of full length")
    if not workload.card:
        lines.append(
            "on a CPU the process itself takes about 0.6 GiB more, and the "
            "C library may hold freed memory"
        )
    return lines


def _list_guesses(guessed: tuple[str, ...], measured: Measured) -> list[str]:
    """Where rows, pairs and lengths come from that the recipe does not say."""
    known = {
        "rows": measured.sft_share,
        "pairs": measured.pair_share,
        "lengths": measured.mean_tokens,
    }
    shares = {
        "rows": (SFT_SHARE, "an SFT row"),
        "pairs": (PAIR_SHARE, "a pair"),
    }
    lines = []
    if used := [n for n in (*guessed, "lengths") if known[n] is not None]:
        listed = ", ".join(used[:-1])
        listed += f" and {used[-1]}" if listed else used[-1]
        lines.append(f"{listed} as in a run {measured.where}")
    if unknown := [shares[n] for n in guessed if known[n] is None]:
        (share, what), *rest = unknown
        text = f"{share:.0%} of the problems give {what}"
        for share, what in rest:
            text += f" and {share:.0%} {what}"
        lines.append(f"{text}, as in the last harvest of the published 7B run")
    if known["lengths"] is None:
        lines.append(f"a completion fills {FILL:.0%} of its cap on average")
    return lines


def find_token() -> bool:
    """Whether a hub token is set on this machine."""
    from huggingface_hub import get_token

    return get_token() is not None


# --- disk ---


def estimate_space(recipe: Recipe, stage: str) -> int:
    """Megabytes that one stage writes, at most.

    Args:
        stage: "distill", "sft", "merge", "dpo" or "evaluate".
    """
    if stage in ("distill", "evaluate"):
        return SMALL_MB + _samples_mb(recipe, stage)
    try:
        shape = find_shape(recipe.model.id)
        if stage == "merge":
            each = DTYPE_BYTES.get(recipe.model.dtype, 4)
            size = count_parameters(shape) * each
        else:
            trained = count_lora(shape, getattr(recipe, stage).lora)
            size = trained * ADAPTER_BYTES * (1 + 3 * CHECKPOINTS)
    except LabError:  # a model of another architecture: not ours to count
        return UNKNOWN_MB
    return SMALL_MB + math.ceil(size / MB)


def estimate_run_space(recipe: Recipe) -> int:
    """Megabytes of a whole run: samples, adapters, merged models, scores.

    The checkpoints of SFT are gone before those of DPO are written. Every
    variant of DPO is merged beside the others.
    """
    training = max(estimate_space(recipe, name) for name in ("sft", "dpo"))
    merged = (2 + len(recipe.dpo_variants)) * estimate_space(recipe, "merge")
    texts = sum(estimate_space(recipe, n) for n in ("distill", "evaluate"))
    return training + merged + texts


def _samples_mb(recipe: Recipe, stage: str) -> int:
    if stage == "distill":
        rows = recipe.data.n_problems * recipe.sampling.n
        cap = recipe.sampling.max_new_tokens
    else:
        rows = 3 * sum(b.n for b in recipe.evaluate.benchmarks)
        cap = recipe.evaluate.max_new_tokens
    return math.ceil(rows * (cap * TOKEN_BYTES + ROW_BYTES) / MB)
