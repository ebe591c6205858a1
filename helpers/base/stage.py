"""One stage of a run: is it done, from what, where, and its record.

Every stage opens itself with :func:`open_stage` and works inside the block:
the folder is locked, other inputs than those of the finished result are
refused, and what the stage measured is recorded when the block ends. Works
in one process and in several that train together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from helpers.base import ranks
from helpers.base.checkpoints import prepare_checkpoints, refuse_foreign
from helpers.base.run import RunDir, require_space


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
    folder: str | None = None,
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
        folder: where it works, if not in a folder of its own name.
        grown: the finished result is part of what is asked for now (further
            benchmarks, more samples): it is added to, not compared.

    Raises:
        LabError: too little space, a result or checkpoints of other inputs,
            or another process works in the folder.
    """
    place = folder or name
    where = run.file("smoke", place) if smoke else run.file(place)
    stage = Stage(name, run, where, dict(inputs), smoke, force, check)
    require_space(run.path, megabytes)
    if smoke:
        yield stage
        return
    finished = partial(run.is_done, name, inputs, force and not check)
    stage.done = not grown and ranks.run_first(finished)
    if stage.done:
        stage.metrics = run.metrics()[name]
        if not check:
            print(f"{name}: done with these inputs, loaded.")
        yield stage
        return
    stage.inputs |= ranks.describe_sharding()
    refuse_foreign(where / "checkpoints", stage.inputs, force)
    if check:
        yield stage
        return
    with run.stage(name, inputs) as record:
        yield stage
        record.update(outputs=list(outputs), metrics=stage.metrics)
