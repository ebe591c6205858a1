"""Run one server and see that nothing of it outlives its owner.

Started as a script, by path, with the server's command as arguments::

    python vllm_watch.py COMMAND …

The owner holds the other end of standard input. When that closes (the owner
closed it, ended, or was killed in whatever way), the server and all its
descendants are ended: first asked, then killed. On Linux this process adopts
what the server leaves behind, so also those are found. Standard output gets
one line, the pid of the server, which is also its process group. The exit
status is the server's.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

ASK_SECONDS = 10.0  # between asking and killing
LOOK_SECONDS = 0.5
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main(command: list[str]) -> int:
    """Run ``command`` until it ends or its owner does; its exit status."""
    owner = os.getppid()
    # A signal to this process means the same as a closed standard input.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    _set_process_control(PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        # The last resort, where this process itself is killed.
        preexec_fn=lambda: _set_process_control(
            PR_SET_PDEATHSIG, signal.SIGTERM
        ),
    )
    try:
        print(server.pid, flush=True)
        sys.stdout.close()
        while server.poll() is None and os.getppid() == owner:
            ready, _, _ = select.select([0], [], [], LOOK_SECONDS)
            if ready and not os.read(0, 4096):
                break
    finally:
        end_descendants()
    status = server.wait()
    return status if status >= 0 else 128 - status


def end_descendants() -> None:
    """End all descendants of this process."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for send in (psutil.Process.terminate, psutil.Process.kill):
        told: set[psutil.Process] = set()
        until = time.monotonic() + ASK_SECONDS
        while time.monotonic() < until:
            found = psutil.Process().children(recursive=True)
            _, alive = psutil.wait_procs(found, timeout=0.1)
            if not found:
                return
            for process in set(alive) - told:  # new ones may turn up
                with suppress(psutil.NoSuchProcess):
                    send(process)
            told |= set(alive)


def _set_process_control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
