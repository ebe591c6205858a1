"""What only a GPU can tell, piece by piece: ``make gpu-check``.

Each piece runs in a process of its own and writes one JSON file; a piece
whose file is there is not run again, so a stopped check goes on. Random
weights stand in for the real ones where speed and memory are measured: both
depend on the shape alone.

It has not run on a GPU yet. On a CPU every piece is run by the tests with
``--shape tiny``, which shows that the code works and measures nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from helpers.base import (
    DATA_DIR,
    LabError,
    describe_machine,
    load_recipe,
    read_json,
    write_json,
)
from helpers.models import is_out_of_memory
from tools.gpu_check.pieces import PIECES, Setting

__all__ = ["PIECES", "run_check", "run_piece"]

RESULTS = DATA_DIR / "measured" / "gpu"


def run_check(
    folder: Path | None = None,
    shape: Literal["true", "tiny"] = "true",
    pieces: Sequence[str] = (),
    *,
    force: bool = False,
) -> list[str]:
    """Run what is missing, each piece in a fresh process.

    Args:
        folder: where results go; None: ``data/measured/gpu`` of the clone.
        shape: "tiny" runs the same code on toy models, also without a GPU.
        pieces: names of :data:`PIECES`; none: all of them.
        force: run a piece again although its result is there.

    Returns:
        The names of the pieces that failed.

    Raises:
        LabError: no CUDA for true shapes, tiny results for the shipped
            folder, or an unknown piece.
    """
    folder = check_request(folder, shape, pieces)
    failed = []
    for name in pieces or PIECES:
        if (folder / f"{name}.json").is_file() and not force:
            print(f"{name}: there already")
            continue
        words = ["--piece", name, "--shape", shape, "--out", str(folder)]
        done = subprocess.run(
            [sys.executable, "-m", "tools.gpu_check", *words, "--here"],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        if done.returncode:
            failed.append(name)
    return failed


def check_request(
    folder: Path | None, shape: str, pieces: Sequence[str]
) -> Path:
    """The folder of the results, or one clear refusal before work begins."""
    import torch

    for name in pieces:
        if name not in PIECES:
            raise LabError(
                f"There is no piece '{name}'.",
                fix="choose from: " + ", ".join(PIECES),
            )
    if shape == "true" and not torch.cuda.is_available():
        raise LabError(
            "make gpu-check needs a CUDA card, and torch finds none here.",
            why="its figures are speeds and memory of a GPU",
            fix="run it on a GPU machine; --shape tiny --out FOLDER tries "
            "the code without one",
        )
    if shape == "tiny" and folder in (None, RESULTS):
        raise LabError(
            "Toy results do not belong into data/measured.",
            fix="name another folder with --out",
        )
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_piece(
    name: str, folder: Path, shape: Literal["true", "tiny"]
) -> dict[str, Any]:
    """One piece in this process: its result, also written to its file.

    Out of memory is a result: it is what the planner should have said.
    """
    folder = check_request(folder, shape, [name])
    setting = Setting(tiny=shape == "tiny", folder=folder)
    print(f"{name}: begun")
    try:
        found = PIECES[name](setting)
    except (RuntimeError, MemoryError, LabError) as error:
        if not is_out_of_memory(error):
            raise
        found = {"out_of_memory": str(error).split("\n")[0]}
    found = {"piece": name, "shape": shape} | found
    write_manifest(folder)
    write_json(folder / f"{name}.json", found)
    print(f"{name}: {found}")
    return found


def write_manifest(folder: Path) -> None:
    """Machine and versions; refused when another machine's are there."""
    made = describe_machine(load_recipe("pocket")) | {"gpu": name_gpu()}
    del made["recipe"], made["seed"]
    path = folder / "manifest.json"
    if not path.is_file():
        write_json(path, made)
        return
    before = read_json(path)
    if (before["gpu"], before["versions"]) != (made["gpu"], made["versions"]):
        raise LabError(
            f"{folder} holds results of {before['gpu']} or other versions.",
            why="figures of two machines must not stand side by side",
            fix="name another folder with --out",
        )


def name_gpu() -> str | None:
    """The first card's name and memory, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(0)
    return f"{card.name}, {card.total_memory / 2**30:.1f} GiB"
