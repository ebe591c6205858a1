"""Tasks for worker processes, with a deadline for each that always holds.

The caller waits on one queue, hands out tasks and kills what is overdue.
Nothing here depends on the main thread, on signals or on how the program
was started, so it is the same from a thread, in Jupyter and on Windows.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from helpers.grading.worker import Event, Worker

SYMBOLIC = "helpers.grading.symbolic"
DIED = "worker died"
OVERDUE = "deadline"
CHECK_S = 0.5
_BROKEN_STARTS = 2


class Pool:
    """Idle workers to borrow; at most as many as are used at once.

    Args:
        module: what a worker runs: its ``main`` must call
            :func:`helpers.grading.server.serve`.
        arguments: given to ``main``.
        python: another interpreter than this one.
    """

    def __init__(
        self,
        module: str = SYMBOLIC,
        arguments: tuple[str, ...] = (),
        python: str = "",
    ) -> None:
        self.make_worker = lambda: Worker(module, arguments, python)
        self._idle: list[Worker] = []
        self._all: list[Worker] = []
        self._lock = threading.Lock()
        self._closed = False

    def ask(self, gold: str, predicted: str, deadline_s: float) -> str:
        """Return math-verify's verdict, "deadline" or "worker died"."""
        return self.ask_many([(gold, predicted)], 1, deadline_s)[0]

    def ask_many(
        self,
        pairs: Sequence[tuple[str, str]],
        workers: int,
        deadline_s: float,
    ) -> list[str]:
        """Compare many pairs, ``workers`` at a time, in the given order."""
        return self.run(pairs, workers, deadline_s)

    def run(
        self,
        tasks: Sequence[Any],
        workers: int,
        deadline_s: float | Callable[[Any], float],
        done: Callable[[int], object] | None = None,
    ) -> list[Any]:
        """Return the result of every task, in the order of the tasks.

        Args:
            tasks: what the module handles; anything that JSON can hold.
            workers: most processes to use at once.
            deadline_s: seconds for one task, or a function of the task; the
                start of a process and its imports do not count.
            done: called with the place of each finished task.

        A task that passes its deadline has the result "deadline", one that
        ended two processes "worker died". Any exception (Ctrl-C) stops the
        workers of this call: a late answer must not meet a new question.
        """
        limit = deadline_s if callable(deadline_s) else lambda _: deadline_s
        borrowed = self._borrow(max(1, min(workers, len(tasks))))
        try:
            return _Round(self, tasks, limit, done).finish(borrowed)
        except BaseException:
            for worker in borrowed:
                worker.stop()
            raise
        finally:
            with self._lock:
                self._idle.extend(borrowed)

    def _borrow(self, count: int) -> list[Worker]:
        with self._lock:
            self._idle.sort(key=_eagerness)
            taken = [self._idle.pop() for _ in self._idle[:count]]
        new = [self.make_worker() for _ in range(count - len(taken))]
        return taken + new

    def start(self, worker: Worker) -> None:
        """Start a worker's process, unless the interpreter is ending.

        Raises:
            OSError: it could not be started.
        """
        with self._lock:
            if self._closed:
                raise OSError("the interpreter is ending")
            if worker not in self._all:
                self._all.append(worker)
            worker.start()

    def keep_spare(self) -> None:
        """Have one idle process running, or at least starting.

        Asked for when a comparison takes long: should it have to be killed,
        the next answer need not wait for all the imports.
        """
        with self._lock:
            if any(worker.pid is not None for worker in self._idle):
                return
        spare = self.make_worker()
        with suppress(OSError):
            self.start(spare)
            with self._lock:
                self._idle.append(spare)

    def exchange(self, worker: Worker) -> Worker:
        """Take a stopped worker back and return a running one, if any."""
        with self._lock:
            self._idle.sort(key=_eagerness)
            if not self._idle or self._idle[-1].pid is None:
                return worker
            spare = self._idle.pop()
            self._idle.append(worker)
        return spare

    def shut_down(self, for_good: bool = False) -> None:
        """Stop every worker; the next task starts new ones."""
        with self._lock:
            self._closed |= for_good
            workers, self._all, self._idle = self._all, [], []
        for worker in workers:
            worker.stop()

    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        with self._lock:
            return [w.pid for w in self._all if w.pid is not None]

    def abandon(self) -> None:
        """Close what a forked child has inherited.

        Without the lock: another thread may have held it at the fork.
        """
        for worker in self._all:
            worker.abandon()


