"""Run one server and see that nothing of it outlives its owner.

Started as a script, by path, with the server's command as arguments::

    python guardian.py COMMAND …

The owner holds the other end of standard input. When that closes (the owner
closed it, ended, or was killed in whatever way), the server's whole process
group is ended: first asked, then killed. On Linux the processes that the
server leaves behind are adopted by this one and ended too, also when they
have moved to another group. Standard output gets one line, the pid of the
server, which is also its process group. The exit status is the server's.

Nothing but the standard library is imported, so that starting takes
milliseconds and the guardian itself takes no memory to speak of.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ASK_SECONDS = 10.0  # between asking and killing
LOOK_SECONDS = 0.5
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def run_guarded(command: list[str]) -> int:
    """Run ``command`` until it ends or its owner does; its exit status."""
    owner = os.getppid()
    # A signal to this process means the same as a closed standard input.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    _set_process_control(PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    try:
        print(server.pid, flush=True)
        sys.stdout.close()
        while server.poll() is None and os.getppid() == owner:
            ready, _, _ = select.select([0], [], [], LOOK_SECONDS)
            if ready and not os.read(0, 4096):
                break
    finally:
        end_group(server)
    status = server.returncode
    return 1 if status is None else status if status >= 0 else 128 - status


def end_group(server: subprocess.Popen[bytes]) -> None:
    """End all processes of the server's group, and all we adopted."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGKILL):
        told: set[int] = set()
        until = time.monotonic() + ASK_SECONDS
        while time.monotonic() < until:
            _reap(server)
            children = set(_list_children())
            if not children and not _group_exists(server.pid):
                return
            # Each process once; adopted ones as they turn up.
            if server.pid not in told:
                _signal(os.killpg, server.pid, number)
            for pid in children - told:
                _signal(os.kill, pid, number)
            told |= children | {server.pid}
            time.sleep(0.05)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _die_with_parent() -> None:
    # The last resort, where this process itself is killed.
    _set_process_control(PR_SET_PDEATHSIG, signal.SIGTERM)


def _set_process_control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _signal(
    send: Callable[[int, int], None], pid: int, number: signal.Signals
) -> None:
    with suppress(ProcessLookupError, PermissionError):
        send(pid, number)


def _list_children() -> list[int]:
    """Pids of our children, adopted ones included; Linux only."""
    try:
        name = f"/proc/self/task/{os.getpid()}/children"
        return [int(word) for word in Path(name).read_text().split()]
    except OSError:
        return []


def _reap(server: subprocess.Popen[bytes]) -> None:
    """Take note of ended children, so that no zombie keeps the group."""
    server.poll()
    for pid in _list_children():
        if pid != server.pid:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


if __name__ == "__main__":
    sys.exit(run_guarded(sys.argv[1:]))
