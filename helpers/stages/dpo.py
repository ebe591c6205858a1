"""DPO: a fresh LoRA learns to prefer the right answer of each pair.

pairs → drop useless → trainer → loss is ln 2? → fit

TRL's ``DPOTrainer`` trains; the reference is the merged SFT model, that is
the same model with the adapter switched off, so there is no second copy.
While it trains, a monitor says when the evaluation is going to show nothing,
and when the pairs are learnt by heart. ``<tag>/log.jsonl`` has of every
logged step the loss, the rewards, and the KL to the reference.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from helpers.base import (
    DpoConfig,
    LabError,
    PairRow,
    Recipe,
    RunDir,
    Stage,
    Tag,
    find_harvest,
    fingerprint_model,
    hash_file,
    open_stage,
    ranks,
    read_records,
    recipe_hash,
    require_current_merge,
    require_file,
)
from helpers.models import (
    fix_model,
    load_model,
    load_tokenizer,
    model_path,
)
from helpers.planner import (
    StepCount,
    count_training_steps,
    estimate_space,
    sum_learning_rates,
)
from helpers.stages.guards import (
    DpoMonitor,
    PairCheck,
    check_cut_pairs,
    check_dpo_start,
    check_length_ratio,
    check_pairs,
    check_reference_control,
    check_rendered,
)

# The precomputed and the live forward pass round differently in 16 bits.
START_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 2e-2}


def run_dpo(
    recipe: Recipe,
    run: RunDir,
    *,
    variant: str | None = None,
    force: bool = False,
    smoke_steps: int | None = None,
    check: bool = False,
) -> dict[str, Any]:
    """Train the DPO adapter of a run, or load it when it is there.

    Writes ``<tag>/adapter`` and ``<tag>/log.jsonl``; the tag is ``dpo`` or
    ``dpo-<variant>``. A smoke run writes under ``smoke/`` and records no
    stage.

    Args:
        variant: a name under ``dpo_variants`` of the recipe, or None.
        check: stop before the model is loaded; returns the recorded metrics
            or {}.

    Returns:
        pairs, steps, losses, margins, accuracy, tie fraction, KL to the
        reference on the pairs (nats a token) and what the monitor found.

    Raises:
        LabError: no pairs, no merged SFT model, or a loss before the first
            update that is not ln 2.
    """
    # Step 1: the settings, the pairs and the model to start from
    config, tag = recipe.dpo_variant(variant), str(Tag("dpo", variant))
    smoke = smoke_steps is not None
    path = find_harvest(run, "pairs.jsonl", smoke)
    recipe = ranks.run_first(partial(fix_model, recipe, run, check))
    base = find_base(recipe, run, smoke)
    pairs = read_records(path, PairRow)
    if not pairs:
        raise LabError(
            f"{path} holds no pairs.",
            why="no problem has both a right and a wrong finished answer",
            fix="distill more problems or more samples each",
        )
    # Step 2: all that the adapter depends on
    settings = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    inputs = {
        "pairs": hash_file(path),
        "model": fingerprint_model(base, recipe.model.revision),
        "recipe": recipe_hash(recipe, "seed", "model"),
        "dpo": hashlib.sha256(settings.encode()).hexdigest()[:16],
    }
    # Step 3: train, unless that is done
    with open_stage(
        run,
        tag,
        inputs,
        outputs=[f"{tag}/adapter", f"{tag}/log.jsonl"],
        megabytes=estimate_space(recipe, "dpo"),
        force=force,
        smoke=smoke,
        check=check,
    ) as stage:
        if not stage.done:
            tokenizer = load_tokenizer(base, recipe.model.revision)
            found = select_pairs(recipe, config, tokenizer, pairs)
            kept = [pairs[index] for index in found.kept]
        if stage.is_needed:
            print(f"DPO: {found}")
            stage.metrics = train(
                recipe, config, stage, base, kept, smoke_steps
            )
            stage.metrics |= {
                "pairs_identical": found.identical,
                "pairs_empty": found.empty,
                "pairs_too_long": found.too_long,
            }
    return stage.metrics


def train(
    recipe: Recipe,
    config: DpoConfig,
    stage: Stage,
    base: Path,
    pairs: Sequence[PairRow],
    smoke_steps: int | None,
) -> dict[str, Any]:
    """Load the model, build the trainer, check its start, train, measure."""
    import helpers.stages.trainer as training

    if stage.smoke:
        # Reference log-probabilities are computed for every pair at once.
        pairs = pairs[: smoke_steps * config.effective_batch]
    count = count_training_steps(config, len(pairs), smoke_steps)
    print(f"DPO: {count}")
    model, tokenizer = load_model(recipe, base, training=True)
    trainer = build_trainer(
        recipe,
        config,
        model,
        tokenizer,
        pairs,
        stage.folder / "checkpoints",
        smoke_steps,
    )
    # The right tokens, the right reference, and the loss ln 2?
    start_loss = check_trainer(recipe, trainer, tokenizer, pairs)
    # Train; the monitor looks on.
    monitor = build_monitor(config, count, stage.smoke)
    nats = None if stage.smoke else config.stop_below_nats
    watch = training.DpoWatch(monitor, nats and nats * config.beta)
    trainer.add_callback(watch)
    speed = training.fit(
        trainer, "DPO", stage.folder, count, stage.last_checkpoint()
    )
    losses = training.read_losses(trainer)
    history = trainer.state.log_history
    steps = [entry for entry in history if "rewards/margins" in entry]
    return {
        "pairs": count.rows,
        "effective_batch": count.effective_batch,
        "steps_per_epoch": count.per_epoch,
        "steps": trainer.state.global_step,
        "floor_steps": count.floor_total,
        "trainable_parameters": trainer.model.get_nb_trainable_parameters()[0],
        "start_loss": start_loss,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "margin": monitor.mean_margin,
        "accuracy": statistics.fmean(
            entry["rewards/accuracies"] for entry in steps[-10:]
        ),
        "first_tie_fraction": steps[0]["tie_fraction"],
        "tie_fraction": steps[-1]["tie_fraction"],
        "kl": steps[-1]["kl"],
        "noop": monitor.is_noop,
        "overfit": monitor.is_overfit,
        "stopped_early": watch.stopped,
        "sum_learning_rates": sum_learning_rates(
            config.learning_rate,
            count.total,
            config.warmup_ratio,
            config.lr_scheduler,
        ),
        "tokens_per_second": round(speed, 1),
    }


def find_base(recipe: Recipe, run: RunDir, smoke: bool) -> Path:
    """``sft/merged``; a smoke run before SFT takes the base model."""
    merged = model_path(recipe, run, "sft")
    if smoke and not merged.exists():
        print("There is no merged SFT model yet: the smoke run uses the base.")
        return model_path(recipe, run, "base")
    require_current_merge(run, "sft")
    return require_file(merged, "mathslm merge --model sft", run)


def select_pairs(
    recipe: Recipe,
    config: DpoConfig,
    tokenizer: Any,
    pairs: Sequence[PairRow],
) -> PairCheck:
    """Check the prompts' template; sort out pairs that cannot be used.

    Prints a warning where the long pairs are missing, or where length alone
    tells the two sides apart.

    Raises:
        LabError: a prompt of another template, two prompts for one problem,
            or no pair that can be used.
    """
    prompts = [pair.prompt for pair in pairs]
    check_rendered(tokenizer, prompts, recipe.data.prompt_template)
    asked = count_tokens(tokenizer, prompts)
    chosen = count_tokens(tokenizer, [p.prompt + p.chosen for p in pairs])
    rejected = count_tokens(tokenizer, [p.prompt + p.rejected for p in pairs])
    # With the end token, the longer side must fit.
    lengths = [max(both) + 1 for both in zip(chosen, rejected, strict=True)]
    check = check_pairs(pairs, lengths, config.max_length)
    warnings = [
        check_cut_pairs(check, config.max_length),
        check_length_ratio(
            [chosen[i] - asked[i] for i in check.kept],
            [rejected[i] - asked[i] for i in check.kept],
        ),
    ]
    for warning in filter(None, warnings):
        print(f"Warning: {warning}")
    return check


def count_tokens(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each text, without special ones added."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [len(one) for one in ids]


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

    import helpers.stages.trainer as training

    count = count_training_steps(config, len(pairs), smoke_steps)
    settings = training.build_arguments(
        recipe, config, count, output_dir, smoke=smoke_steps is not None
    )
    with training.quiet_setup():
        return training.TieAwareDPOTrainer(
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


def make_dataset(
    tokenizer: Any, pairs: Sequence[PairRow], folder: Path
) -> Any:
    """The pairs as TRL's collator takes them: ids of prompt and answers."""
    from helpers.stages.trainer import encode_pair, share_rows

    rows = []
    for pair in pairs:
        asked, chosen = encode_pair(tokenizer, pair.prompt, pair.chosen)
        _, rejected = encode_pair(tokenizer, pair.prompt, pair.rejected)
        rows.append(
            {
                "prompt_ids": asked,
                "chosen_ids": chosen,
                "rejected_ids": rejected,
            }
        )
    return share_rows(rows, folder)


