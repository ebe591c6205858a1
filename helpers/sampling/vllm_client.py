"""Sampling with vLLM: servers of our own, or any that run already.

One ``vllm serve`` process a replica is started and stopped here, and spoken
to through its OpenAI-compatible API; with ``engine.url`` servers that others
run are used instead. Prompts go to ``/v1/completions`` as text with
``add_special_tokens`` off: the chat template has been applied here, for
every engine the same way. The openai client repeats what may pass; whatever
else goes wrong ends the stage with one error, for every finished sample is
on the disk and the same command goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import openai

from helpers.base import LabError, Recipe
from helpers.models import (
    find_base,
    fit_recipe,
    is_base,
    load_tokenizer,
    resolve_dtype,
)
from helpers.planner import find_gpus, measure_gpu_memory
from helpers.sampling.engine import (
    SampledText,
    SampleRequest,
    find_end_ids,
    refuse_long,
)
from helpers.sampling.vllm_serve import (
    ADAPTER_NAME,
    MODEL_NAME,
    ServerProcess,
    build_arguments,
    build_environment,
    find_command,
    place_replicas,
    read_model_shape,
    wait_ready,
)

KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own name for it
MAX_RETRIES = 4  # of one request, by the openai client; about 8 s of pauses
CONNECT_SECONDS, LOOK_SECONDS = 10.0, 30.0
DEATH_SECONDS = 5.0  # a server that resets connections may be about to end
# An idle connection is closed before the server does (vLLM: after 5 s), or
# a request might be sent into a closing one.
KEEP_SECONDS = 2.0
MARGIN = 0.25  # requests read ahead of those that can be in flight
FREE_SECONDS, FREE_GIB = 15.0, 0.5  # until, and within, memory counts as freed
OTHER_FILES = 256  # that this process may have open besides connections
LENGTH = re.compile(
    r"maximum context length|max_model_len|maximum model length"
    r"|context length|longer than the maximum",
    re.IGNORECASE,
)
# What a checkpoint's generation_config could otherwise mix in.
NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
GOES_ON = "what was sampled is kept, and the same command goes on from here"


def open_vllm(
    recipe: Recipe,
    path: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    log_dir: str | Path | None = None,
) -> VllmEngine:
    """An engine over vLLM servers, ready to sample.

    Args:
        recipe: its ``engine`` section; ``url`` means servers of others.
        path: a model folder or hub id; None for the recipe's base model.
        adapter: a LoRA folder, served unmerged.
        log_dir: where the servers' output goes (default: a new temporary
            folder, named when they start).

    Raises:
        LabError: no vLLM or no server, a setting that cannot work, or a
            server that died before it was ready, with its last lines.
    """
    if recipe.engine.url:
        return _join_servers(recipe, path, adapter)
    return _start_servers(recipe, path, adapter, log_dir)


def _start_servers(
    recipe: Recipe,
    path: str | Path | None,
    adapter: str | Path | None,
    log_dir: str | Path | None,
) -> VllmEngine:
    """An engine over servers of its own, each on its own cards and port."""
    # What can be refused is refused before anything is started.
    recipe = resolve_dtype(fit_recipe(recipe, path))
    command = find_command(recipe)
    path, revision = _locate(recipe, path)
    shape = read_model_shape(path, revision)
    placement = place_replicas(recipe, shape, find_gpus(recipe))
    tokenizer = load_tokenizer(path, revision)
    stop_ids = find_stop_ids(path, revision, tokenizer)
    words = build_arguments(
        recipe, path, placement, adapter=adapter, revision=revision
    )
    folder = Path(log_dir or tempfile.mkdtemp(prefix="vllm-log-"))
    processes = [
        ServerProcess(
            lambda port: [command, "serve", *words, "--port", str(port)],
            env=build_environment(recipe, shape, placement, index),
            log=folder / f"vllm-{index}.log",
            name=f"vLLM server {index}",
        )
        for index in range(placement.replicas)
    ]
    engine = VllmEngine(
        tokenizer,
        max_concurrency=recipe.engine.max_concurrency,
        max_model_len=placement.max_model_len,
        processes=processes,
        devices=[name for names in placement.devices for name in names],
    )
    count, start = len(processes), time.monotonic()
    print(
        f"vLLM: starting {count} server{'s' * (count > 1)} of {path}; output "
        f"goes to {folder}"
    )
    try:
        for process in processes:
            process.start()
        wait_ready(processes, recipe.engine.startup_timeout_s)
        print(f"vLLM: ready after {time.monotonic() - start:.0f} s")
        model = MODEL_NAME if adapter is None else ADAPTER_NAME
        for process in processes:
            url = f"{process.url}/v1"
            engine.add_server(url, model, recipe, stop_ids, process)
    except BaseException:
        engine.close()
        raise
    engine.settings = {
        "version": read_version(engine.servers[0].url, proxies=False),
        "tensor_parallel_size": placement.tensor_parallel_size,
        "dtype": recipe.model.dtype,
        "url": None,
    }
    return engine


def _locate(
    recipe: Recipe, path: str | Path | None
) -> tuple[Path, str | None]:
    """The model's folder, or its hub id and its revision on the hub."""
    base = find_base(recipe)
    path = base if path is None else Path(path)
    if path.is_dir():
        return path.resolve(), None
    # A revision names a commit of the base on the hub, of nothing else.
    return path, recipe.model.revision if path == base else None


