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
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer

from helpers.checkpoints import drop_checkpoints, write_log
from helpers.errors import LabError, did_you_mean
from helpers.models import pick_device
from helpers.recipes import Recipe
from helpers.recipes.schema import LoraSettings, TrainConfig
from helpers.records import disk_errors
from helpers.runs import name_folder
from helpers.schedule import StepCount

# TRL reports every trainer it builds to the hub; a course must not.
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
# Its only message here is about file times when old checkpoints are dropped.
logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)

# Llama 3's chat template writes today's date into the system prompt.
DATE = re.compile(r"\b\d{1,2} [A-Z][a-z]{2} \d{4}\b")
BAR_KEYS = {
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
}


def build_lora(settings: LoraSettings, model: torch.nn.Module) -> LoraConfig:
    """The recipe's LoRA as a PEFT config for this causal language model.

    Raises:
        LabError: the model has no module of a name in ``target_modules``.
    """
    known = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for target in settings.target_modules:
        if target not in known:
            raise LabError(
                f"The model has no module '{target}'."
                f"{did_you_mean(target, known)}",
                why="LoRA is put on the modules named in lora.target_modules",
                fix="name the projections of this model's architecture",
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
        **config.pick_optimizer(device),
    }


class LengthSampler(LengthGroupedSampler):
    """Batches of similar length, in an order that only (seed, epoch) fixes.

    Similar lengths save padding. The parent draws from torch's global state,
    so a run resumed in epoch 2 would see other batches than it had left, and
    it hands out each group from long to short, which puts a saw into the
    loss curve; here the order of the batches is random too.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        order, size = list(super().__iter__()), self.batch_size
        full = len(order) // size
        for batch in torch.randperm(full, generator=self.generator).tolist():
            yield from order[batch * size : (batch + 1) * size]
        yield from order[full * size :]


class GroupedByLength:
    """Mixin for a TRL trainer: batches come from :class:`LengthSampler`."""

    def _get_train_sampler(self, train_dataset=None) -> LengthSampler:
        rows = self.train_dataset
        names = [
            name
            for name in ("input_ids", "chosen_ids", "rejected_ids")
            if name in rows.column_names
        ]
        columns = [[len(ids) for ids in rows[name]] for name in names]
        lengths = [max(sizes) for sizes in zip(*columns, strict=True)]
        at_once = self.args.train_batch_size * max(1, self.args.world_size)
        return LengthSampler(at_once, lengths, self.args.seed)


class LengthGroupedSFTTrainer(GroupedByLength, SFTTrainer):
    """SFTTrainer whose batches hold rows of similar length."""


class ProgressBar(ProgressCallback):
    """One bar with an ETA; the last logged numbers stand behind it."""

    def __init__(self, title: str):
        super().__init__()
        self.title = title

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Open the bar; a resumed run starts where it was."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.title)
            self.training_bar.initial = state.global_step
            self.training_bar.update(state.global_step)
            self.current_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Show the numbers behind the bar instead of one line each."""
        if self.training_bar is not None and logs:
            shown = {
                label: f"{logs[key]:.3f}"
                for key, label in BAR_KEYS.items()
                if key in logs
            }
            if shown:
                self.training_bar.set_postfix(shown)


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


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a rendered prompt, as sampling feeds them."""
    return tokenizer(prompt, add_special_tokens=False)["input_ids"]


def undouble_bos(tokenizer: Any, prompt: str) -> str:
    """The prompt without its BOS text if the tokenizer adds one itself.

    TRL encodes plain text with special tokens added; a rendered prompt has
    its BOS already.
    """
    bos = tokenizer.bos_token
    adds = bos and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return prompt.removeprefix(bos) if adds else prompt


def check_rendered(
    tokenizer: Any, prompts: Iterable[str], template: str
) -> None:
    """Refuse rows whose prompts are not of this tokenizer and template.

    Raises:
        LabError: names the first prompt that differs.
    """
    from helpers.prompts import check_template, render_prompt

    check_template(tokenizer, template)
    mark = "@@problem@@"
    rendered = DATE.sub("", render_prompt(tokenizer, mark, template))
    before, _, after = rendered.partition(mark)
    for number, prompt in enumerate(prompts, 1):
        dateless = DATE.sub("", prompt)
        if not (dateless.startswith(before) and dateless.endswith(after)):
            raise LabError(
                f"Row {number} was not written by the prompt template "
                f"'{template}' of this model.",
                why=f"its prompt is {prompt[:60]!r}…; the model would be "
                "trained on another text than it is asked",
                fix="harvest again with this recipe, or set "
                "data.prompt_template to what the rows were made with",
            )


def check_supervision(
    documents: Iterable[tuple[list[int], list[int]]],
    prompts: Sequence[list[int]],
    tokenizer: Any,
) -> None:
    """Check token by token what the trainer will learn from.

    Each document is (input ids, labels) as the trainer made them. Its prompt
    must be exactly what sampling feeds (so with the same single BOS), carry
    no loss, and be followed by a completion that is supervised to its end
    token.

    Raises:
        LabError: names the first document that differs and how.
    """
    known = {tuple(ids) for ids in prompts}
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for number, (ids, labels) in enumerate(documents, 1):
        start = next((i for i, x in enumerate(labels) if x != -100), None)
        if start is None:
            fault = "no token carries a loss"
        elif tuple(ids[:start]) not in known:
            fault = "its prompt tokens differ from those sampling feeds"
        elif list(ids[start:]) != list(labels[start:]):
            fault = "part of the completion carries no loss"
        elif ids[-1] != end:
            fault = "it does not end on the end token"
        elif bos not in (None, end) and bos in ids[max(start, 1) :]:
            fault = "a BOS token stands inside the completion"
        else:
            continue
        raise LabError(
            f"Training row {number} is not what it should be: {fault}.",
            why="the trainer's own tokens were compared with the prompt as "
            "sampled; training on another text undoes the base model",
            fix="look at that row with tokenizer.decode(ids); mend the chat "
            "template or the rows",
        )


def save_adapter(trainer: Any, folder: Path) -> None:
    """Save the adapter under a temporary name, then rename it into place."""
    partial = folder.with_name(folder.name + ".partial")
    for config in trainer.model.peft_config.values():
        # An absolute path would tie the adapter to this machine.
        config.base_model_name_or_path = name_folder(
            config.base_model_name_or_path
        )
    with disk_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        trainer.save_model(str(partial))
        # A pickle of the arguments and an empty model card, both with this
        # machine's paths: not needed.
        (partial / "training_args.bin").unlink(missing_ok=True)
        (partial / "README.md").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


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
            announced.
    """
    trainer.remove_callback(PrinterCallback)  # one line of numbers a step
    trainer.add_callback(ProgressBar(title))
    try:
        with disk_errors(folder):
            result = trainer.train(resume_from_checkpoint=resume)
    finally:
        write_log(folder / "log.jsonl", trainer.state.log_history)
    if trainer.state.global_step != count.total:
        raise RuntimeError(
            f"announced {count.total} steps, the trainer took "
            f"{trainer.state.global_step}"
        )
    save_adapter(trainer, folder / "adapter")
    drop_checkpoints(folder / "checkpoints")
    seconds = result.metrics.get("train_runtime", 0.0)
    return trainer._total_train_tokens / seconds if seconds else 0.0
