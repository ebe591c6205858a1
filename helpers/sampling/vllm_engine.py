"""The engine over vLLM servers: their life, and the stream of samples."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from helpers.base import LabError, Recipe
from helpers.planner import measure_gpu_memory
from helpers.sampling.dispatch import (
    Call,
    Dispatcher,
    Job,
    Replica,
    make_too_long,
)
from helpers.sampling.openai_client import ServerClient
from helpers.sampling.protocol import SampledText, SampleRequest
from helpers.sampling.server_process import ServerProcess

MARGIN = 0.25  # requests read ahead of those that can be in flight
FREE_SECONDS, FREE_GIB = 15.0, 0.5  # until, and within, memory counts as freed
OTHER_FILES = 256  # that this process may have open besides connections


class VllmEngine:
    """Samples with servers; made by :func:`open_vllm`.

    Args:
        tokenizer: of the model that is served.
        max_concurrency: most requests in flight on each server.
        max_model_len: longest sequence, prompt and response; None: unknown.
        processes: servers of our own, not started yet.
        devices: names of the cards they use.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_concurrency: int,
        max_model_len: int | None,
        processes: Sequence[ServerProcess] = (),
        devices: Sequence[str] = (),
    ):
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.settings: dict[str, Any] = {}
        self.processes = list(processes)
        self._devices = list(devices)
        self._memory_before = 0.0
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="vllm-client", daemon=True
        )
        self.dispatcher = Dispatcher((), max_concurrency, say=tqdm.write)
        self._thread.start()
        atexit.register(self.close)

    def start_servers(self, path: Path) -> None:
        """Start all servers at once and wait until every one is ready."""
        if self._devices:
            self._memory_before = measure_gpu_memory(self._devices)
        count, start = len(self.processes), time.monotonic()
        print(
            f"vLLM: starting {count} server{'s' * (count > 1)} of {path}; "
            f"output goes to {self.processes[0].log.parent}"
        )
        for process in self.processes:
            process.start()
        bar = tqdm(
            total=count,
            desc="vLLM loading",
            bar_format="{desc} {elapsed}, ready {n_fmt} of {total_fmt}",
            leave=False,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,
            miniters=0,
        )
        with bar, ThreadPoolExecutor(count) as pool:
            waits = [
                pool.submit(process.wait_ready, lambda: bar.update(0))
                for process in self.processes
            ]
            try:
                for wait in waits:
                    wait.result()
                    bar.update()
            except BaseException:
                for process in self.processes:
                    process.stop()
                raise
        print(f"vLLM: ready after {time.monotonic() - start:.0f} s")

    def add_server(
        self,
        url: str,
        model: str,
        recipe: Recipe,
        stop_ids: Sequence[int],
        process: ServerProcess | None = None,
    ) -> None:
        """Use the server at ``url``, which serves our model as ``model``."""

        async def make_client() -> ServerClient:
            return ServerClient(
                url,
                model,
                stop_ids=stop_ids,
                timeout_s=recipe.engine.request_timeout_s,
                connections=self.dispatcher.max_concurrency,
                through_proxies=process is None,
            )

        client = self._in_loop(make_client())
        replicas = self.dispatcher.replicas
        replicas.append(Replica(client, process))
        allow_files(self.dispatcher.max_concurrency * len(replicas))

    def _in_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def describe(self) -> dict[str, Any]:
        """Name, version and settings of the engine, and what went wrong."""
        replicas = self.dispatcher.replicas
        return self.settings | {
            "restarts": sum(r.restarts for r in replicas),
            "faults": dict(self.dispatcher.faults),
        }

    def sample(
        self, requests: Iterable[SampleRequest]
    ) -> Iterator[SampledText]:
        """Yield one SampledText a request, as they finish.

        Requests are read as far as they can be in flight, and a quarter
        more, so that no server waits while a result is looked at.

        Raises:
            LabError: a server refuses a request, fails too often, or dies
                more often than it may be started again.
        """
        if self._closed:
            raise LabError("This engine was closed.")
        dispatcher, call, pending = self.dispatcher, Call(), 0
        slots = dispatcher.max_concurrency * len(dispatcher.replicas)
        window = slots + max(1, int(slots * MARGIN))
        source = iter(requests)
        try:
            while True:
                while pending < window:
                    request = next(source, None)
                    if request is None:
                        window = 0
                        break
                    prompt_ids = self._encode(request)
                    if prompt_ids is None:
                        yield make_too_long(request)
                        continue
                    job = Job(request, prompt_ids, call)
                    self._loop.call_soon_threadsafe(dispatcher.submit, job)
                    pending += 1
                if not pending:
                    return
                result = call.results.get()
                if isinstance(result, Exception):
                    raise result
                pending -= 1
                yield result
        finally:
            if not self._closed:
                self._loop.call_soon_threadsafe(dispatcher.end_call, call)

    def _encode(self, request: SampleRequest) -> list[int] | None:
        """The prompt's token ids; None when it does not fit."""
        ids = self.tokenizer(request.prompt, add_special_tokens=False)
        ids = ids["input_ids"]
        if not ids:
            raise LabError(f"{request.problem_id}: the prompt is empty.")
        limit = self.max_model_len
        fits = limit is None or len(ids) + request.max_new_tokens <= limit
        return ids if fits else None

    def close(self) -> None:
        """Stop our servers, free their memory; may be called twice."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self.dispatcher.fail(LabError("The engine was closed."))
        threads = [threading.Thread(target=p.stop) for p in self.processes]
        for thread in threads:
            thread.start()
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(
                self.dispatcher.close(), self._loop
            ).result(10)
        for thread in threads:
            thread.join()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        left = [p.group for p in self.processes if p.has_processes()]
        if left:
            print(f"vLLM: processes of the groups {left} could not be ended.")
        if self._devices:
            self._report_memory()

    def _report_memory(self) -> None:
        """Say whether the cards are as free as before."""
        until = time.monotonic() + FREE_SECONDS
        before, now = self._memory_before, measure_gpu_memory(self._devices)
        while now > before + FREE_GIB and time.monotonic() < until:
            time.sleep(0.5)
            now = measure_gpu_memory(self._devices)
        freed = "freed" if now <= before + FREE_GIB else "NOT freed"
        print(
            f"vLLM: stopped, GPU memory {freed}: {now:.1f} GiB in use, "
            f"{before:.1f} GiB before the start."
        )

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def allow_files(connections: int) -> None:
    """Let this process have so many connections open at once.

    Raises:
        LabError: the machine allows fewer.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    need = connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < need:
        raise LabError(
            f"{connections} requests in flight need {need} open files, and "
            f"this machine allows {hard}.",
            fix="lower engine.max_concurrency, or raise the hard limit of "
            "ulimit -n",
        )
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