def find_stop_ids(
    path: Path, revision: str | None, tokenizer: Any
) -> list[int]:
    """All token ids that end a response, without loading the weights."""
    from transformers import GenerationConfig

    settings = None
    with contextlib.suppress(OSError, ValueError):
        settings = GenerationConfig.from_pretrained(
            path.as_posix(), revision=revision
        )
    return find_end_ids(settings, tokenizer)


def _join_servers(
    recipe: Recipe, path: str | Path | None, adapter: str | Path | None
) -> VllmEngine:
    """An engine over servers that run already."""
    path, revision = _locate(recipe, path)
    urls = [
        normalise_url(u) for u in recipe.engine.url.split(",") if u.strip()
    ]
    chosen = [
        choose_model(list_models(url), url, recipe, path, adapter)
        for url in urls
    ]
    lengths = [length for _, length in chosen if length]
    wanted = recipe.engine.max_model_len
    if wanted and lengths and min(lengths) < wanted:
        raise LabError(
            f"engine.max_model_len={wanted}, but {recipe.engine.url} serves "
            f"sequences of {min(lengths)} tokens.",
            fix=f"set engine.max_model_len to {min(lengths)}, or start the "
            "server with a larger --max-model-len",
        )
    tokenizer = load_tokenizer(path, revision)
    stop_ids = find_stop_ids(path, revision, tokenizer)
    engine = VllmEngine(
        tokenizer,
        max_concurrency=recipe.engine.max_concurrency,
        max_model_len=wanted or min(lengths, default=None),
    )
    try:
        for url, (name, _) in zip(urls, chosen, strict=True):
            engine.add_server(url, name, recipe, stop_ids)
    except BaseException:
        engine.close()
        raise
    engine.settings = {
        "version": read_version(urls[0], proxies=True),
        "tensor_parallel_size": None,
        "dtype": None,
        "url": ",".join(urls),
    }
    return engine


