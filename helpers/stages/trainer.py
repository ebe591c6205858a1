"""What SFT and DPO share around TRL's trainers.

TRL trains; this module hands it the recipe's settings and rows, sorts the
rows by length, watches what is logged, writes the log, and keeps checkpoints
so that a killed run goes on where it was. It loads torch: the stages import
it when they train.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import torch
from peft import LoraConfig
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import DPOTrainer, SFTTrainer

from helpers.base import (
    LoraSettings,
    Recipe,
    TrainConfig,
    disk_errors,
    drop_checkpoints,
    is_first_rank,
    name_folder,
    ranks,
    seal_checkpoint,
    world_size,
    write_text,
)
from helpers.models import check_markers, pick_device, widen_adapter
from helpers.planner import StepCount
from helpers.stages.guards import (
    DpoMonitor,
    check_initial_loss,
    check_lora_targets,
    check_supervision,
)

# TRL reports every trainer it builds to the hub; a course must not.
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
# Its only message here is about file times when old checkpoints are dropped.
logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)

TIE = 1e-6  # a reward margin below this is a tie
BAR_KEYS = {
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
}

# --- rows as tokens ---


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


def check_tokens(
    tokenizer: Any,
    documents: Sequence[tuple[list[int], list[int]]],
    prompts: Iterable[str],
    completions: Iterable[str],
) -> None:
    """The trainer's tokens are those of the rows, to the end token.

    Args:
        documents: (input ids, labels) of each example, from the trainer.
        prompts, completions: texts of the rows.

    Raises:
        LabError: names the first document that differs and how, or the first
            mark of a completion, such as ``</think>``, that is lost.
    """
    asked = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    check_supervision(documents, asked, tokenizer)
    learned = [[x for x in labels if x != -100] for _, labels in documents]
    decoded = tokenizer.batch_decode(learned, skip_special_tokens=True)
    check_markers(completions, decoded)


# --- settings ---


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


# --- batches ---


class LengthSampler(LengthGroupedSampler):
    """Batches of similar length, in an order that only (seed, epoch) fixes.

    Similar lengths save padding. The parent draws from torch's global state,
    so a run resumed in epoch 2 would see other batches than it had left, and
    it hands out each group from long to short, which puts a saw into the
    loss curve; here the order of the batches is random too.

    Of several processes the k-th takes every k-th batch (accelerate's
    ``BatchSamplerShard``), so a step has the rows that it would have in one
    process. Inside a step batches go from long to short: then those that are
    computed at the same moment are of similar length.

    Args:
        batch_size: rows of one forward pass on one device.
        lengths: tokens of each row.
        step: batches of one optimizer step, over all devices.
    """

    def __init__(
        self, batch_size: int, lengths: list[int], seed: int, step: int = 1
    ):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.step = seed, step
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        order, size = list(super().__iter__()), self.batch_size
        full = len(order) // size
        batches = torch.randperm(full, generator=self.generator).tolist()
        for first in range(0, full, self.step):
            # The parent's order within a batch is from long to short.
            for batch in sorted(
                batches[first : first + self.step],
                key=lambda number: -self.lengths[order[number * size]],
            ):
                yield from order[batch * size : (batch + 1) * size]
        yield from order[full * size :]


class TellEpoch(TrainerCallback):
    """Tells the sampler its epoch, which a resumed run would not.

    In several processes accelerate 1.15 wraps the sampler three deep to skip
    batches, and transformers 5.23 tells two: a run resumed in its second
    epoch would go on with the batches of the first.
    """

    def __init__(self, sampler: LengthSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Called before the first batch is drawn."""
        self.sampler.set_epoch(int(state.epoch))


class GroupedByLength:
    """Mixin for a TRL trainer: batches come from :class:`LengthSampler`."""

    def __init__(self, *arguments: Any, args: Any, **settings: Any):
        # One process trains on one card. Else transformers would divide every
        # batch among all that it sees, and the effective batch would grow.
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(*arguments, args=args, **settings)

    def _get_train_sampler(self, train_dataset=None) -> LengthSampler:
        rows = self.train_dataset
        names = [
            name
            for name in ("input_ids", "chosen_ids", "rejected_ids")
            if name in rows.column_names
        ]
        columns = [[len(ids) for ids in rows[name]] for name in names]
        lengths = [max(sizes) for sizes in zip(*columns, strict=True)]
        step = self.args.gradient_accumulation_steps * self.args.world_size
        sampler = LengthSampler(
            self.args.train_batch_size, lengths, self.args.seed, step
        )
        self.add_callback(TellEpoch(sampler))
        return sampler


# --- the trainers ---


class LengthGroupedSFTTrainer(GroupedByLength, SFTTrainer):
    """SFTTrainer whose batches hold rows of similar length."""


