"""What happens beside the steps of a training: bar and checkpoints."""

from __future__ import annotations

from pathlib import Path

from transformers import ProgressCallback, TrainerCallback

from helpers.base import is_first_rank, ranks, seal_checkpoint

BAR_KEYS = {
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
}


class SealCheckpoint(TrainerCallback):
    """Marks a checkpoint as whole when every process has written its part."""

    def on_save(self, args, state, control, **kwargs) -> None:
        """Called on every rank after its part is on the disk."""
        ranks.wait()
        if is_first_rank():
            name = f"checkpoint-{state.global_step}"
            seal_checkpoint(Path(args.output_dir, name))


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
