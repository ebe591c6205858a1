"""Spread requests over several servers, and lose none when one of them dies.

Everything here runs in one event loop, which lives in a thread of its own.
A request goes to the server with the fewest in flight. It leaves the queue
only with an answer: a passing fault sends it back after a pause that
doubles, a dead server sends it back at once and is started again.
"""

from __future__ import annotations

import asyncio
import queue
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from helpers.base import LabError
from helpers.sampling.openai_client import ServerClient, TooLong, Trouble
from helpers.sampling.protocol import SampledText, SampleRequest
from helpers.sampling.server_process import ServerProcess

RESTARTS = 3  # of one server
TRIES = 9  # of one request; the pauses add up to about a minute
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0
REST_AFTER = 3  # faults in a row, then a server of others is left alone
DEATH_SECONDS = 2.0  # a server that resets connections may be about to end


@dataclass(eq=False)
class Replica:
    """One server; ``process`` is None for a server that is not ours."""

    client: ServerClient
    process: ServerProcess | None = None
    in_flight: int = 0
    answered: int = 0
    restarts: int = 0
    faults_in_a_row: int = 0
    up: bool = True


@dataclass(eq=False)
class Call:
    """One ``sample()``: where its results go, and what is under way."""

    results: queue.SimpleQueue[SampledText | Exception] = field(
        default_factory=queue.SimpleQueue
    )
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    ended: bool = False


@dataclass(eq=False)
class Job:
    """One request on its way to an answer."""

    request: SampleRequest
    prompt_ids: Sequence[int]
    call: Call
    tries: int = 0


