"""What SFT and DPO share around TRL's trainers.

TRL trains; this module hands it the recipe's settings, checks what it made of
the data, shows one progress bar, writes the log, and keeps checkpoints so
that a killed run goes on where it was.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import torch
from peft import LoraConfig
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from helpers.base import (
    LoraSettings,
    Recipe,
    TrainConfig,
    disk_errors,
    drop_checkpoints,
    is_first_rank,
    name_folder,
    ranks,
    world_size,
    write_log,
)
from helpers.models import (
    check_markers,
    check_prompt_text,
    pick_device,
    widen_adapter,
)
from helpers.planner import StepCount
from helpers.stages import guards
from helpers.stages.batching import GroupedByLength
from helpers.stages.callbacks import ProgressBar, SealCheckpoint
from helpers.stages.guards import (
    check_initial_loss,
    check_lora_targets,
)

# TRL reports every trainer it builds to the hub; a course must not.
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
# Its only message here is about file times when old checkpoints are dropped.
logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)

# Llama 3's chat template writes a date into the system prompt: in rows made
# before prompts.TODAY, or elsewhere, it is the day's.
DATE = re.compile(r"\b\d{1,2} [A-Z][a-z]{2} \d{4}\b")


def build_lora(settings: LoraSettings, model: torch.nn.Module) -> LoraConfig:
    """The recipe's LoRA as a PEFT config for this causal language model.

    Raises:
        LabError: the model has no module of a name in ``target_modules``, or
            no layer of a number in ``layers``.
    """
    check_lora_targets(
        settings.target_modules,
        {name.rpartition(".")[2] for name, _ in model.named_modules()},
        layers=settings.layers,
        layer_count=getattr(model.config, "num_hidden_layers", None),
    )
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        layers_to_transform=list(settings.layers) if settings.layers else None,
        bias="none",
        task_type="CAUSAL_LM",
    )


def build_arguments(
    recipe: Recipe,
    config: TrainConfig,
    count: StepCount,
    output_dir: Path,
    *,
    smoke: bool = False,
) -> dict[str, Any]:
    """Keyword arguments common to ``SFTConfig`` and ``DPOConfig``.

    Precision follows the recipe: mixed only when the model's dtype is a
    16-bit one. A smoke run keeps no checkpoint.
    """
    device = pick_device(recipe)
    return {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": config.per_device_batch,
        "gradient_accumulation_steps": count.accumulation,
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.epochs,
        "max_steps": count.total if smoke else config.max_steps,
        "lr_scheduler_type": config.lr_scheduler,
        # transformers 5 reads a fraction here as a share of all steps.
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "max_length": config.max_length,
        # The new name of gradient_checkpointing, which TRL turns on.
        "activation_checkpointing": config.gradient_checkpointing,
        "bf16": recipe.model.dtype == "bfloat16",
        "fp16": recipe.model.dtype == "float16",
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device == "cuda",
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no" if smoke else "steps",
        "save_steps": max(10, -(-count.total // 10)),
        "save_total_limit": 2,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        # Every trained weight of a LoRA is used in every step.
        "ddp_find_unused_parameters": False,
        **config.pick_optimizer(device),
    }


class LengthGroupedSFTTrainer(GroupedByLength, SFTTrainer):
    """SFTTrainer whose batches hold rows of similar length."""


class LossWatch(TrainerCallback):
    """Holds the first logged loss against what sampling recorded.

    Says it at the first step, when nothing has been paid for yet.
    """

    def __init__(self, sampling_logprob: float | None):
        self.sampling_logprob = sampling_logprob

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Look at the loss of step 1; a resumed run has had it."""
        if state.global_step != 1 or "loss" not in (logs or {}):
            return
        warning = check_initial_loss(logs["loss"], self.sampling_logprob)
        if warning and state.is_world_process_zero:
            tqdm.write(f"Warning: {warning}")


@contextmanager
def quiet_setup() -> Iterator[None]:
    """Hide a bar per data preparation pass, and the libraries' own notes.

    The notes are about names that TRL and transformers use between
    themselves; a learner can do nothing about them.
    """
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*gradient_checkpointing.*"
            )
            yield
    finally:
        datasets.enable_progress_bars()


