"""The little that DPO needs beside TRL's trainer: ties, step 0, the alarm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.integrations import deepspeed
from trl import DPOTrainer

from helpers.base import PairRow
from helpers.stages.batching import GroupedByLength
from helpers.stages.guards import DpoMonitor
from helpers.stages.trainer import encode_pair, share_rows

TIE = 1e-6  # a reward margin below this is a tie


def make_dataset(
    tokenizer: Any, pairs: Sequence[PairRow], folder: Path
) -> Any:
    """The pairs as TRL's collator takes them: ids of prompt and answers."""
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


class TieAwareDPOTrainer(GroupedByLength, DPOTrainer):
    """DPOTrainer that also logs ``tie_fraction``.

    TRL counts a pair as accurate when ``chosen > rejected``, so an exact tie
    counts as wrong and a margin of 1e-7 as right; accuracy alone cannot tell
    "worse than a coin" from "nothing learnt yet". The rewards live inside
    TRL's loss, so the log probabilities are read where they leave the model.
    """

    def _prepare_dataset(self, dataset, *arguments, **settings):
        """Nothing to do: :func:`make_dataset` has made tokens of the texts."""
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
        self._log_ties(seen, inputs)
        return result

    def _log_ties(self, seen: list[torch.Tensor], inputs: Any) -> None:
        """``seen``: summed log p of the policy, then of the reference."""
        if self.precompute_ref_logps:
            reference = torch.cat(
                [inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]]
            )
        else:
            reference = seen[1]
        chosen, rejected = (self.beta * (seen[0] - reference)).chunk(2)
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


@contextmanager
def expect_weights_as_they_are(model: torch.nn.Module) -> Iterator[None]:
    """Let TRL compute with a model that ZeRO-3 has not divided yet.

    Where ZeRO-3 is configured TRL gathers weights before it uses them. They
    are divided when training starts, or when the reference is computed
    before; until then every rank has them whole.
    """
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


def measure_start_loss(trainer: DPOTrainer) -> float:
    """The loss on the first rows before any update, in nats."""
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
            self._say(
                [
                    f"Stopped at step {state.global_step} of "
                    f"{state.max_steps}: the mean margin "
                    f"{self.monitor.mean_margin:+.4f} would not reach "
                    f"{self.stop_margin:.4f} β·nats, so the evaluation would "
                    "show nothing. Raise dpo.learning_rate."
                ]
            )

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Say the verdict, also of a run that was shorter than the wait."""
        self._say(self.monitor.finish())

    def _observe(self, step: int, logs: dict[str, Any]) -> None:
        if "rewards/margins" in logs:
            self._say(
                self.monitor.observe(
                    step, logs["rewards/margins"], logs["rewards/accuracies"]
                )
            )

    def _say(self, alarms: list[str]) -> None:
        for text in alarms:
            tqdm.write(text)
