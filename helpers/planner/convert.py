"""From a recipe to a workload; what it does not say is assumed by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helpers.base import LabError, Recipe
from helpers.planner.cards import Card, find_card
from helpers.planner.measured import Measured
from helpers.planner.shapes import ModelShape, find_shape
from helpers.planner.workload import (
    Benchmark,
    Lora,
    SampleJob,
    TrainJob,
    Workload,
)

# The card of a tier, where the recipe does not name one.
TIER_CARDS = {
    "t4": "T4",
    "rtx3090": "RTX 3090",
    "a40x4": "A40",
    "h100x8": "H100",
}
MODELS_EVALUATED = 3  # base, SFT, SFT + DPO


@dataclass(frozen=True)
class Assumptions:
    """What a recipe does not say, used where no run was recorded.

    The shares are those of the last harvest of the published 7B run (1,128
    rows and 448 pairs of 2,000 problems); ``fill`` is the mean completion
    over its cap; ``start_minutes`` pass before an engine or a trainer works
    (load, compile), ``merge_minutes`` for a merge, ``setup_minutes`` for
    getting a rented machine ready.
    """

    sft_share: float = 1128 / 2000
    pair_share: float = 448 / 2000
    fill: float = 0.5
    prompt_tokens: float = 100
    expected_score: float = 0.5
    start_minutes: float = 3.0
    merge_minutes: float = 1.0
    setup_minutes: float = 15.0

    def as_lines(
        self, measured: Measured, guessed: tuple[str, ...] = ("rows", "pairs")
    ) -> list[str]:
        """The assumptions in force, in words.

        Args:
            guessed: the counts that the recipe does not say.
        """
        known = {
            "rows": measured.sft_share,
            "pairs": measured.pair_share,
            "lengths": measured.mean_tokens,
        }
        used = [n for n in (*guessed, "lengths") if known[n] is not None]
        lines = []
        if used:
            listed = " and ".join(
                part for part in (", ".join(used[:-1]), used[-1]) if part
            )
            lines.append(f"{listed} as in a run {measured.where}")
        lines += self._list_shares([n for n in guessed if known[n] is None])
        if known["lengths"] is None:
            lines.append(
                f"a completion fills {self.fill:.0%} of its cap on average"
            )
        return [
            *lines,
            f"a prompt has {self.prompt_tokens:.0f} tokens",
            f"{self.start_minutes:g} min to start an engine or a trainer, "
            f"{self.merge_minutes:g} min for a merge",
        ]

    def _list_shares(self, names: list[str]) -> list[str]:
        """The shares of the published harvest that stand in for a count."""
        gives = {
            "rows": (self.sft_share, "an SFT row"),
            "pairs": (self.pair_share, "a pair"),
        }
        if not names:
            return []
        share, what = gives[names[0]]
        text = f"{share:.0%} of the problems give {what}"
        for name in names[1:]:
            share, what = gives[name]
            text += f" and {share:.0%} {what}"
        return [f"{text}, as in the last harvest of the published 7B run"]


def make_workload(
    recipe: Recipe,
    measured: Measured,
    assumed: Assumptions,
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
    engine = recipe.engine
    longest = recipe.sampling.max_new_tokens + int(assumed.prompt_tokens)
    longest = max(
        longest, recipe.evaluate.max_new_tokens + int(assumed.prompt_tokens)
    )
    if limit := shape.max_position_embeddings:
        longest = min(longest, limit)
    return Workload(
        name=recipe.name,
        shape=shape,
        jobs=tuple(make_jobs(recipe, shape, measured, assumed)),
        dtype=choose_format(recipe, machine),
        quantization=recipe.model.quantization,
        merged_quantization=recipe.model.merged_quantization,
        card=machine,
        cards=max(1, recipe.hardware.cards if cards is None else cards),
        strategy=getattr(recipe.hardware, "strategy", None) or "ddp",
        engine=engine.name,
        tensor_parallel_size=engine.tensor_parallel_size,
        data_parallel_size=engine.data_parallel_size,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_model_len=engine.max_model_len or longest,
        sampling_batch=engine.max_batch_size,
        max_batch_tokens=engine.max_batch_tokens,
        attention=recipe.model.attn_implementation,
        usd_per_hour=recipe.hardware.usd_per_hour,
        benchmarks=tuple(
            Benchmark(b.name, b.n, assumed.expected_score)
            for b in recipe.evaluate.benchmarks
        ),
        samples_sft=recipe.sampled_model == "sft",
        guessed=tuple(
            name
            for name, count in zip(
                ("rows", "pairs"), count_expected(recipe), strict=True
            )
            if not count
        ),
    )


def choose_format(recipe: Recipe, card: Card | None) -> str:
    """The recipe's dtype; "auto" as the card will settle it.

    On a CPU it depends on the instructions of the machine that runs: fp32,
    the larger one, is planned.
    """
    if recipe.model.dtype != "auto":
        return recipe.model.dtype
    if card is None:
        return "float32"
    return "bfloat16" if card.has_bf16 else "float16"


def find_machine(recipe: Recipe, card: str | None = None) -> Card | None:
    """The card to plan for: asked for, in the recipe, or the tier's own."""
    if card:
        return find_card(card)
    if recipe.hardware.device == "cpu":
        return None
    named = getattr(recipe.hardware, "card", None)
    named = named or TIER_CARDS.get(recipe.name.split("-")[0])
    return find_card(named) if named else None


