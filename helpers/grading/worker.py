"""One worker process: started, asked and killed through its pipes.

A plain subprocess: no fork, no ``multiprocessing``, no signals, no select.
Each of its two pipes belongs to one daemon thread, which alone reads or
writes it and closes it, so that a full pipe or a stopped process holds
nobody and no file number is closed while somebody still uses it.
"""

from __future__ import annotations

import io
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
_ROOT = str(Path(__file__).resolve().parents[2])
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); import importlib; "
    "importlib.import_module(sys.argv[2]).main(*sys.argv[3:])"
)
_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # Windows

Event = tuple["Worker", int, "bytes | None"]
Requests = queue.SimpleQueue["bytes | None"]


class Worker:
    """One subprocess that works on one task at a time.

    Args:
        module: what it runs: the ``main`` of this module.
        arguments: given to ``main``.
        python: another interpreter than this one.

    Attributes:
        life: how many processes it has had, so that what an ended one still
            says is not taken for an answer of the present one.
        ready: whether the present process has done its imports.
        ended: whether it has closed its end of the pipe.
        asked: the number of the last request.
        stop_at: when the present task is overdue (``time.monotonic``).
        events: where replies go, as (worker, life, line); the line is None
            when the process has ended.
    """

    def __init__(
        self, module: str, arguments: tuple[str, ...] = (), python: str = ""
    ) -> None:
        self.command = [
            python or sys.executable, "-P", "-c", _PROGRAM, _ROOT, module,
            *arguments,
        ]  # fmt: skip
        self.life = 0
        self.ready = self.ended = False
        self.asked = 0
        self.stop_at = self.half_time = 0.0
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: Requests = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def pid(self) -> int | None:
        """Process id while the worker runs, else None."""
        process = self._process
        if process is None or self.ended or process.poll() is not None:
            return None
        return process.pid

    def start(self) -> None:
        """Start the process; it says by itself when it is ready.

        Raises:
            OSError: the system starts no more processes or threads.
        """
        self.life, self.ready, self.ended = self.life + 1, False, False
        self._requests = queue.SimpleQueue()
        # -P: no file of the caller's folder can pose as a library.
        self._process = process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=_ROOT,  # its caller's folder stays free to be removed
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            creationflags=_NO_WINDOW,
        )
        write = threading.Thread(
            target=_write, args=(process, self._requests), daemon=True
        )
        read = threading.Thread(
            target=self._read, args=(process, self.life), daemon=True
        )
        try:
            for thread in (write, read):
                thread.start()
        except RuntimeError as error:  # the interpreter is ending
            process.kill()
            raise OSError(str(error)) from error
        self._threads = [write, read]

    def send(self, task: Any, deadline_s: float) -> None:
        """Give a started worker a task; the reply arrives in ``events``.

        The deadline counts from when the process is ready.
        """
        self.asked += 1
        self.wait_at_most(deadline_s if self.ready else START_SECONDS)
        line = json.dumps({"id": self.asked, "task": task}) + "\n"
        self._requests.put(line.encode("ascii"))

    def wait_at_most(self, seconds: float) -> None:
        """Let the present task be overdue so many seconds from now."""
        now = time.monotonic()
        self.half_time, self.stop_at = now + seconds / 2, now + seconds

    def _read(self, process: subprocess.Popen[bytes], life: int) -> None:
        """Pass on what the process says, and None when it has ended."""
        if isinstance(process.stdout, io.RawIOBase):
            with io.BufferedReader(process.stdout) as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break  # killed in the middle of a word
                    if life == self.life:  # its first line says so
                        self.ready = True
                    self.events.put((self, life, line))
        # The pipe closes a moment before the system calls a process dead;
        # the flag comes first, so that nobody waits for an event that went
        # to the queue of an earlier round.
        if life == self.life:
            self.ended = True
        self.events.put((self, life, None))

    def stop(self) -> None:
        """Kill the process, reap it, and let its threads end."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self._requests.put(None)
            for thread in self._threads:
                thread.join(1.0)
        self.ready = False

    def abandon(self) -> None:
        """Close the pipes to a process that belongs to our parent.

        For a forked child, where the threads that own them do not exist.
        """
        process, self._process = self._process, None
        for pipe in (process.stdin, process.stdout) if process else ():
            if pipe is not None:
                pipe.close()


def _write(process: subprocess.Popen[bytes], requests: Requests) -> None:
    """Write requests until None; a broken pipe is for the reader to tell."""
    pipe = process.stdin
    while pipe is not None and (line := requests.get()) is not None:
        left = memoryview(line)
        try:
            while left:
                left = left[pipe.write(left) or 0 :]
        except OSError:
            break
    if pipe is not None:
        pipe.close()
