"""Supervised fine-tuning of a LoRA adapter on the harvested completions.

TRL's ``SFTTrainer`` trains on prompt/completion rows, so the loss covers the
completion and its end token only. Before the first step the number of steps
is announced and checked, and the trainer's own tokens are compared with what
sampling feeds; at the first step, the loss is compared with what sampling
recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from helpers.base import (
    LabError,
    Recipe,
    RunDir,
    SftRow,
    find_harvest,
    fingerprint_model,
    hash_file,
    prepare_checkpoints,
    ranks,
    read_losses,
    read_records,
    recipe_hash,
    refuse_foreign,
    require_space,
    world_size,
)
from helpers.models import fix_model
from helpers.planner import (
    StepCount,
    check_steps_per_epoch,
    count_steps,
    estimate_space,
)
from helpers.stages.guards import check_initial_loss

OUTPUTS = ["sft/adapter", "sft/log.jsonl"]


def run_sft(
    recipe: Recipe,
    run: RunDir,
    *,
    force: bool = False,
    smoke_steps: int | None = None,
) -> dict[str, Any]:
    """Train the SFT adapter of a run, or load it when it is there.

    Writes ``sft/adapter`` and ``sft/log.jsonl`` (under ``smoke/`` for a
    smoke run, which trains ``smoke_steps`` steps and records no stage). A
    killed run goes on from its last checkpoint.

    Returns:
        rows, steps, losses in nats per token, trained parameters, tokens per
        second, and the initial-loss verdict.

    Raises:
        LabError: no harvest, too few steps an epoch, or training tokens that
            differ from sampling.
    """
    rows_path = find_rows(recipe, run, smoke_steps is not None)
    rows = read_records(rows_path, SftRow)
    count = count_sft_steps(recipe, len(rows))
    require_steps(recipe, count, smoke_steps is not None)
    require_space(run.path, estimate_space(recipe, "sft"))
    recipe = ranks.run_first(partial(fix_model, recipe, run))
    inputs = describe_inputs(recipe, run, rows_path)
    if smoke_steps is not None:
        folder, stage = run.file("smoke", "sft"), nullcontext({})
    else:
        done = partial(run.is_done, "sft", inputs, force)
        if ranks.run_first(done):
            print("SFT is done: sft/adapter is loaded.")
            return run.metrics()["sft"]
        folder, stage = run.file("sft"), run.stage("sft", inputs)
        inputs = inputs | ranks.describe_sharding()
        refuse_foreign(folder / "checkpoints", inputs, force)
    print(f"SFT: {count}")
    with stage as record:
        metrics = train_adapter(
            recipe, run, rows, folder, inputs, force, smoke_steps
        )
        record.update(outputs=OUTPUTS, metrics=metrics)
    return metrics


def find_rows(recipe: Recipe, run: RunDir, smoke: bool = False) -> Path:
    """The file of training rows: the harvest, or worked solutions."""
    name = "solutions.jsonl" if recipe.solutions else "sft.jsonl"
    return find_harvest(run, name, smoke)


def count_sft_steps(recipe: Recipe, rows: int) -> StepCount:
    """Steps of the recipe's SFT over this many training sequences."""
    config = recipe.sft
    return count_steps(
        rows,
        config.effective_batch,
        config.per_device_batch,
        config.epochs,
        world_size=world_size(),
        max_steps=config.max_steps,
    )


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


def describe_inputs(
    recipe: Recipe, run: RunDir, rows_path: Path
) -> dict[str, str]:
    """Hashes of all that the adapter depends on."""
    from helpers.models import model_path

    return {
        "rows": hash_file(rows_path),
        "model": fingerprint_model(
            model_path(recipe, run, "base"), recipe.model.revision
        ),
        "recipe": recipe_hash(recipe, "seed", "model", "sft"),
    }