class VllmEngine:
    """Samples with servers; made by :func:`open_vllm`.

    Args:
        tokenizer: of the model that is served.
        max_concurrency: most requests in flight on each server.
        max_model_len: longest sequence, prompt and response; None: unknown.
        processes: servers of our own, ended when the engine is closed.
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
        self.tokenizer, self.max_model_len = tokenizer, max_model_len
        self.max_concurrency = max_concurrency
        self.processes, self._devices = list(processes), list(devices)
        self.settings: dict[str, Any] = {}
        self.servers: list[ServerClient] = []
        self._memory_before = measure_gpu_memory(devices) if devices else 0.0
        self._closed = False
        # A thread of its own, for a notebook has a running loop already.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="vllm-client", daemon=True
        )
        self._thread.start()

    def add_server(
        self,
        url: str,
        model: str,
        recipe: Recipe,
        stop_ids: Sequence[int],
        process: ServerProcess | None = None,
    ) -> None:
        """Use the server at ``url``, which serves our model as ``model``."""
        client = ServerClient(
            url,
            model,
            stop_ids=stop_ids,
            timeout_s=recipe.engine.request_timeout_s,
            connections=self.max_concurrency,
            process=process,
        )
        self.servers.append(client)
        allow_files(self.max_concurrency * len(self.servers))

    def describe(self) -> dict[str, Any]:
        """Name, version and settings of the engine."""
        return {
            "name": "vllm",
            "replicas": len(self.servers),
            "max_model_len": self.max_model_len,
            **self.settings,
        }

    def sample(
        self, requests: Iterable[SampleRequest]
    ) -> Iterator[SampledText]:
        """Yield one SampledText a request, as they finish.

        Requests are read as far as they can be in flight, and a quarter
        more, so that no server waits while a result is looked at.

        Raises:
            LabError: a server died, refuses a request, or fails on one as
                often as it is repeated.
        """
        if self._closed:
            raise LabError("This engine was closed.")
        slots = self.max_concurrency * len(self.servers)
        window = slots + max(1, int(slots * MARGIN))
        source, more = iter(requests), True
        pending: set[Future[SampledText]] = set()
        done: queue.SimpleQueue[Future[SampledText]] = queue.SimpleQueue()
        try:
            while more or pending:
                while more and len(pending) < window:
                    request = next(source, None)
                    if request is None:
                        more = False
                        break
                    ids = self._encode(request)
                    if ids is None:
                        yield refuse_long(request)
                        continue
                    future = asyncio.run_coroutine_threadsafe(
                        self._ask(request, ids), self._loop
                    )
                    pending.add(future)
                    future.add_done_callback(done.put)
                if pending:
                    future = done.get()
                    pending.remove(future)
                    yield future.result()
        finally:
            for future in pending:
                future.cancel()

    def _encode(self, request: SampleRequest) -> list[int] | None:
        """The prompt's token ids; None when it does not fit."""
        ids = self.tokenizer(request.prompt, add_special_tokens=False)
        ids = ids["input_ids"]
        if not ids:
            raise LabError(f"{request.problem_id}: the prompt is empty.")
        limit = self.max_model_len
        fits = limit is None or len(ids) + request.max_new_tokens <= limit
        return ids if fits else None

    async def _ask(
        self, request: SampleRequest, prompt_ids: Sequence[int]
    ) -> SampledText:
        """The answer of the server that has the least to do."""
        server = min(self.servers, key=lambda s: (s.pending, s.answered))
        server.pending += 1
        try:
            text = await server.complete(request, prompt_ids)
            server.answered += 1
        finally:
            server.pending -= 1
        return text

    def close(self) -> None:
        """Stop our servers, free their memory; may be called twice."""
        if self._closed:
            return
        self._closed = True
        threads = [threading.Thread(target=p.stop) for p in self.processes]
        for thread in threads:
            thread.start()
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(
                self._close_clients(), self._loop
            ).result(CONNECT_SECONDS)
        for thread in threads:
            thread.join()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CONNECT_SECONDS)
        left = [p.group for p in self.processes if p.has_processes()]
        if left:
            print(f"vLLM: processes of the groups {left} could not be ended.")
        if self._devices:
            self._report_memory()

    async def _close_clients(self) -> None:
        """Cancel what is under way and close all connections."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            await server.close()

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


class ServerClient:
    """Talks to one server.

    Args:
        url: its base, with ``/v1``.
        model: the name it serves our model under.
        stop_ids: token ids that end a response.
        timeout_s: how long one answer may take.
        connections: most requests at once.
        process: the server's, if it is ours; proxy variables of the
            environment count only for servers of others.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        stop_ids: Sequence[int],
        timeout_s: float,
        connections: int,
        process: ServerProcess | None = None,
    ):
        self.url, self.model, self.stop_ids = url, model, list(stop_ids)
        self.process = process
        self.pending = 0  # requests given to it and not answered
        self.answered = 0
        self._slots = asyncio.Semaphore(connections)
        self._compared = False
        timeout = openai.Timeout(
            timeout_s, connect=min(timeout_s, CONNECT_SECONDS)
        )
        limits = httpx.Limits(keepalive_expiry=KEEP_SECONDS)
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=read_key(),
            max_retries=MAX_RETRIES,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(
                limits=limits, timeout=timeout, trust_env=process is None
            ),
        )

    async def complete(
        self, request: SampleRequest, prompt_ids: Sequence[int]
    ) -> SampledText:
        """One response; "too_long" where the server says so.

        Args:
            prompt_ids: what our tokenizer makes of the prompt; compared once
                with what the server's makes of it, where the server tells.

        Raises:
            LabError: the server refuses it, fails too often or died, or
                reads other tokens.
        """
        async with self._slots:
            compare = not self._compared
            try:
                reply = await self._client.completions.create(
                    **self._make_body(request, compare)
                )
                text = read_reply(reply, request)
            except openai.APIStatusError as error:
                if _is_too_long(error):
                    return refuse_long(request)
                raise await self._explain(request, error) from None
            except (openai.OpenAIError, ValueError) as error:
                raise await self._explain(request, error) from None
            if compare:
                self._compare_ids(reply, prompt_ids)
            return text

    def _make_body(
        self, request: SampleRequest, compare: bool
    ) -> dict[str, Any]:
        extra = NEUTRAL | {
            "add_special_tokens": False,
            "skip_special_tokens": True,
            "stop_token_ids": self.stop_ids,
            "return_token_ids": compare,
        }
        body = {
            "model": self.model,
            "prompt": request.prompt,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p if request.temperature > 0 else 1.0,
            "logprobs": 0,  # of the chosen tokens alone
            "extra_body": extra,
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop)
        return body

    async def _explain(
        self, request: SampleRequest, error: Exception
    ) -> LabError:
        """What went wrong, and what to do about it."""
        if self.process is not None and await asyncio.to_thread(
            self.process.has_ended, DEATH_SECONDS
        ):
            death = self.process.explain_death("ended while sampling")
            return LabError(
                death.what, why=death.why, fix=f"{death.fix}; {GOES_ON}"
            )
        code = getattr(error, "status_code", None)
        if code in (401, 403):
            return LabError(
                f"{self.url} refuses us: {error}",
                fix=f"set the variable {KEY_VARIABLE} to the server's key",
            )
        what = f"with HTTP status {code}: " if code else ""
        cause = error.__cause__
        return LabError(
            f"{self.url} failed on a request ({request.problem_id}, sample "
            f"{request.sample}) {what}{error}",
            why=repr(cause) if cause else "",
            fix="look at the server, and check that it is vLLM and serves "
            f"this model; {GOES_ON}",
        )

    def _compare_ids(self, reply: Any, prompt_ids: Sequence[int]) -> None:
        theirs = getattr(reply.choices[0], "prompt_token_ids", None)
        if theirs is not None and list(theirs) != list(prompt_ids):
            raise LabError(
                f"{self.url} reads a prompt as other tokens than we do: "
                f"{theirs[:8]}… instead of {list(prompt_ids)[:8]}….",
                why="its tokenizer is not this model's, so its samples "
                "would come from other prompts",
                fix="serve the same model folder there",
            )
        self._compared = True

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


