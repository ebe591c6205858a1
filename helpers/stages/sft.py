"""SFT: a LoRA learns to write the rows' completions after their prompts.

rows → drop too long → trainer → same tokens as sampling? → fit

TRL's ``SFTTrainer`` trains on prompt/completion rows, so the loss covers the
completion and its end token only. At the first step the loss is compared
with what sampling recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from helpers.base import (
    LabError,
    Recipe,
    RunDir,
    SftRow,
    Stage,
    find_harvest,
    fingerprint_model,
    hash_file,
    open_stage,
    ranks,
    read_records,
    recipe_hash,
)
from helpers.models import (
    fix_model,
    load_model,
    load_tokenizer,
    model_path,
)
from helpers.planner import (
    StepCount,
    check_steps_per_epoch,
    count_training_steps,
    estimate_space,
)
from helpers.stages.guards import check_initial_loss, check_rendered


def run_sft(
    recipe: Recipe,
    run: RunDir,
    *,
    force: bool = False,
    smoke_steps: int | None = None,
    check: bool = False,
) -> dict[str, Any]:
    """Train the SFT adapter of a run, or load it when it is there.

    Writes ``sft/adapter`` and ``sft/log.jsonl`` (under ``smoke/`` for a
    smoke run, which trains ``smoke_steps`` steps and records no stage). A
    killed run goes on from its last checkpoint.

    Args:
        check: stop before the model is loaded; returns the recorded metrics
            or {}.

    Returns:
        rows, steps, losses in nats per token, trained parameters, tokens per
        second, and the initial-loss warning or None.

    Raises:
        LabError: no harvest, too few steps an epoch, or training tokens that
            differ from sampling.
    """
    # Step 1: the rows, and how many steps they make
    smoke = smoke_steps is not None
    path = find_rows(recipe, run, smoke)
    rows = read_records(path, SftRow)
    require_steps(recipe, count_training_steps(recipe.sft, len(rows)), smoke)
    # Step 2: all that the adapter depends on
    recipe = ranks.run_first(partial(fix_model, recipe, run, check))
    base = model_path(recipe, run, "base")
    inputs = {
        "rows": hash_file(path),
        "model": fingerprint_model(base, recipe.model.revision),
        "recipe": recipe_hash(recipe, "seed", "model", "sft"),
    }
    # Step 3: train, unless that is done
    with open_stage(
        run,
        "sft",
        inputs,
        outputs=["sft/adapter", "sft/log.jsonl"],
        megabytes=estimate_space(recipe, "sft"),
        force=force,
        smoke=smoke,
        check=check,
    ) as stage:
        if not stage.done:
            kept = select_rows(recipe, base, rows)
            count = count_training_steps(recipe.sft, len(kept), smoke_steps)
            require_steps(recipe, count, smoke)
        if stage.is_needed:
            print(f"SFT: {count}")
            stage.metrics = train(recipe, stage, kept, smoke_steps)
            stage.metrics["rows_too_long"] = len(rows) - len(kept)
    return stage.metrics


def train(
    recipe: Recipe,
    stage: Stage,
    rows: Sequence[SftRow],
    smoke_steps: int | None,
) -> dict[str, Any]:
    """Load the model, build the trainer, check its data, train, measure."""
    import helpers.stages.trainer as training

    model, tokenizer = load_model(recipe, training=True)
    trainer = build_trainer(
        recipe,
        model,
        tokenizer,
        rows,
        stage.folder / "checkpoints",
        smoke_steps,
    )
    # Is it the text that sampling feeds?
    if recipe.sft_flaws:
        print(f"Not checked, an ablation: {'; '.join(recipe.sft_flaws)}.")
    else:
        check_trainer(trainer, tokenizer, rows)
    # Packed rows are fewer: those that are trained on count.
    seen = len(trainer.train_dataset)
    count = count_training_steps(recipe.sft, seen, smoke_steps)
    if seen != len(rows):
        print(f"SFT, packed: {count}")
        require_steps(recipe, count, stage.smoke, unpacked_rows=len(rows))
    # Train; the first loss is held against sampling's.
    sampled = find_sampling_logprob(stage.run)
    trainer.add_callback(training.LossWatch(sampled))
    speed = training.fit(
        trainer, "SFT", stage.folder, count, stage.last_checkpoint()
    )
    losses = training.read_losses(trainer)
    trainable, total = trainer.model.get_nb_trainable_parameters()
    return {
        "rows": count.rows,
        "effective_batch": count.effective_batch,
        "steps_per_epoch": count.per_epoch,
        "steps": count.total,
        "floor_steps_per_epoch": count.floor_per_epoch,
        "floor_steps": count.floor_total,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "sampling_loss": None if sampled is None else -sampled,
        "initial_loss_warning": check_initial_loss(losses[0], sampled),
        "trainable_parameters": trainable,
        "all_parameters": total,
        "tokens_per_second": round(speed, 1),
    }


def find_rows(recipe: Recipe, run: RunDir, smoke: bool = False) -> Path:
    """The file of training rows: the harvest, or worked solutions."""
    name = "solutions.jsonl" if recipe.solutions else "sft.jsonl"
    return find_harvest(run, name, smoke)


def require_steps(
    recipe: Recipe,
    count: StepCount,
    smoke: bool,
    unpacked_rows: int | None = None,
) -> None:
    """Refuse too few steps an epoch; a smoke run only says so."""
    try:
        check_steps_per_epoch(
            count, recipe.sft.min_steps_per_epoch, unpacked_rows=unpacked_rows
        )
    except LabError as error:
        if not smoke:
            raise
        print(f"The full run would be refused. {error}")


def select_rows(
    recipe: Recipe, base: Path, rows: Sequence[SftRow]
) -> list[SftRow]:
    """The rows to train on; LabError where a prompt is not the template's."""
    tokenizer = load_tokenizer(base, recipe.model.revision)
    if not recipe.sft_flaws:
        check_rendered(
            tokenizer, (r.prompt for r in rows), recipe.data.prompt_template
        )
    return drop_too_long(tokenizer, rows, recipe.sft.max_length)