def check_trainer(
    recipe: Recipe, trainer: Any, tokenizer: Any, pairs: Sequence[PairRow]
) -> float:
    """Check the trainer's tokens and its start; return the loss there.

    Raises:
        LabError: tokens that differ from sampling, a reference that moves
            with the policy, or a loss that is not ln 2.
    """
    from helpers.stages.trainer import check_tokens

    documents = []
    for row in trainer.train_dataset:
        for answer in (row["chosen_ids"], row["rejected_ids"]):
            hidden = [-100] * len(row["prompt_ids"])
            documents.append((row["prompt_ids"] + answer, hidden + answer))
    answers = [text for p in pairs for text in (p.chosen, p.rejected)]
    check_tokens(tokenizer, documents, [p.prompt for p in pairs], answers)
    weights = trainer.model.named_parameters()
    check_reference_control(
        [name for name, weight in weights if weight.requires_grad],
        precomputed=trainer.args.precompute_ref_log_probs,
    )
    loss = measure_start_loss(trainer)
    check_dpo_start(loss, START_TOLERANCE[recipe.model.dtype])
    return loss


def measure_start_loss(trainer: Any) -> float:
    """The loss on the first rows before any update, in nats."""
    import torch

    size = min(len(trainer.train_dataset), trainer.args.train_batch_size)
    rows = [trainer.train_dataset[index] for index in range(size)]
    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    was_training = trainer.model.training
    trainer.model.eval()
    with (
        torch.no_grad(),
        trainer.compute_loss_context_manager(),
        expect_weights_as_they_are(trainer.model),
    ):
        loss = trainer.compute_loss(trainer.model, inputs).item()
    trainer.model.train(was_training)
    trainer._metrics["eval"].clear()
    return loss


@contextmanager
def expect_weights_as_they_are(model: Any) -> Iterator[None]:
    """Let TRL compute with a model that ZeRO-3 has not divided yet.

    Where ZeRO-3 is configured TRL gathers weights before it uses them. They
    are divided when training starts, or when the reference is computed
    before; until then every rank has them whole.
    """
    from transformers.integrations import deepspeed

    found = deepspeed._hf_deepspeed_config_weak_ref
    config = found() if found else None
    divided = any(hasattr(p, "ds_status") for p in model.parameters())
    if config is None or divided:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)


def build_monitor(
    config: DpoConfig, count: StepCount, smoke: bool = False
) -> DpoMonitor:
    """The recipe's monitor; a short run is judged from its middle on.

    A smoke run has no no-op alarm: a few steps cannot move anything.
    """
    wait = min(config.noop_after_steps, max(5, count.total // 2))
    noop_margin = 0.0 if smoke else config.noop_margin
    return DpoMonitor(noop_margin, wait, config.overfit_margin)