def _eagerness(worker: Worker) -> tuple[bool, bool]:
    return worker.pid is not None, worker.ready


class _Round:
    """One call of :meth:`Pool.run`: who works on what, until all is done."""

    def __init__(
        self,
        pool: Pool,
        tasks: Sequence[Any],
        limit: Callable[[Any], float],
        done: Callable[[int], object] | None,
    ) -> None:
        self.pool, self.tasks, self.limit, self.done = pool, tasks, limit, done
        self.results: list[Any] = [None] * len(tasks)
        self.waiting = deque((place, 1) for place in range(len(tasks)))
        self.busy: dict[Worker, tuple[int, int]] = {}
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.broken_starts = 0

    def finish(self, workers: list[Worker]) -> list[Any]:
        """Hand out all tasks and wait for their results.

        ``workers`` changes in place when one is exchanged.
        """
        self.workers = workers
        for worker in list(workers):
            worker.events = self.events
            self.give(worker)
        while self.busy:
            try:
                # Short waits: on Windows Ctrl-C does not end a long one.
                worker, life, line = self.events.get(timeout=self.patience())
            except queue.Empty:
                self.end_overdue()
                continue
            if worker not in self.busy or life != worker.life:
                continue
            if line is None:
                self.bury(worker)
            else:
                self.hear(worker, json.loads(line))
            self.end_overdue()
        return self.results

    def patience(self) -> float:
        """Return how long to wait until something may have to be done."""
        now = time.monotonic()
        moments = [(w.half_time, w.stop_at) for w in self.busy]
        ahead = [t - now for both in moments for t in both if t > now]
        return min([CHECK_S, *(t + 0.001 for t in ahead)])

    def give(self, worker: Worker) -> None:
        """Give a worker its next task, in a new process if need be."""
        while self.waiting:
            place, attempt = self.waiting.popleft()
            try:
                if self.broken_starts > _BROKEN_STARTS:
                    raise OSError("the worker does not start")
                if worker.pid is None:
                    worker.stop()
                    self.pool.start(worker)
                task = self.tasks[place]
                worker.send(task, self.limit(task))
            except OSError:
                self.settle(place, DIED)
                continue
            self.busy[worker] = (place, attempt)
            return

    def hear(self, worker: Worker, reply: dict[str, Any]) -> None:
        """Take a reply: the process is ready, or a task is done."""
        place, _ = self.busy[worker]
        if "ready" in reply:
            worker.ready, self.broken_starts = True, 0
            worker.wait_at_most(self.limit(self.tasks[place]))
        elif reply["id"] == worker.asked:
            del self.busy[worker]
            self.settle(place, reply["result"])
            self.give(worker)

    def bury(self, worker: Worker) -> None:
        """A process has died: one more try for its task, in a fresh one."""
        place, attempt = self.busy.pop(worker)
        self.broken_starts += not worker.ready
        worker.stop()
        if attempt == 1:
            self.waiting.appendleft((place, 2))
        else:
            self.settle(place, DIED)
        self.give(worker)

    def end_overdue(self) -> None:
        """Kill what is overdue; see in good time that there is a spare."""
        now = time.monotonic()
        if any(w.ready and w.half_time <= now for w in self.busy):
            self.pool.keep_spare()
        for worker in [w for w in self.busy if w.stop_at <= now]:
            place, _ = self.busy.pop(worker)
            self.settle(place, OVERDUE if worker.ready else DIED)
            self.broken_starts += not worker.ready
            worker.stop()
            spare = self.pool.exchange(worker)
            spare.events = self.events
            self.workers[self.workers.index(worker)] = spare
            self.give(spare)

    def settle(self, place: int, result: Any) -> None:
        """Write down the result of one task."""
        self.results[place] = result
        if self.done is not None:
            self.done(place)


_pools: dict[tuple[str, ...], Pool] = {}


def get_pool(
    module: str = SYMBOLIC, *arguments: str, python: str = ""
) -> Pool:
    """Return this process's pool for a module (see :class:`Pool`)."""
    key = (python, module, *arguments)
    return _pools.setdefault(key, Pool(module, arguments, python))


def _forget_after_fork() -> None:
    """A forked child must not talk through its parent's pipes."""
    global _pools
    inherited, _pools = _pools, {}
    for pool in inherited.values():
        pool.abandon()


def shut_down_all(for_good: bool = False) -> None:
    """Stop the workers of every pool of this process."""
    for pool in list(_pools.values()):
        pool.shut_down(for_good)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(shut_down_all, for_good=True)