class Dispatcher:
    """Gives jobs to replicas; all methods run in the event loop.

    Args:
        replicas: the servers.
        max_concurrency: most requests in flight on each.
        pause_s: before the second try of a request; it doubles.
        say: prints a line.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        max_concurrency: int,
        *,
        pause_s: float = FIRST_PAUSE_S,
        say: Callable[[str], None] = print,
    ):
        self.replicas, self.max_concurrency = list(replicas), max_concurrency
        self.pause_s, self.say = pause_s, say
        self.faults: Counter[str] = Counter()
        self._waiting: deque[Job] = deque()
        self._calls: set[Call] = set()
        self._repairs: set[asyncio.Task[None]] = set()
        self._jitter = random.Random(0)
        self._failed: Exception | None = None

    def submit(self, job: Job) -> None:
        """Queue a job; its result will be put into its call."""
        if self._failed is not None:
            job.call.results.put(self._failed)
        elif not job.call.ended:
            self._calls.add(job.call)
            self._waiting.append(job)
            self._pump()

    def end_call(self, call: Call) -> None:
        """Forget a call: nothing of it is sent or awaited any more."""
        call.ended = True
        self._calls.discard(call)
        for task in call.tasks:
            task.cancel()

    def fail(self, error: Exception) -> None:
        """End every call with this error, also those to come."""
        self._failed = error
        for call in self._calls:
            call.results.put(error)

    async def close(self) -> None:
        """Cancel what is under way and close the connections."""
        calls, self._calls = self._calls, set()
        tasks = [task for call in calls for task in call.tasks]
        tasks += self._repairs
        for call in calls:
            call.ended = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for replica in self.replicas:
            await replica.client.close()

    def _pump(self) -> None:
        """Send what can be sent."""
        while self._waiting:
            if self._waiting[0].call.ended:
                self._waiting.popleft()
                continue
            free = [
                replica
                for replica in self.replicas
                if replica.up and replica.in_flight < self.max_concurrency
            ]
            if not free:
                return
            replica = min(free, key=lambda r: (r.in_flight, r.answered))
            job = self._waiting.popleft()
            replica.in_flight += 1
            task = asyncio.create_task(self._run(job, replica))
            job.call.tasks.add(task)
            task.add_done_callback(job.call.tasks.discard)

    async def _run(self, job: Job, replica: Replica) -> None:
        """One try of one job; exactly one of answer, error, or queue."""
        trouble = None
        try:
            text = await replica.client.complete(job.request, job.prompt_ids)
            self._take(job, replica, text)
        except TooLong:
            self._take(job, replica, make_too_long(job.request))
        except Trouble as error:
            trouble = error
        except Exception as error:
            job.call.results.put(error)
        finally:
            replica.in_flight -= 1
            self._pump()
        if trouble is not None:
            await self._handle(job, replica, trouble)

    def _take(self, job: Job, replica: Replica, text: SampledText) -> None:
        replica.answered += 1
        replica.faults_in_a_row = 0
        job.call.results.put(text)

    async def _handle(
        self, job: Job, replica: Replica, trouble: Trouble
    ) -> None:
        """Send a job back to the queue, now or after a pause."""
        self._note(replica, trouble)
        if replica.process is not None:
            if replica.up and await self._is_dead(replica, trouble):
                self._begin_repair(replica)
            if not replica.up:
                # It died of its own: that is no failed try of the request.
                self._waiting.appendleft(job)
                self._pump()
                return
        else:
            self._let_rest(replica)
        job.tries += 1
        if job.tries >= TRIES:
            job.call.results.put(self._give_up(job, replica, trouble))
            return
        pause = min(self.pause_s * 2 ** (job.tries - 1), LONGEST_PAUSE_S)
        await asyncio.sleep(pause * self._jitter.uniform(0.75, 1.25))
        self._waiting.appendleft(job)
        self._pump()

    def _note(self, replica: Replica, trouble: Trouble) -> None:
        """Count a fault; the first of a kind is told."""
        self.faults[trouble.kind] += 1
        if self.faults[trouble.kind] == 1:
            detail = f" ({trouble.detail[:200]})" if trouble.detail else ""
            self.say(
                f"{replica.client.url}: {trouble.kind}{detail}. The request "
                f"is sent again, at most {TRIES} times; further ones are "
                "counted, not told."
            )

    def _let_rest(self, replica: Replica) -> None:
        """Leave a failing server of others alone while others work.

        It has the fewest requests in flight, so it would get them all.
        """
        replica.faults_in_a_row += 1
        count = replica.faults_in_a_row - REST_AFTER
        if count < 0 or not replica.up or len(self.replicas) == 1:
            return
        replica.up = False
        pause = min(self.pause_s * 2**count, LONGEST_PAUSE_S)
        asyncio.get_running_loop().call_later(pause, self._wake, replica)

    def _wake(self, replica: Replica) -> None:
        replica.up = True
        self._pump()

    async def _is_dead(self, replica: Replica, trouble: Trouble) -> bool:
        """Whether our server has ended, or answers nothing any more."""
        process = replica.process
        if trouble.kind == "no answer in time":
            return not await asyncio.to_thread(process.is_healthy)
        if trouble.kind == "connection lost":
            until = asyncio.get_running_loop().time() + DEATH_SECONDS
            while process.is_alive() and replica.up:
                if asyncio.get_running_loop().time() > until:
                    break
                await asyncio.sleep(0.1)
        return replica.up and not process.is_alive()

    def _begin_repair(self, replica: Replica) -> None:
        if replica.up:
            replica.up = False
            task = asyncio.create_task(self._repair(replica))
            self._repairs.add(task)
            task.add_done_callback(self._repairs.discard)

    async def _repair(self, replica: Replica) -> None:
        """Start a dead server again, until it is up or too often."""
        process = replica.process
        death = process.explain_death("while sampling")
        while replica.restarts < RESTARTS:
            replica.restarts += 1
            self.say(
                f"{process.name} ended while sampling; its requests wait. "
                f"Starting it again ({replica.restarts} of {RESTARTS})."
            )
            try:
                await asyncio.to_thread(process.restart)
            except LabError as error:
                death = error
                continue
            replica.client.move(f"{process.url}/v1")
            replica.up = True
            self._pump()
            return
        self.fail(
            LabError(
                f"{process.name} ended more often than it may be started "
                f"again ({RESTARTS} times).\n{death.what}",
                why=death.why,
                fix=f"{death.fix}; what was sampled is kept, and the same "
                "command goes on from there",
            )
        )

    def _give_up(
        self, job: Job, replica: Replica, trouble: Trouble
    ) -> LabError:
        seen = ", ".join(f"{k} × {n}" for k, n in self.faults.most_common())
        return LabError(
            f"{replica.client.url} failed {job.tries} times on one request "
            f"({job.request.problem_id}, sample {job.request.sample}): "
            f"{trouble}",
            why=f"faults so far: {seen}",
            fix="look at the server; what was sampled is kept, and the same "
            "command goes on from there",
        )


def make_too_long(request: SampleRequest) -> SampledText:
    """The answer to a request that does not fit the context."""
    return SampledText(request, "", "too_long", 0, 0.0, None)
