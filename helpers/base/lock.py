"""One run at a time in a folder: filelock holds it, a note says who.

The system frees the lock of a process that ends in any way. ``.lock.json``
beside it holds pid, host, start time and command of the owner, for the
message to the one who comes second. A process may take its own lock again;
of several ranks (torchrun, accelerate) only the first takes it, for all.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from helpers.base.errors import LabError
from helpers.base.records import disk_errors, write_json

LOCK, OWNER = ".lock", ".lock.json"
COMMAND_LENGTH = 200
# What a file system says that knows no locks.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextmanager
def hold_lock(folder: str | Path) -> Iterator[None]:
    """Hold ``folder`` while the block runs.

    Raises:
        LabError: another process holds it, on this or another machine, or
            the folder's file system knows no locks.
    """
    if not is_first_rank():
        yield
        return
    folder = Path(folder).resolve()
    lock = FileLock(
        folder / LOCK,
        timeout=0,
        thread_local=False,
        is_singleton=True,
        fallback_to_soft=False,
    )
    _take(lock, folder)
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def is_first_rank() -> bool:
    """False in all but one of the processes that a launcher started."""
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    return rank == "0"


def world_size() -> int:
    """Number of processes that train together (1 without a launcher)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_unlocked(folder: str | Path) -> None:
    """LabError when another process works in ``folder`` now."""
    if (Path(folder) / LOCK).exists():
        with hold_lock(folder):
            return


def _take(lock: FileLock, folder: Path) -> None:
    with disk_errors(folder / LOCK):
        folder.stat()  # filelock would make a folder that is not there
        try:
            lock.acquire()
        except Timeout:
            raise _explain(folder, _read_owner(folder)) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise _explain_no_locks(folder) from None
        if lock.lock_counter > 1:
            return
        # Here, so its owner is gone; or of a machine that shares the disk
        # but not its locks.
        left = _read_owner(folder)
        if left and left["host"] != socket.gethostname():
            lock.release()
            raise _explain(folder, left)
        if left:
            print(f"stale lock of {_name(left)} removed.")
        write_json(folder / OWNER, _describe_me())


def _describe_me() -> dict[str, Any]:
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else []
    command = " ".join(words).strip()[:COMMAND_LENGTH] or "python"
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "a notebook"
        if command.startswith("ipykernel")
        else command,
    }


def _read_owner(folder: Path) -> dict[str, Any] | None:
    """Who wrote the note, or None where it says nothing."""
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return {key: owner[key] for key in ("pid", "host", "since", "command")}
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _name(owner: dict[str, Any]) -> str:
    return "process {pid} ({command}), since {since},".format(**owner)


def _explain(folder: Path, owner: dict[str, Any] | None) -> LabError:
    if owner is None:  # it has the lock and has not written its note yet
        who, end = "another process.", "wait for it"
    elif owner["host"] == socket.gethostname():
        who = f"{_name(owner).rstrip(',')}."
        end = f"wait for it, stop it (process {owner['pid']})"
    else:
        return LabError(
            f"{folder} is in use on another machine, {owner['host']}: "
            f"{_name(owner).rstrip(',')}.",
            why="from here nobody can see whether it still runs",
            fix="if you are sure that it has ended, delete "
            f"{folder / OWNER}; else choose another --run-dir",
        )
    return LabError(
        f"{folder} is in use by {who}",
        why="two runs in one folder would spoil each other's files",
        fix=f"{end}, or choose another --run-dir",
    )


def _explain_no_locks(folder: Path) -> LabError:
    return LabError(
        f"{folder} cannot be locked: its file system knows no locks.",
        why="two runs in one folder would spoil each other's files, and "
        "nobody would notice",
        fix="choose a --run-dir on a disk of this machine, and copy the "
        "folder afterwards",
    )