def _is_too_long(error: openai.APIStatusError) -> bool:
    said = LENGTH.search(str(error.message))
    return error.status_code in (400, 413, 422) and bool(said)


def read_reply(reply: Any, request: SampleRequest) -> SampledText:
    """The sampled text of a completion object.

    Tokens are counted with the end token, as vLLM does.

    Raises:
        ValueError: something is missing or does not fit together.
    """
    try:
        (choice,) = reply.choices
        tokens = int(reply.usage.completion_tokens)
        logprobs = tuple(float(x) for x in choice.logprobs.token_logprobs)
        text, reason = choice.text, choice.finish_reason
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"incomplete answer: {error}") from None
    if reason not in ("stop", "length") or not isinstance(text, str):
        raise ValueError(f"incomplete answer: finish_reason {reason}")
    if tokens != len(logprobs):
        raise ValueError(
            f"incomplete answer: {tokens} tokens, {len(logprobs)} logprobs"
        )
    if reason == "length" and tokens < request.max_new_tokens:
        return refuse_long(request)  # cut at the server's own context
    return SampledText(
        request=request,
        response=text,
        finish_reason=reason,
        tokens=tokens,
        mean_logprob=sum(logprobs) / tokens if tokens else 0.0,
        logprobs=logprobs if request.logprobs else None,
    )


# --- looking at a server of others -----------------------------------------