def share_rows(rows: list[dict[str, Any]], folder: Path) -> datasets.Dataset:
    """A data set of these rows; of several processes all read one file.

    What a trainer computes of it is cached beside that file by one process
    and read by the others. Of rows in memory each would look for the cache
    in a temporary folder of its own, and not find it.

    Args:
        folder: on a disk that all processes see; dropped after training.
    """
    if world_size() == 1:
        return datasets.Dataset.from_list(rows)
    path = folder / "rows"
    if is_first_rank():
        with disk_errors(path):
            shutil.rmtree(path, ignore_errors=True)
            datasets.Dataset.from_list(rows).save_to_disk(path)
    ranks.wait()
    return datasets.load_from_disk(path)


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a rendered prompt, as sampling feeds them."""
    return tokenizer(prompt, add_special_tokens=False)["input_ids"]


def encode_pair(
    tokenizer: Any, prompt: str, answer: str
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt, as sampling feeds them, and of its answer.

    The end token closes the answer. Where the answer's first letters would
    merge with the prompt's last ones (a line break after a line break), the
    answer is encoded on its own: the prompt stays the one that is sampled
    with. TRL cuts such a prompt short, and adds a BOS token to one that has
    its own; so it gets tokens, not texts.
    """
    asked = encode_prompt(tokenizer, prompt)
    both = encode_prompt(tokenizer, prompt + answer)
    if both[: len(asked)] == asked:
        own = both[len(asked) :]
    else:
        own = encode_prompt(tokenizer, answer)
    return asked, [*own, tokenizer.eos_token_id]


def check_rendered(
    tokenizer: Any, prompts: Iterable[str], template: str
) -> None:
    """Refuse rows whose prompts are not of this tokenizer and template.

    Raises:
        LabError: names the first prompt that differs.
    """
    from helpers.models import check_template, render_prompt

    check_template(tokenizer, template)
    mark = "@@problem@@"
    rendered = DATE.sub("", render_prompt(tokenizer, mark, template))
    before, _, after = rendered.partition(mark)
    check_prompt_text(
        (DATE.sub("", prompt) for prompt in prompts), before, after, template
    )


def check_supervision(
    documents: Iterable[tuple[list[int], list[int]]],
    prompts: Sequence[list[int]],
    tokenizer: Any,
) -> None:
    """The guard of that name, with this tokenizer's ids.

    Each document is (input ids, labels) as the trainer made them; the prompts
    are as sampling feeds them.

    Raises:
        LabError: names the first document that differs and how.
    """
    guards.check_supervision(
        documents, prompts, tokenizer.bos_token_id, tokenizer.eos_token_id
    )


def check_completions(
    documents: Iterable[tuple[list[int], list[int]]],
    completions: Iterable[str],
    tokenizer: Any,
) -> None:
    """Marks such as ``</think>`` of the rows are in the trainer's tokens.

    Raises:
        LabError: names the first mark that is lost.
    """
    learned = [[x for x in labels if x != -100] for _, labels in documents]
    decoded = tokenizer.batch_decode(learned, skip_special_tokens=True)
    check_markers(completions, decoded)


def save_adapter(trainer: Any, folder: Path) -> None:
    """Save the adapter under a temporary name, then rename it into place."""
    partial = folder.with_name(folder.name + ".partial")
    for config in trainer.model.peft_config.values():
        # An absolute path would tie the adapter to this machine.
        config.base_model_name_or_path = name_folder(
            config.base_model_name_or_path
        )
    with disk_errors(folder):
        if is_first_rank():
            shutil.rmtree(partial, ignore_errors=True)
        ranks.wait()
        # By all: ZeRO-3 has a part of every weight on each of them.
        trainer.save_model(str(partial))
        if is_first_rank():
            # A pickle of the arguments and an empty model card, both with
            # this machine's paths: not needed.
            (partial / "training_args.bin").unlink(missing_ok=True)
            (partial / "README.md").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        ranks.wait()


def fit(
    trainer: Any,
    title: str,
    folder: Path,
    count: StepCount,
    resume: str | None = None,
) -> float:
    """Train, write ``log.jsonl`` and ``adapter`` into the folder.

    The log is written also when training is stopped or fails.

    Returns:
        Real (not padding) tokens per second, checks and saving left out.

    Raises:
        RuntimeError: the trainer took another number of steps than was
            announced, and no callback had stopped it.
    """
    widen_adapter(trainer.model)
    trainer.remove_callback(PrinterCallback)  # one line of numbers a step
    trainer.add_callback(ProgressBar(title))
    trainer.add_callback(SealCheckpoint())
    try:
        with disk_errors(folder):
            result = trainer.train(resume_from_checkpoint=resume)
    finally:
        if is_first_rank():
            write_log(folder / "log.jsonl", trainer.state.log_history)
    stopped = any(
        getattr(callback, "stopped", False)
        for callback in trainer.callback_handler.callbacks
    )
    if trainer.state.global_step != count.total and not stopped:
        raise RuntimeError(
            f"announced {count.total} steps, the trainer took "
            f"{trainer.state.global_step}"
        )
    save_adapter(trainer, folder / "adapter")
    if is_first_rank():
        drop_checkpoints(folder / "checkpoints")
    seconds = result.metrics.get("train_runtime", 0.0)
    return trainer._total_train_tokens / seconds if seconds else 0.0
