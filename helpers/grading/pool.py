"""Worker processes that can be killed, and a deadline that always holds.

A worker is a plain subprocess with pipes: no fork, no ``multiprocessing``,
no signals. So it behaves the same from a thread, in Jupyter, under spawn and
on Windows, and needs no ``if __name__ == "__main__"`` guard.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

START_SECONDS = 60.0
_ROOT = str(Path(__file__).resolve().parents[2])
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from helpers.grading.symbolic import main; main()"
)


class Worker:
    """One subprocess that compares answers; started on first use."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str | None] = queue.Queue()
        self._count = 0

    @property
    def pid(self) -> int | None:
        """Process id while the worker runs, else None."""
        alive = self._process is not None and self._process.poll() is None
        return self._process.pid if alive and self._process else None

    def start(self) -> None:
        """Start the process and wait until its imports are done."""
        self._replies = queue.Queue()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, _ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        threading.Thread(
            target=_pump, args=(self._process, self._replies), daemon=True
        ).start()
        try:
            first = self._next(START_SECONDS)
        except queue.Empty:
            first = None
        if first is None:
            self.stop()
            raise OSError("the symbolic worker did not start")

    def ask(self, gold: str, predicted: str, deadline_s: float) -> str:
        """Return math-verify's verdict, "deadline" or "worker died"."""
        try:
            if self.pid is None:
                self.start()
            self._count += 1
            request = {"id": self._count, "gold": gold, "predicted": predicted}
            process = self._process
            if process is None or process.stdin is None:
                return "worker died"
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except OSError:
            self.stop()
            return "worker died"
        try:
            line = self._next(deadline_s)
        except queue.Empty:
            self.stop()
            return "deadline"
        if line is None:
            self.stop()
            return "worker died"
        return json.loads(line)["verdict"]

    def _next(self, seconds: float) -> str | None:
        """Return the next line, None when the process has ended."""
        return self._replies.get(timeout=seconds)

    def stop(self) -> None:
        """Kill the process, close its pipes and reap it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                continue
        process.wait()


def _pump(
    process: subprocess.Popen[str], replies: queue.Queue[str | None]
) -> None:
    try:
        for line in process.stdout or ():
            replies.put(line)
    except (OSError, ValueError):  # the pipe was closed while we waited
        replies.put(None)
        return
    replies.put(None)


class Pool:
    """Idle workers to borrow; at most as many as are used at once."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self._all: list[Worker] = []
        self._lock = threading.Lock()

    def ask(self, gold: str, predicted: str, deadline_s: float) -> str:
        """Compare two answers in a borrowed worker (see Worker.ask)."""
        with self._lock:
            worker = self._idle.pop() if self._idle else Worker()
            if worker not in self._all:
                self._all.append(worker)
        try:
            verdict = worker.ask(gold, predicted, deadline_s)
            if verdict == "worker died":  # one more try, in a fresh process
                verdict = worker.ask(gold, predicted, deadline_s)
            return verdict
        except BaseException:  # a late answer must not meet a new question
            worker.stop()
            raise
        finally:
            with self._lock:
                self._idle.append(worker)

    def ask_many(
        self, pairs: list[tuple[str, str]], workers: int, deadline_s: float
    ) -> list[str]:
        """Compare many pairs, ``workers`` at a time, in the given order."""
        if workers <= 1 or len(pairs) < 2:
            return [self.ask(g, p, deadline_s) for g, p in pairs]
        with ThreadPoolExecutor(max_workers=workers) as threads:
            return list(
                threads.map(lambda gp: self.ask(*gp, deadline_s), pairs)
            )

    def shut_down(self) -> None:
        """Stop every worker; the next question starts a new one."""
        with self._lock:
            workers, self._all, self._idle = self._all, [], []
        for worker in workers:
            worker.stop()

    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        with self._lock:
            return [w.pid for w in self._all if w.pid is not None]


_pool = Pool()


def get_pool() -> Pool:
    """Return this process's pool."""
    return _pool


def _forget_after_fork() -> None:
    """A forked child must not talk through its parent's pipes."""
    global _pool
    _pool = Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(lambda: _pool.shut_down())
