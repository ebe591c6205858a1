"""One stage of a run: is it done, from what, where, and its record.

Every stage opens itself with :func:`open_stage` and works inside the block:
the folder is locked, other inputs than those of the finished result are
refused, and what the stage measured is recorded when the block ends. Works
in one process and in several that train together. Below: the checkpoints of
a stage that trains, which count for the inputs they were made from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from helpers.base import ranks
from helpers.base.errors import LabError
from helpers.base.lock import require_unlocked
from helpers.base.records import (
    choose_aside,
    disk_errors,
    read_json,
    write_json,
)
from helpers.base.run import RunDir, require_space

SEAL = "complete"  # in a checkpoint: all processes have written their part
STAMP = "inputs.json"  # beside checkpoints: hashes of what they depend on


@dataclass
class Stage:
    """What a stage works with.

    ``done``: nothing is left to do, and ``metrics`` are the recorded ones.
    ``check``: stop before anything heavy is loaded (``mathslm doctor``).
    ``smoke``: a trial in ``smoke/<name>`` that records nothing.
    """

    name: str
    run: RunDir
    folder: Path
    inputs: dict[str, str]
    smoke: bool = False
    force: bool = False
    check: bool = False
    done: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def is_needed(self) -> bool:
        """Whether there is work: not done, and not only a check."""
        return not (self.done or self.check)

    def last_checkpoint(self) -> str | None:
        """Where to go on from; a smoke run starts anew.

        Raises:
            LabError: there are checkpoints of other inputs.
        """
        if self.smoke:
            return None
        folder = self.folder / "checkpoints"
        return ranks.run_first(
            partial(prepare_checkpoints, folder, self.inputs, self.force)
        )


@contextmanager
def open_stage(
    run: RunDir,
    name: str,
    inputs: Mapping[str, str],
    *,
    outputs: Sequence[str],
    megabytes: int,
    grown: bool = False,
    force: bool = False,
    smoke: bool = False,
    check: bool = False,
) -> Iterator[Stage]:
    """Compare inputs, lock, hand out a :class:`Stage`, write its record.

    Args:
        inputs: hashes of all that the result depends on.
        outputs: what the stage writes, relative to the run folder.
        megabytes: free space that it needs.
        grown: the finished result is part of what is asked for now (further
            benchmarks, more samples): it is added to, not compared.

    Raises:
        LabError: too little space, a result or checkpoints of other inputs,
            or another process works in the folder.
    """
    where = run.file("smoke", name) if smoke else run.file(name)
    stage = Stage(name, run, where, dict(inputs), smoke, force, check)
    if smoke:
        require_space(run.path, megabytes)
        yield stage
        return
    if not grown and not (check and force):
        finished = partial(run.is_done, name, inputs, force)
        stage.done = ranks.run_first(finished)
    if stage.done:
        stage.metrics = run.metrics()[name]
        if not check:
            print(f"{name} is done: {outputs[0]} is loaded.")
        yield stage
        return
    require_space(run.path, megabytes)
    stage.inputs |= ranks.describe_sharding()
    refuse_foreign(where / "checkpoints", stage.inputs, force)
    if check:
        require_unlocked(run.path)
        yield stage
        return
    with run.stage(name, inputs) as record:
        yield stage
        record.update(outputs=list(outputs), metrics=stage.metrics)


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
