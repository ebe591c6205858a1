"""Direct preference optimisation of a fresh adapter on the merged SFT model.

TRL's ``DPOTrainer`` trains; the reference is the same model with the adapter
switched off, so there is no second copy. Before the first update the loss
must be ln 2. While it trains, a monitor says when the evaluation is going to
show nothing, and when the pairs are learnt by heart.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from helpers.base import (
    DpoConfig,
    LabError,
    PairRow,
    Recipe,
    RunDir,
    find_harvest,
    fingerprint_model,
    hash_file,
    prepare_checkpoints,
    ranks,
    read_losses,
    read_records,
    recipe_hash,
    refuse_foreign,
    require_current_merge,
    require_file,
    require_space,
    world_size,
)
from helpers.models import fix_model
from helpers.planner import (
    StepCount,
    count_steps,
    estimate_space,
    sum_learning_rates,
)
from helpers.stages.guards import (
    DpoMonitor,
    PairCheck,
    check_dpo_start,
    check_reference_control,
)
from helpers.stages.pair_checks import select_pairs

# The precomputed and the live forward pass round differently in 16 bits.
START_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 2e-2}


def run_dpo(
    recipe: Recipe,
    run: RunDir,
    *,
    variant: str | None = None,
    force: bool = False,
    smoke_steps: int | None = None,
) -> dict[str, Any]:
    """Train the DPO adapter of a run, or load it when it is there.

    Writes ``<tag>/adapter`` and ``<tag>/log.jsonl``; the tag is ``dpo`` or
    ``dpo-<variant>``. A smoke run writes under ``smoke/`` and records no
    stage.

    Args:
        variant: a name under ``dpo_variants`` of the recipe, or None.

    Returns:
        pairs, steps, losses, margins, accuracy, tie fraction and the
        monitor's verdict.

    Raises:
        LabError: no pairs, no merged SFT model, or a loss before the first
            update that is not ln 2.
    """
    config = recipe.dpo_variant(variant)
    tag = f"dpo-{variant}" if variant else "dpo"
    smoke = smoke_steps is not None
    pairs_path = find_harvest(run, "pairs.jsonl", smoke)
    recipe = ranks.run_first(partial(fix_model, recipe, run))
    base = find_base(recipe, run, smoke)
    require_space(run.path, estimate_space(recipe, "dpo"))
    inputs = describe_inputs(recipe, config, pairs_path, base)
    if smoke:
        folder, stage = run.file("smoke", tag), nullcontext({})
    else:
        done = partial(run.is_done, tag, inputs, force)
        if ranks.run_first(done):
            print(f"DPO is done: {tag}/adapter is loaded.")
            return run.metrics()[tag]
        folder, stage = run.file(tag), run.stage(tag, inputs)
        inputs = inputs | ranks.describe_sharding()
        refuse_foreign(folder / "checkpoints", inputs, force)
    pairs = read_records(pairs_path, PairRow)
    if not pairs:
        raise LabError(
            f"{pairs_path} holds no pairs.",
            why="no problem has both a right and a wrong finished answer",
            fix="distill more problems or more samples each",
        )
    with stage as record:
        metrics = train_adapter(
            recipe, config, base, pairs, folder, inputs, force, smoke_steps
        )
        outputs = [f"{tag}/adapter", f"{tag}/log.jsonl"]
        record.update(outputs=outputs, metrics=metrics)
    return metrics


def find_base(recipe: Recipe, run: RunDir, smoke: bool) -> Path:
    """``sft/merged``; a smoke run before SFT takes the base model."""
    from helpers.models import model_path

    merged = model_path(recipe, run, "sft")
    if smoke and not merged.exists():
        print("There is no merged SFT model yet: the smoke run uses the base.")
        return model_path(recipe, run, "base")
    require_current_merge(run, "sft")
    return require_file(merged, "mathslm merge --model sft", run)


def describe_inputs(
    recipe: Recipe, config: DpoConfig, pairs_path: Path, base: Path
) -> dict[str, str]:
    """Hashes of all that the adapter depends on."""
    settings = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return {
        "pairs": hash_file(pairs_path),
        "model": fingerprint_model(base, recipe.model.revision),
        "recipe": recipe_hash(recipe, "seed", "model"),
        "dpo": hashlib.sha256(settings.encode()).hexdigest()[:16],
    }


def train_adapter(
    recipe: Recipe,
    config: DpoConfig,
    base: Path,
    pairs: Sequence[PairRow],
    folder: Path,
    inputs: dict[str, str],
    force: bool,
    smoke_steps: int | None,
) -> dict[str, Any]:
    """Check the pairs, build the trainer, train, save; return metrics."""
    from helpers.models import load_model
    from helpers.stages import trainer as training
    from helpers.stages.dpo_trainer import DpoWatch

    model, tokenizer = load_model(recipe, base, training=True)
    checkpoints = folder / "checkpoints"
    check = select_pairs(recipe, config, tokenizer, pairs)
    kept = [pairs[index] for index in check.kept]
    if smoke_steps is not None:
        # Reference log-probabilities are computed for every pair at once.
        kept = kept[: smoke_steps * config.effective_batch]
    count = count_dpo_steps(config, len(kept), smoke_steps)
    print(f"DPO: {check}\nDPO: {count}")
    trainer = build_trainer(
        recipe, config, model, tokenizer, kept, checkpoints, smoke_steps
    )
    start_loss = check_trainer(recipe, trainer, tokenizer, kept)
    monitor = build_monitor(config, count, smoke_steps is not None)
    nats = None if smoke_steps else config.stop_below_nats
    watch = DpoWatch(monitor, nats and nats * config.beta)
    trainer.add_callback(watch)
    resume = None
    if smoke_steps is None:
        resume = ranks.run_first(
            partial(prepare_checkpoints, checkpoints, inputs, force)
        )
    speed = training.fit(trainer, "DPO", folder, count, resume)
    return summarise(config, trainer, count, check, monitor) | {
        "start_loss": start_loss,
        "stopped_early": watch.stopped,
        "tokens_per_second": round(speed, 1),
    }


def count_dpo_steps(
    config: DpoConfig, pairs: int, smoke_steps: int | None = None
) -> StepCount:
    """Steps over this many pairs; a smoke run stops after its own."""
    count = count_steps(
        pairs,
        config.effective_batch,
        config.per_device_batch,
        config.epochs,
        world_size=world_size(),
        max_steps=config.max_steps,
    )
    if smoke_steps is None:
        return count
    return replace(count, total=min(smoke_steps, count.total))


def build_monitor(
    config: DpoConfig, count: StepCount, smoke: bool = False
) -> DpoMonitor:
    """The recipe's monitor; a short run is judged from its middle on.

    A smoke run has no no-op alarm: a few steps cannot move anything.
    """
    wait = min(config.noop_after_steps, max(5, count.total // 2))
    noop_margin = 0.0 if smoke else config.noop_margin
    return DpoMonitor(noop_margin, wait, config.overfit_margin)


def build_trainer(
    recipe: Recipe,
    config: DpoConfig,
    model: Any,
    tokenizer: Any,
    pairs: Sequence[PairRow],
    output_dir: Path,
    smoke_steps: int | None = None,
) -> Any:
    """TRL's DPOTrainer with a fresh LoRA and no reference model."""
    from trl import DPOConfig

    from helpers.stages import trainer as training
    from helpers.stages.dpo_trainer import TieAwareDPOTrainer, make_dataset

    count = count_dpo_steps(config, len(pairs), smoke_steps)
    settings = training.build_arguments(
        recipe, config, count, output_dir, smoke=smoke_steps is not None
    )
    with training.quiet_setup():
        return TieAwareDPOTrainer(
            model=model,
            ref_model=None,
            args=DPOConfig(
                **settings,
                beta=config.beta,
                precompute_ref_log_probs=config.precompute_ref_log_probs,
            ),
            train_dataset=make_dataset(tokenizer, pairs, output_dir),
            processing_class=tokenizer,
            peft_config=training.build_lora(config.lora, model),
        )