def normalise_url(url: str) -> str:
    """The API's base with ``/v1``, whatever of it was given.

    Raises:
        LabError: no http(s) address.
    """
    text = url.strip().rstrip("/").removesuffix("/v1")
    if not re.match(r"https?://[^/\s]+", text):
        raise LabError(
            f"engine.url: '{url.strip()}' is no address of a server.",
            fix="write it as http://host:port; several with commas between",
        )
    return f"{text}/v1"


def list_models(url: str) -> list[dict[str, Any]]:
    """The cards of ``/v1/models``.

    Raises:
        LabError: nobody there, or no such API.
    """
    try:
        cards = _fetch(f"{url}/models", proxies=True)["data"]
        return [dict(card, id=str(card["id"])) for card in cards]
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        raise LabError(
            f"{url}/models answers with HTTP status {code}.",
            fix=f"set {KEY_VARIABLE} to the server's key"
            if code in (401, 403)
            else "check engine.url: it must be an OpenAI-compatible server",
        ) from None
    except (httpx.HTTPError, TypeError, KeyError, ValueError) as error:
        raise LabError(
            f"No server answers at {url}: {error}",
            fix="check engine.url, and that the server is up; without "
            "engine.url one is started here",
        ) from None


def read_version(url: str, *, proxies: bool) -> str:
    """What ``/version`` says; "unknown" where there is none."""
    try:
        found = _fetch(f"{url.removesuffix('/v1')}/version", proxies=proxies)
        return str(found["version"])
    except (httpx.HTTPError, TypeError, KeyError, ValueError):
        return "unknown"


def _fetch(url: str, *, proxies: bool) -> Any:
    """The JSON of a GET; an httpx.HTTPError or ValueError if there is none."""
    headers = {"Authorization": f"Bearer {read_key()}"}
    reply = httpx.get(
        url,
        headers=headers,
        timeout=LOOK_SECONDS,
        trust_env=proxies,
        follow_redirects=True,
    )
    return reply.raise_for_status().json()


def read_key() -> str:
    """The key of servers that want one."""
    return os.environ.get(KEY_VARIABLE) or "none"


def choose_model(
    cards: Sequence[dict[str, Any]],
    url: str,
    recipe: Recipe,
    path: Path,
    adapter: str | Path | None,
) -> tuple[str, int | None]:
    """The served name of our model, and its longest sequence if told.

    A model is ours when its name, or the folder it was loaded from, is the
    path, or for the recipe's base ends in ``model.id``; of a hub id the last
    part will do. An adapter is found by its folder, or as ``adapter``.

    Raises:
        LabError: the server offers no such model.
    """
    folder = path if adapter is None else Path(adapter)
    wanted = {_plain(str(folder)), _plain(folder.resolve().as_posix())}
    ends: tuple[str, ...] = ()
    if adapter is not None:
        wanted.add(_plain(ADAPTER_NAME))
    elif is_base(recipe, path) or path == find_base(recipe).resolve():
        # "model" would be too little to tell; "Qwen2.5-Math-7B" is enough.
        last = () if path.is_dir() else (Path(recipe.model.id).name,)
        ends = tuple(_plain(name) for name in (recipe.model.id, *last))
    for card in cards:
        offered = [_plain(str(card["id"])), _plain(str(card.get("root")))]
        if any(name in wanted or name.endswith(ends) for name in offered):
            return str(card["id"]), _read_length(cards, card)
    what = f"adapter {adapter}" if adapter else f"model {path}"
    raise LabError(
        f"{url} does not serve the {what}; it serves: "
        + (", ".join(str(card["id"]) for card in cards) or "nothing"),
        why="samples of another model would be taken for this one's",
        fix="start it with --served-model-name "
        f"{ADAPTER_NAME if adapter else path}, or leave engine.url out",
    )


def _plain(name: str) -> str:
    """In lower case, with one slash before and none behind."""
    return "/" + name.strip("/").casefold()


def _read_length(
    cards: Sequence[dict[str, Any]], card: dict[str, Any]
) -> int | None:
    """An adapter's card may name its base instead of a length."""
    lengths = {other["id"]: other.get("max_model_len") for other in cards}
    return card.get("max_model_len") or lengths.get(card.get("parent"))
