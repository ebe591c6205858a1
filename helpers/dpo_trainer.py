"""The little that DPO needs beside TRL's trainer: ties, step 0, the alarm."""

from __future__ import annotations

from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from trl import DPOTrainer

from helpers.guards import DpoMonitor
from helpers.training import GroupedByLength

TIE = 1e-6  # a reward margin below this is a tie


class TieAwareDPOTrainer(GroupedByLength, DPOTrainer):
    """DPOTrainer that also logs ``tie_fraction``.

    TRL counts a pair as accurate when ``chosen > rejected``, so an exact tie
    counts as wrong and a margin of 1e-7 as right; accuracy alone cannot tell
    "worse than a coin" from "nothing learnt yet". The rewards live inside
    TRL's loss, so the log probabilities are read where they leave the model.
    """

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


def measure_start_loss(trainer: DPOTrainer) -> float:
    """The loss on the first rows before any update, in nats."""
    size = min(len(trainer.train_dataset), trainer.args.train_batch_size)
    rows = [trainer.train_dataset[index] for index in range(size)]
    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    was_training = trainer.model.training
    trainer.model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, inputs).item()
    trainer.model.train(was_training)
    trainer._metrics["eval"].clear()
    return loss


class DpoWatch(TrainerCallback):
    """Feeds the trainer's log to a :class:`~helpers.guards.DpoMonitor`."""

    def __init__(self, monitor: DpoMonitor):
        self.monitor = monitor

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """A resumed run: look at what was logged before."""
        for entry in state.log_history:
            self._observe(entry.get("step", 0), entry)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Look at one logged step."""
        self._observe(state.global_step, logs or {})

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
