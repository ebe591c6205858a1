"""Starting real processes that train together, for the tests of them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from training_rows import write_pairs, write_sft_rows

from helpers.base import REPO_ROOT, RunDir, load_recipe
from helpers.base.ranks import FILES
from helpers.models import find_base, load_tokenizer

RANKS = 2
DEADLINE_S = 300
# A checkpoint is written after step 10 of 14, in epoch 2; a step is 2 rows on
# each of two ranks, twice. No dropout: every rank draws masks of its own.
COMMON = ["epochs=2", "per_device_batch=2", "effective_batch=8"]
SFT = [f"sft.{x}" for x in (*COMMON, "lora.dropout=0")]
SFT += ["sft.min_steps_per_epoch=1", "sft.learning_rate=5e-4"]
DPO = [f"dpo.{x}" for x in (*COMMON, "lora.dropout=0", "max_steps=4")]
ROWS = 56


def make_run(folder: Path, sets=()) -> RunDir:
    """A run of the pocket model with made-up rows; the base stands for SFT."""
    recipe = load_recipe("pocket", sets)
    run = RunDir.open(folder, recipe)
    tokenizer = load_tokenizer(find_base(recipe))
    write_sft_rows(run, tokenizer, n=ROWS)
    write_pairs(run, tokenizer, n=ROWS)
    merged = run.file("sft", "merged")
    merged.parent.mkdir()
    merged.symlink_to(find_base(recipe))
    return run


def make_command(file, stage, run, sets, *options, ranks=RANKS) -> list[str]:
    """The documented command, on two processes and a free port."""
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(FILES / f"{file}.yaml")]
    launch += ["--num_processes", str(ranks)]
    launch += ["--main_process_port", str(find_port()), *options]
    changes = [word for text in sets for word in ("--set", text)]
    stage = ["-m", "helpers", stage, "--run-dir", str(run.path)]
    return [*launch, *stage, *changes]


def start(command: list[str]) -> subprocess.Popen:
    """Start a launcher in a process group of its own."""
    settings = {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if deepspeed := find_deepspeed():
        # Only where it is used: with it there, every training imports it.
        # Beside it lies ninja, with which it compiles its CPU collectives.
        tools = [str(deepspeed / "bin"), os.environ["PATH"]]
        settings["PATH"] = os.pathsep.join(tools)
        if any("zero" in word for word in command):
            places = [str(deepspeed), os.environ.get("PYTHONPATH", "")]
            settings["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    return subprocess.Popen(
        command,
        cwd=REPO_ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def find_deepspeed() -> Path | None:
    """The folder that holds DeepSpeed: MATHSLM_ZERO3, else where it is."""
    folder = os.environ.get("MATHSLM_ZERO3")
    if folder and (Path(folder) / "deepspeed").is_dir():
        return Path(folder)
    found = importlib.util.find_spec("deepspeed")
    return Path(found.origin).parents[1] if found else None


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and output; after the deadline the group is killed."""
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def launch(*arguments, **settings) -> tuple[int, str]:
    """:func:`make_command`, run to its end."""
    return finish(start(make_command(*arguments, **settings)))


def kill_rank(process: subprocess.Popen, rank: int, sealed: Path) -> None:
    """SIGKILL one rank as soon as a checkpoint is whole."""
    until = time.monotonic() + DEADLINE_S
    while not sealed.is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "no checkpoint"
        time.sleep(0.01)
    for child in psutil.Process(process.pid).children():
        if child.environ().get("RANK") == str(rank):
            child.send_signal(signal.SIGKILL)
            return
    raise AssertionError(f"no rank {rank}")


def find_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read_steps(run: RunDir, tag: str) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    text = run.file(tag, "log.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [(r["loss"], r["grad_norm"]) for r in rows if "loss" in r]
