"""One run at a time in a folder: a lock file that names its owner.

``.lock`` in the folder holds pid, host, start time and command of the process
that works there. It is created exclusively, so of two processes one is
refused; a lock whose owner is gone is removed and said so. A process may take
its own lock again; of several ranks (torchrun, accelerate) only the first
takes it, for all of them.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from helpers.base.errors import LabError
from helpers.base.records import disk_errors

LOCK = ".lock"
CLOCK_SLACK_S = 2.0  # a process's start time moves when the clock is set
UNWRITTEN_S = 2.0  # a lock may be seen before its owner's name is in it
COMMAND_LENGTH = 200

_mutex = threading.Lock()
_held: dict[tuple[int, Path], int] = {}  # (pid, folder): how often taken


@contextmanager
def hold_lock(folder: str | Path) -> Iterator[None]:
    """Hold the lock of ``folder`` while the block runs.

    Raises:
        LabError: another process holds it, on this or another machine.
    """
    if not is_first_rank():
        yield
        return
    key = (os.getpid(), Path(folder).resolve())
    with _mutex:
        if not _held.get(key):
            _take(key[1])
        _held[key] = _held.get(key, 0) + 1
    try:
        yield
    finally:
        with _mutex:
            _held[key] -= 1
            if not _held[key]:
                del _held[key]
                _release(key[1] / LOCK)


def is_first_rank() -> bool:
    """False in all but one of the processes that a launcher started."""
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    return rank == "0"


def require_unlocked(folder: str | Path) -> None:
    """LabError when another process works in ``folder`` now."""
    if (Path(folder) / LOCK).exists():
        with hold_lock(folder):
            return


def _take(folder: Path) -> None:
    path, since = folder / LOCK, time.monotonic()
    with disk_errors(path), _one_at_a_time(folder):
        while not _create(path):
            owner = _read_owner(path)
            if owner is None:
                if time.monotonic() - since > UNWRITTEN_S:
                    raise _explain_unreadable(path)
                time.sleep(0.05)
            elif owner["host"] != socket.gethostname():
                raise _explain_other_host(path, owner)
            elif _is_alive(owner):
                raise _explain_alive(path, owner)
            else:
                path.unlink(missing_ok=True)
                print(f"stale lock of {_name(owner)} removed.")


def _release(path: Path) -> None:
    """Remove the lock unless somebody deleted it and another has it now."""
    owner = _read_owner(path)
    if owner is not None and owner["pid"] == os.getpid():
        path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    """Create the lock with its text in one step; False when there is one."""
    me = psutil.Process()
    owner = {
        "pid": me.pid,
        "host": socket.gethostname(),
        "started": me.create_time(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _describe_command(),
    }
    draft = path.with_name(f"{LOCK}.{me.pid}")
    draft.write_text(json.dumps(owner) + "\n", encoding="utf-8")
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        return _create_plainly(path, draft.read_bytes())
    finally:
        draft.unlink(missing_ok=True)
    return True


def _create_plainly(path: Path, text: bytes) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep two processes from clearing the same stale lock.

    The second would remove the new lock of the first. Where the system has
    no locks on folders, exclusive creation alone has to do.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not on every network file system
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _describe_command() -> str:
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else []
    if words and words[0].startswith("ipykernel"):
        return "a notebook"
    return " ".join(words).strip()[:COMMAND_LENGTH] or "python"


def _read_owner(path: Path) -> dict[str, Any] | None:
    """The lock's text, or None when it has none (yet)."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        checked = {"pid": int(owner["pid"]), "host": str(owner["host"])}
        return owner | checked | {"started": float(owner["started"])}
    except (FileNotFoundError, ValueError, TypeError, LookupError):
        return None


def _is_alive(owner: dict[str, Any]) -> bool:
    """True when the pid runs and is not a later process of that number."""
    try:
        process = psutil.Process(owner["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        began = process.create_time()
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True
    return abs(began - owner["started"]) < CLOCK_SLACK_S


def _name(owner: dict[str, Any]) -> str:
    return (
        f"process {owner['pid']} ({owner.get('command', '?')}), "
        f"since {owner.get('since', '?')},"
    )


def _explain_alive(path: Path, owner: dict[str, Any]) -> LabError:
    return LabError(
        f"{path.parent} is in use by {_name(owner).rstrip(',')}.",
        why="two runs in one folder would spoil each other's files",
        fix=f"wait for it, stop it (process {owner['pid']}), or choose "
        "another --run-dir",
    )


def _explain_other_host(path: Path, owner: dict[str, Any]) -> LabError:
    return LabError(
        f"{path.parent} is in use on another machine, {owner['host']}: "
        f"{_name(owner).rstrip(',')}.",
        why="from here nobody can see whether it still runs",
        fix=f"if you are sure that it has ended, delete {path}; else choose "
        "another --run-dir",
    )


def _explain_unreadable(path: Path) -> LabError:
    return LabError(
        f"{path} does not say who holds it.",
        why="it was torn, or something else wrote it",
        fix=f"if nothing else works in this folder, delete {path}",
    )


def world_size() -> int:
    """Number of processes that train together (1 without a launcher)."""
    return int(os.environ.get("WORLD_SIZE", "1"))
