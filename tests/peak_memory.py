"""Train a model of given sizes for two steps; print its memory as JSON.

Run in a process of its own by test_planner_memory.py: the peak of a process
is for all of its life. Weights are random, since memory does not depend on
them.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")


def read_status(key):
    """A field of /proc/self/status in bytes, e.g. VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}")


def make_rows(tokenizer, kind, count, length):
    """Rows that fill max_length to the last token."""
    from datasets import Dataset

    word = tokenizer.decode([300])
    text = word * (length + 8)
    columns = {"prompt": "What is 1 + 2?", "completion": text}
    if kind == "dpo":
        columns = {"prompt": "What?", "chosen": text, "rejected": word + text}
    return Dataset.from_list([columns] * count)


def build_trainer(asked, folder):
    """TRL's trainer as the kit uses it, around a random model."""
    import torch
    from peft import LoraConfig
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    dtype = getattr(torch, asked["dtype"])
    with torch.device("cpu"):
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(LlamaConfig(**asked["config"]))
        torch.set_default_dtype(torch.float32)
    root = Path(__file__).resolve().parent.parent
    tokenizer = AutoTokenizer.from_pretrained(root / "data/pocket/model")
    kind, rows = asked["kind"], asked["rows"]
    settings = {
        "output_dir": folder,
        "per_device_train_batch_size": rows,
        "max_steps": 2,
        "max_length": asked["length"],
        "bf16": asked["dtype"] == "bfloat16",
        "activation_checkpointing": asked["checkpointing"],
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    lora = LoraConfig(
        r=16,
        lora_dropout=asked["dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer, config = (
        (DPOTrainer, DPOConfig) if kind == "dpo" else (SFTTrainer, SFTConfig)
    )
    return trainer(
        model=model,
        args=config(**settings),
        train_dataset=make_rows(tokenizer, kind, 2 * rows, asked["length"]),
        processing_class=tokenizer,
        peft_config=lora,
    )


def main():
    """Read the settings, train, print before and peak."""
    asked = json.loads(sys.argv[1])
    import datasets
    import peft  # noqa: F401
    import trl  # noqa: F401

    # The same work once on a toy, so that libraries are in memory already.
    datasets.disable_progress_bars()
    toy = asked | {"rows": 2, "length": 32}
    toy["config"] = asked["config"] | {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 64,
        "vocab_size": 1024,
    }
    with tempfile.TemporaryDirectory() as folder:
        build_trainer(toy, folder).train()
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = read_status("VmRSS")
        trainer = build_trainer(asked, folder)
        trainer.train()
    peak = read_status("VmHWM")
    print(json.dumps({"before": before, "peak": peak}))


if __name__ == "__main__":
    main()
