"""SFT speed: ours against TRL's defaults, same rows, same process.

    python -m tests.benchmarks.bench_sft [--rows 320] [--rounds 2]

Each way trains one epoch with the recipe's LoRA and batch; real tokens
(padding does not count) come from the trainer's own log. The ways take turns,
and the ratio is of tokens per second of processor time, which another load on
the machine hardly moves; the best round of each counts.
"TRL defaults" are those of ``SFTConfig``: bf16 autocast, activation
checkpointing, random batches. The third way shows what is left of the
difference when precision and checkpointing are ours.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from helpers.base import SftRow, load_recipe
from helpers.models import render_prompt
from helpers.problems import load_problems


def make_rows(recipe, tokenizer, n):
    """Problems of the training set with their written solutions."""
    problems = load_problems(recipe.data.train, n)
    return [
        SftRow(
            prompt=render_prompt(
                tokenizer, p.problem, recipe.data.prompt_template
            ),
            completion=f"{p.solution}\nThe answer is \\boxed{{{p.answer}}}.",
            problem_id=p.id,
            sample=0,
            run="benchmark",
        )
        for p in problems
    ]


def build_ours(recipe, model, tokenizer, rows, folder):
    """The trainer that ``mathslm sft`` uses, without checkpoints on disk."""
    from helpers.stages.sft import build_trainer

    trainer = build_trainer(recipe, model, tokenizer, rows, folder)
    trainer.args.save_strategy = "no"
    return trainer


def build_plain(recipe, model, tokenizer, rows, folder, **changes):
    """TRL's SFTTrainer; only batch, length and LoRA come from the recipe."""
    from trl import SFTConfig, SFTTrainer

    from helpers.stages.sft import make_dataset
    from helpers.stages.trainer import build_lora

    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.sft.per_device_batch,
        learning_rate=recipe.sft.learning_rate,
        num_train_epochs=1,
        max_length=recipe.sft.max_length,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **changes,
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=make_dataset(tokenizer, rows, folder),
        processing_class=tokenizer,
        peft_config=build_lora(recipe.sft.lora, model),
    )


def measure(build, recipe, rows, **changes):
    """Train once; return (tokens per CPU second, tokens per second, loss)."""
    from transformers import PrinterCallback

    from helpers.models import load_model
    from helpers.stages import read_losses

    model, tokenizer = load_model(recipe)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(
            recipe, model, tokenizer, rows, Path(folder), **changes
        )
        trainer.remove_callback(PrinterCallback)
        clock = time.process_time()
        result = trainer.train()
        busy = time.process_time() - clock
    tokens = trainer._total_train_tokens
    loss = read_losses(trainer.state.log_history)[-1]
    return tokens / busy, tokens / result.metrics["train_runtime"], loss


def main() -> None:
    """Run the ways in turns and print a table with the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    recipe = load_recipe("pocket", ["sft.epochs=1"])
    from helpers.models import find_base, load_tokenizer

    rows = make_rows(recipe, load_tokenizer(find_base(recipe)), options.rows)
    ways = {
        "ours": (build_ours, {}),
        "TRL defaults": (build_plain, {}),
        "TRL, fp32, no checkpointing": (
            build_plain,
            {"bf16": False, "activation_checkpointing": False},
        ),
    }
    best = dict.fromkeys(ways, (0.0, 0.0, 0.0))
    for _ in range(options.rounds):
        for name, (build, changes) in ways.items():
            done = measure(build, recipe, rows, **changes)
            best[name] = max(best[name], done)
    print(f"{'way':30} {'tokens/CPU s':>13} {'tokens/s':>9} {'ours is':>8}")
    for name, (busy, wall, _) in best.items():
        ratio = best["ours"][0] / busy
        print(f"{name:30} {busy:13.0f} {wall:9.0f} {ratio:7.2f}x")


if __name__ == "__main__":
    main()