class TieAwareDPOTrainer(GroupedByLength, DPOTrainer):
    """DPOTrainer that also logs ``tie_fraction`` and ``kl``.

    ``tie_fraction``: TRL counts a pair as accurate when ``chosen >
    rejected``, so an exact tie counts as wrong and a margin of 1e-7 as
    right; accuracy alone cannot tell "worse than a coin" from "nothing
    learnt yet".

    ``kl``: how far the policy is from its reference on the pairs, in nats a
    token. Of each answer, chosen or rejected, ``d`` is the mean over its
    tokens of log p(policy) - log p(reference); ``exp(d) - 1 - d``, averaged
    over the answers, is the estimate k3 of KL(reference ‖ policy) (Schulman,
    2020, "Approximating KL divergence"). It is 0 at the start, never
    negative, and smaller than if every token counted on its own. It says
    nothing of other texts than the pairs.

    Rewards live inside TRL's loss, so the log probabilities are read where
    they leave the model.
    """

    def _prepare_dataset(self, dataset, *arguments, **settings):
        """Nothing to do: the rows are tokens, not texts."""
        return dataset

    def _compute_loss(self, model, inputs, return_outputs):
        seen: list[torch.Tensor] = []

        def keep(module, arguments, output) -> None:
            if getattr(output, "log_probs", None) is not None:
                seen.append(output.log_probs.detach().sum(dim=1))

        hook = self.model.register_forward_hook(keep)
        try:
            result = super()._compute_loss(model, inputs, return_outputs)
        finally:
            hook.remove()
        self._log_ratios(seen, inputs)
        return result

    def _log_ratios(self, seen: list[torch.Tensor], inputs: Any) -> None:
        """``seen``: summed log p of the policy, then of the reference."""
        if self.precompute_ref_logps:
            reference = torch.cat(
                [inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]]
            )
        else:
            reference = seen[1]
        ratios = seen[0] - reference  # (chosen, then rejected)
        chosen, rejected = (self.beta * ratios).chunk(2)
        margins = self.accelerator.gather(chosen - rejected)
        metrics = self._metrics["train" if self.model.training else "eval"]
        ours, trl = margins.mean().item(), metrics["rewards/margins"][-1]
        if abs(ours - trl) > 1e-3 * max(1.0, abs(trl)):
            raise RuntimeError(
                f"margin {ours} is not TRL's {trl}: this version of TRL "
                "computes rewards in another way"
            )
        ties = (margins.abs() < TIE).float().mean().item()
        metrics["tie_fraction"].append(ties)
        mean = ratios / inputs["completion_mask"].sum(dim=1)
        kl = self.accelerator.gather(torch.expm1(mean) - mean)
        metrics["kl"].append(kl.mean().item())


# --- callbacks ---


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


class SealCheckpoint(TrainerCallback):
    """Marks a checkpoint as whole when every process has written its part."""

    def on_save(self, args, state, control, **kwargs) -> None:
        """Called on every rank after its part is on the disk."""
        ranks.wait()
        if is_first_rank():
            name = f"checkpoint-{state.global_step}"
            seal_checkpoint(Path(args.output_dir, name))


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


class DpoWatch(TrainerCallback):
    """Feeds the trainer's log to a :class:`~helpers.stages.guards.DpoMonitor`.

    Args:
        stop_margin: the run ends at the monitor's ``noop_after_steps`` when
            its mean margin, projected to the last step, is smaller (β·nats);
            None: never.
    """

    def __init__(self, monitor: DpoMonitor, stop_margin: float | None = None):
        self.monitor, self.stop_margin = monitor, stop_margin
        self.stopped = False

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """A resumed run: look at what was logged before."""
        for entry in state.log_history:
            self._observe(entry.get("step", 0), entry)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Look at one logged step."""
        self._observe(state.global_step, logs or {})
        due = state.global_step == self.monitor.noop_after_steps
        if self.stop_margin is None or not due:
            return
        left = state.max_steps / state.global_step
        if abs(self.monitor.mean_margin) * left < self.stop_margin:
            control.should_training_stop = self.stopped = True
            self._write(
                [
                    f"Stopped at step {state.global_step} of "
                    f"{state.max_steps}: the mean margin "
                    f"{self.monitor.mean_margin:+.4f} would not reach "
                    f"{self.stop_margin:.4f} β·nats, so the evaluation would "
                    "show nothing. Raise dpo.learning_rate."
                ]
            )

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Say how it ended, also of a run shorter than the wait."""
        self._write(self.monitor.finish())

    def _observe(self, step: int, logs: dict[str, Any]) -> None:
        if "rewards/margins" in logs:
            self._write(
                self.monitor.observe(
                    step, logs["rewards/margins"], logs["rewards/accuracies"]
                )
            )

    def _write(self, alarms: list[str]) -> None:
        for text in alarms:
            tqdm.write(text)


# --- training ---


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
            save_log(trainer.state.log_history, folder / "log.jsonl")
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


def save_log(history: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write a trainer's log history, one JSON object a line."""
    lines = [json.dumps(dict(entry), sort_keys=True) for entry in history]
    write_text(path, "".join(line + "\n" for line in lines))


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


def read_losses(trainer: Any) -> list[float]:
    """The logged training losses in order, in nats."""
    history = trainer.state.log_history
    return [entry["loss"] for entry in history if "loss" in entry]
