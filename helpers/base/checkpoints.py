"""What a training stage keeps on disk besides its result; no torch.

Checkpoints that belong to known inputs, the log of a trainer, and short
hashes of models, so that a killed run goes on where it was and a finished one
is recognised.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from helpers.base.errors import LabError
from helpers.base.records import (
    choose_aside,
    disk_errors,
    read_json,
    write_json,
    write_text,
)
from helpers.base.run import RunDir, hash_file

LINEAGE = "lineage.json"  # in a merged model: hashes of its parts
SEAL = "complete"  # in a checkpoint: all processes have written their part
STAMP = "inputs.json"  # beside checkpoints: hashes of what they depend on
HASH_WHOLE_BELOW = 1 << 28  # bytes: of larger models blocks are hashed
HARVEST = ("sft.jsonl", "pairs.jsonl")  # other rows: <stage>.jsonl
BLOCKS, BLOCK = 64, 1 << 16  # of each file: so many, so many bytes each


def prepare_checkpoints(
    folder: Path, inputs: Mapping[str, str], force: bool = False
) -> str | None:
    """The checkpoint to go on from, or None.

    A checkpoint counts when it is complete, see :func:`seal_checkpoint`, can
    still be read, and was made from the same inputs.

    Args:
        folder: ``<run folder>/<tag>/checkpoints``.
        force: start anew; what is there is moved to ``old/`` of the run.

    Raises:
        LabError: there are checkpoints of other inputs, and no ``force``.
    """
    refuse_foreign(folder, inputs, force)
    with disk_errors(folder):
        if force and any(folder.glob("checkpoint-*")):
            _set_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STAMP, dict(inputs))
    done = [
        path
        for path in folder.glob("checkpoint-*")
        if (path / SEAL).is_file() and is_whole(path)
    ]
    if not done:
        return None
    last = max(done, key=lambda path: int(path.name.rpartition("-")[2]))
    print(f"Going on from {last}.")
    return str(last)


def seal_checkpoint(path: Path) -> None:
    """Mark a checkpoint as whole, after its last file was written."""
    (path / SEAL).touch()


def is_whole(folder: Path) -> bool:
    """Whether every file of a checkpoint can be opened; says which cannot.

    A disk that was full, or failed, leaves files that look finished. Only
    their heads and tables of contents are read.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "numpy"):
                    continue
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix in (".pt", ".pth") and not is_zipfile(path):
                raise ValueError("cut off")
        except (SafetensorError, OSError, ValueError):
            print(f"{folder} is left out: {path.name} was cut off.")
            return False
    return True


def refuse_foreign(
    folder: Path, inputs: Mapping[str, str], force: bool = False
) -> None:
    """LabError when ``folder`` holds checkpoints of other inputs.

    With ``force`` nothing is refused.
    """
    begun = sorted(path.name for path in folder.glob("checkpoint-*"))
    stamp = folder / STAMP
    have = read_json(stamp) if stamp.is_file() else {}
    if force or not begun or have == dict(inputs):
        return
    keys = sorted({*have, *inputs})
    differ = [key for key in keys if have.get(key) != inputs.get(key)]
    raise LabError(
        f"{folder} holds {', '.join(begun)} of a training with other inputs "
        f"(changed: {', '.join(differ)}).",
        why="going on from there would mix two experiments",
        fix="choose another --run-dir, or add --force to set them aside",
    )


def _set_aside(folder: Path) -> None:
    tag = folder.parent
    target = choose_aside(tag.parent, f"{tag.name}-begun")
    target.mkdir(parents=True)
    shutil.move(folder, target / folder.name)


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run."""
    shutil.rmtree(folder, ignore_errors=True)


def write_log(path: Path, history: Iterable[Mapping[str, Any]]) -> None:
    """Write a trainer's log history, one JSON object a line."""
    lines = [json.dumps(dict(entry), sort_keys=True) for entry in history]
    write_text(path, "".join(line + "\n" for line in lines))


def read_losses(history: Iterable[Mapping[str, Any]]) -> list[float]:
    """The logged training losses in order."""
    return [entry["loss"] for entry in history if "loss" in entry]


def fingerprint_model(path: str | Path, revision: str | None = None) -> str:
    """Short hash of a model: its files, or its hub id and revision.

    A merged model is known by what it was merged from: its weights may
    differ in the last bit between machines. Of weight files too large to
    hash in a moment the size counts and blocks from all over the file.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"{folder.as_posix()}@{revision or 'main'}"
    if (folder / LINEAGE).is_file():
        return hash_file(folder / LINEAGE)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if sum(p.stat().st_size for p in files) < HASH_WHOLE_BELOW:
        return hash_file(folder)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}|".encode())
        digest.update(_read_blocks(file))
    return digest.hexdigest()[:16]


def _read_blocks(path: Path) -> bytes:
    """The whole file when it is short, else evenly spaced blocks of it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= BLOCKS * BLOCK:
            return file.read()
        found = []
        for number in range(BLOCKS):
            file.seek((size - BLOCK) * number // (BLOCKS - 1))
            found.append(file.read(BLOCK))
        return b"".join(found)


def find_harvest(run: RunDir, name: str, smoke: bool = False) -> Path:
    """A file of training rows; a smoke run may use a smoke distillation's.

    Raises:
        LabError: it is not there; names the command that makes it.
    """
    path, trial = run.file(name), run.file("smoke", "distill", name)
    if smoke and trial.exists() and not path.exists():
        return trial
    stage = "distill" if name in HARVEST else Path(name).stem
    return require_file(path, f"mathslm {stage}", run)


def require_current_merge(run: RunDir, tag: str) -> None:
    """LabError when ``<tag>/merged`` is of another adapter than is there.

    Where one of the two is absent there is nothing to compare.
    """
    lineage = run.file(tag, "merged", LINEAGE)
    adapter = run.file(tag, "adapter")
    if not lineage.is_file() or not adapter.exists():
        return
    if read_json(lineage).get("adapter") == hash_file(adapter):
        return
    kind, _, variant = tag.partition("-")
    option = f" --variant {variant}" if variant else ""
    raise LabError(
        f"{tag}/merged in {run.label} was made from another adapter than "
        f"{tag}/adapter.",
        why="the adapter was trained again after the merge",
        fix=f"mathslm merge --model {kind}{option} --run-dir {run.label} "
        "--force",
    )


def require_file(path: Path, command: str, run: RunDir) -> Path:
    """The path, or a LabError that names the command which makes it."""
    if not path.exists():
        raise LabError(
            f"There is no {path}.",
            why="this stage goes on from it",
            fix=f"make it first: {command} --run-dir {run.label}",
        )
    return path