def check_trainer(
    recipe: Recipe, trainer: Any, tokenizer: Any, pairs: Sequence[PairRow]
) -> float:
    """Check the trainer's tokens and its start; return the loss there.

    Raises:
        LabError: tokens that differ from sampling, or a loss that is not
            ln 2.
    """
    from helpers.stages import trainer as training
    from helpers.stages.dpo_trainer import measure_start_loss

    prompts = [training.encode_prompt(tokenizer, p.prompt) for p in pairs]
    documents = []
    for row in trainer.train_dataset:
        for answer in (row["chosen_ids"], row["rejected_ids"]):
            hidden = [-100] * len(row["prompt_ids"])
            documents.append((row["prompt_ids"] + answer, hidden + answer))
    training.check_supervision(documents, prompts, tokenizer)
    answers = [text for p in pairs for text in (p.chosen, p.rejected)]
    training.check_completions(documents, answers, tokenizer)
    weights = trainer.model.named_parameters()
    check_reference_control(
        [name for name, weight in weights if weight.requires_grad],
        precomputed=trainer.args.precompute_ref_log_probs,
    )
    loss = measure_start_loss(trainer)
    check_dpo_start(loss, START_TOLERANCE[recipe.model.dtype])
    return loss


def summarise(
    config: DpoConfig,
    trainer: Any,
    count: StepCount,
    check: PairCheck,
    monitor: DpoMonitor,
) -> dict[str, Any]:
    """What the stage measured."""
    history = trainer.state.log_history
    steps = [entry for entry in history if "rewards/margins" in entry]
    losses = read_losses(history)
    travel = sum_learning_rates(
        config.learning_rate,
        count.total,
        config.warmup_ratio,
        config.lr_scheduler,
    )
    return {
        "pairs": count.rows,
        "pairs_identical": check.identical,
        "pairs_empty": check.empty,
        "pairs_too_long": check.too_long,
        "effective_batch": count.effective_batch,
        "steps_per_epoch": count.per_epoch,
        "steps": trainer.state.global_step,
        "floor_steps": count.floor_total,
        "trainable_parameters": trainer.model.get_nb_trainable_parameters()[0],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "margin": monitor.mean_margin,
        "accuracy": statistics.fmean(
            entry["rewards/accuracies"] for entry in steps[-10:]
        ),
        "first_tie_fraction": steps[0]["tie_fraction"],
        "tie_fraction": steps[-1]["tie_fraction"],
        "noop": monitor.is_noop,
        "overfit": monitor.is_overfit,
        "sum_learning_rates": travel,
    }