def count_solutions(recipe: Recipe) -> int | None:
    """Rows of worked solutions if none is lost; None where SFT has others."""
    if recipe.solutions is None:
        return None
    wanted = sum(recipe.solutions.mix.values())
    return min(wanted, recipe.solutions.cap or wanted)


def count_expected(recipe: Recipe) -> tuple[int | None, int | None]:
    """(SFT rows, pairs) that the recipe names; None where it does not."""
    return (
        getattr(recipe.harvest, "expected_sft_rows", None)
        or count_solutions(recipe),
        getattr(recipe.harvest, "expected_pairs", None),
    )


def make_jobs(
    recipe: Recipe,
    shape: ModelShape,
    measured: Measured,
    assumed: Assumptions,
) -> list[TrainJob | SampleJob]:
    """Sampling, training and evaluation, in the order they are run."""
    cap = recipe.sampling.max_new_tokens
    mean = min(cap, measured.mean_tokens or assumed.fill * cap)
    problems, prompt = recipe.data.n_problems, assumed.prompt_tokens
    sampling = SampleJob(
        "distill", problems, recipe.sampling.n, prompt, mean, cap
    )
    jobs: list[TrainJob | SampleJob] = [sampling]
    shares = (
        measured.sft_share or assumed.sft_share,
        measured.pair_share or assumed.pair_share,
    )
    for section, share, known in zip(
        ("sft", "dpo"), shares, count_expected(recipe), strict=True
    ):
        config = getattr(recipe, section, None)
        if config is not None:
            rows = known or max(1, round(share * problems))
            jobs.append(_train_job(section, config, rows, prompt + mean))
    if grpo := getattr(recipe, "grpo", None):
        jobs.append(_grpo_job(grpo, problems, prompt, assumed))
    score_cap = recipe.evaluate.max_new_tokens
    score_mean = min(score_cap, measured.mean_tokens or 1e9)
    if measured.mean_tokens is None:
        score_mean = assumed.fill * score_cap
    questions = sum(b.n for b in recipe.evaluate.benchmarks)
    samples = getattr(recipe.evaluate, "n", 1) or 1
    jobs.append(
        SampleJob(
            "evaluate",
            questions * MODELS_EVALUATED,
            samples,
            prompt,
            score_mean,
            score_cap,
        )
    )
    return jobs


def _train_job(kind: str, config: Any, rows: int, mean: float) -> TrainJob:
    layers = getattr(config.lora, "layers", None)
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
        lora=Lora(
            config.lora.r,
            config.lora.dropout,
            tuple(config.lora.target_modules),
            tuple(layers) if layers else None,
        ),
        gradient_checkpointing=config.gradient_checkpointing,
        packing=getattr(config, "packing", False),
        min_steps_per_epoch=getattr(config, "min_steps_per_epoch", 0),
        precompute_ref=getattr(config, "precompute_ref_log_probs", True),
        beta=getattr(config, "beta", 0.1),
    )


def _grpo_job(
    config: Any, problems: int, prompt: float, assumed: Assumptions
) -> TrainJob:
    """A GRPO section by the names that TRL's config uses."""
    try:
        completion = config.max_completion_length
        generations = config.num_generations
        effective, per_device = config.effective_batch, config.per_device_batch
    except AttributeError as error:
        raise LabError(
            f"The grpo section of the recipe cannot be planned: {error}.",
            fix="it needs effective_batch, per_device_batch, "
            "num_generations and max_completion_length",
        ) from None
    lora = getattr(config, "lora", None)
    return TrainJob(
        kind="grpo",
        rows=problems,
        effective_batch=effective,
        per_device_batch=per_device,
        max_length=int(prompt) + completion,
        mean_length=prompt + assumed.fill * completion,
        epochs=getattr(config, "epochs", 1),
        max_steps=getattr(config, "max_steps", -1),
        learning_rate=config.learning_rate,
        lora=Lora(lora.r, lora.dropout, tuple(lora.target_modules))
        if lora
        else None,
        gradient_checkpointing=getattr(config, "gradient_checkpointing", True),
        precompute_ref=getattr(config, "beta", 0.0) == 0.0,
        beta=getattr(config, "beta", 0.0),
        generations=generations,
        completion_length=assumed.fill * completion,
    )