def train_adapter(
    recipe: Recipe,
    run: RunDir,
    rows: Sequence[SftRow],
    folder: Path,
    inputs: dict[str, str],
    force: bool,
    smoke_steps: int | None,
) -> dict[str, Any]:
    """Build the trainer, check its data, train, save; return metrics."""
    from helpers.models import load_model
    from helpers.stages import trainer as training

    model, tokenizer = load_model(recipe, training=True)
    if not recipe.sft_flaws:
        training.check_rendered(
            tokenizer, (r.prompt for r in rows), recipe.data.prompt_template
        )
    kept = drop_too_long(tokenizer, rows, recipe.sft.max_length)
    trainer = build_trainer(
        recipe, model, tokenizer, kept, folder / "checkpoints", smoke_steps
    )
    if recipe.sft_flaws:
        print(f"Not checked, an ablation: {'; '.join(recipe.sft_flaws)}.")
    else:
        check_trainer(trainer, tokenizer, kept)
    smoke = smoke_steps is not None
    count = count_sft_steps(recipe, len(trainer.train_dataset))
    if count.rows != len(rows):
        packed = len(kept) if recipe.sft.packing else None
        print(f"SFT, as the trainer sees it: {count}")
        require_steps(recipe, count, smoke, unpacked_rows=packed)
    if smoke:
        count = replace(count, total=min(smoke_steps, count.total))
    resume = None
    if not smoke:
        resume = ranks.run_first(
            partial(prepare_checkpoints, folder / "checkpoints", inputs, force)
        )
    trainer.add_callback(training.LossWatch(find_sampling_logprob(run)))
    speed = training.fit(trainer, "SFT", folder, count, resume)
    return summarise(run, trainer, count, len(rows) - len(kept), speed)


def drop_too_long(
    tokenizer: Any, rows: Sequence[SftRow], max_length: int
) -> list[SftRow]:
    """Leave out rows that would lose their end; says how many.

    The trainer would cut them at ``max_length``, end token and all, and so
    teach the model not to stop.
    """
    texts = [row.prompt + row.completion for row in rows]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    kept = [
        row
        for row, ids in zip(rows, encoded, strict=True)
        if len(ids) + 1 <= max_length
    ]
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

    from helpers.stages import trainer as training

    count = count_sft_steps(recipe, len(rows))
    smoke = smoke_steps is not None
    if smoke:
        count = replace(count, total=min(smoke_steps, count.total))
    settings = training.build_arguments(
        recipe, recipe.sft, count, output_dir, smoke=smoke
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
    from helpers.stages import trainer as training

    prompts = [training.encode_prompt(tokenizer, r.prompt) for r in rows]
    documents = split_documents(trainer.train_dataset)
    training.check_supervision(documents, prompts, tokenizer)
    training.check_completions(
        documents, (r.completion for r in rows), tokenizer
    )


def split_documents(dataset: Any) -> list[tuple[list[int], list[int]]]:
    """(input ids, labels) of each example, unpacked where it was packed."""
    documents = []
    packed = "seq_lengths" in dataset.column_names
    for row in dataset:
        ids, labels = row["input_ids"], row["labels"]
        start = 0
        for size in row["seq_lengths"] if packed else [len(ids)]:
            part = slice(start, start + size)
            documents.append((ids[part], labels[part]))
            start += size
    return documents


def find_sampling_logprob(run: RunDir) -> float | None:
    """Mean log p of the rows when they were sampled, where they were."""
    if run.recipe.solutions:
        return None  # nobody sampled a worked solution
    return run.metrics().get("distill", {}).get("sft_mean_logprob")


def summarise(
    run: RunDir,
    trainer: Any,
    count: StepCount,
    dropped: int,
    tokens_per_second: float,
) -> dict[str, Any]:
    """What the stage measured."""
    losses = read_losses(trainer.state.log_history)
    sampled = find_sampling_logprob(run)
    trainable, total = trainer.model.get_nb_trainable_parameters()
    return {
        "rows": count.rows,
        "rows_too_long": dropped,
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
        "tokens_per_second": round(tokens_per_second, 1),
    }