def drop_too_long(
    tokenizer: Any, rows: Sequence[SftRow], max_length: int
) -> list[SftRow]:
    """Leave out rows that would lose their end; says how many.

    The trainer would cut them at ``max_length``, end token and all, and so
    teach the model not to stop.
    """
    texts = [row.prompt + row.completion for row in rows]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    pairs = zip(rows, encoded, strict=True)
    kept = [row for row, ids in pairs if len(ids) + 1 <= max_length]
    if len(kept) < len(rows):
        print(
            f"{len(rows) - len(kept)} of {len(rows)} rows are over "
            f"sft.max_length={max_length} tokens and are left out."
        )
    if not kept:
        raise LabError(
            f"All {len(rows)} rows are over {max_length} tokens.",
            fix="raise sft.max_length",
        )
    return kept


def build_trainer(
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    rows: Sequence[SftRow],
    output_dir: Path,
    smoke_steps: int | None = None,
) -> Any:
    """TRL's SFTTrainer with a fresh LoRA, on prompt/completion rows."""
    from trl import SFTConfig

    import helpers.stages.trainer as training

    settings = training.build_arguments(
        recipe,
        recipe.sft,
        count_training_steps(recipe.sft, len(rows), smoke_steps),
        output_dir,
        smoke=smoke_steps is not None,
    )
    with training.quiet_setup():
        return training.LengthGroupedSFTTrainer(
            model=model,
            args=SFTConfig(
                **settings,
                packing=recipe.sft.packing,
                completion_only_loss=not recipe.sft.prompt_loss,
            ),
            train_dataset=make_dataset(tokenizer, rows, output_dir),
            processing_class=tokenizer,
            peft_config=training.build_lora(recipe.sft.lora, model),
        )


def make_dataset(tokenizer: Any, rows: Sequence[SftRow], folder: Path) -> Any:
    """The rows as TRL takes them: token ids, and which are the completion."""
    from helpers.stages.trainer import encode_pair, share_rows

    pairs = (encode_pair(tokenizer, r.prompt, r.completion) for r in rows)
    return share_rows(
        [
            {
                "input_ids": prompt + answer,
                "completion_mask": [0] * len(prompt) + [1] * len(answer),
            }
            for prompt, answer in pairs
        ],
        folder,
    )


def check_trainer(
    trainer: Any, tokenizer: Any, rows: Sequence[SftRow]
) -> None:
    """Compare the trainer's tokens with those that sampling feeds."""
    from helpers.stages.trainer import check_tokens

    documents = split_documents(trainer.train_dataset)
    prompts = [row.prompt for row in rows]
    completions = [row.completion for row in rows]
    check_tokens(tokenizer, documents, prompts, completions)


def split_documents(dataset: Any) -> list[tuple[list[int], list[int]]]:
    """(input ids, labels) of each example, unpacked where it was packed."""
    documents = []
    for row in dataset:
        ids, labels = row["input_ids"], row["labels"]
        start = 0
        for size in row.get("seq_lengths") or [len(ids)]:
            part = slice(start, start + size)
            documents.append((ids[part], labels[part]))
            start += size
    return documents


def find_sampling_logprob(run: RunDir) -> float | None:
    """Mean log p of the rows when they were sampled, where they were."""
    if run.recipe.solutions:
        return None  # nobody sampled a worked solution
    return run.metrics().get("distill", {}).get("sft_mean_logprob")
