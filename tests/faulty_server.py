"""A small real HTTP server that answers as ``vllm serve`` does, and badly.

In this process::

    with FaultyServer(["500", "reset"], seed=1) as server:
        ...  # server.url is "http://127.0.0.1:PORT/v1"

``faults`` is a list of names, one taken a completion request and then none
any more, or ``{name: probability}``, drawn with ``seed`` for every request.
The names are the keys of :data:`FAULTS`. Answers depend on the prompt, the
seed and the cap alone: :func:`answer` gives them beforehand.

As a process of its own, in the place of the ``vllm`` executable:
``write_command(folder, faults=…)`` gives a path for ``engine.command``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = {
    "ok": "no fault",
    "500": "internal server error",
    "502": "bad gateway, with a body that is no JSON",
    "503": "service unavailable",
    "429": "too many requests",
    "400": "refused: a wrong parameter",
    "404": "no such model",
    "too_long": "refused: longer than the model's context",
    "timeout": "no answer for hang_s seconds, then the connection ends",
    "slow": "the right answer after slow_s seconds",
    "reset": "the connection is reset",
    "truncated": "a whole HTTP answer with half of the JSON",
    "short": "the connection ends in the middle of the answer",
    "no_choices": "JSON without the answer",
    "cut": "the server's context ended before the cap, silently",
    "empty": "the model wrote its end token and nothing else",
    "death": "the server ends: as a process it exits with code 1",
}
WORDS = "sum product then so adding half of twice gives answer".split()
VERSION = "0.0-faulty"


def answer(
    prompt: str, seed: int | None, max_tokens: int = 10**6
) -> dict[str, Any]:
    """What the server says: text, tokens, logprobs and finish_reason.

    A word is a token; the end token is counted when it fits the cap.
    """
    digest = hashlib.sha256(f"{prompt}\x00{seed}".encode()).hexdigest()
    rng = random.Random(digest)
    words = rng.choices(WORDS, k=rng.randrange(1, 12))
    words.append(f"\\boxed{{{rng.randrange(40)}}}")
    cut = len(words) + 1 > max_tokens
    kept = words[:max_tokens]
    count = max_tokens if cut else len(words) + 1
    return {
        "text": " ".join(kept),
        "tokens": count,
        "logprobs": [-rng.random() for _ in range(count)],
        "finish_reason": "length" if cut else "stop",
    }


class FaultyServer:
    """Starts at once; ``stop()``, or leaving the context, ends it.

    Args:
        faults: names in order, or probabilities by name.
        seed: of the draws from probabilities.
        model: the name it serves.
        max_model_len: what ``/v1/models`` says.
        port: 0 for a free one.
        hang_s: length of "timeout"; slow_s: of "slow".
        delay_s: every good answer takes so long.
        exits: "death" ends the whole process instead of this server.
        encode: gives the token ids of a prompt, where the answers are to
            name them as vLLM's do.

    Attributes:
        url: base URL, with ``/v1``.
        given: how often each fault (and "ok") was given.
        asked: the JSON bodies of all completion requests.
        served: ``(prompt, seed)`` of all whole good answers.
        most_in_flight: most completion requests at one moment.
    """

    def __init__(
        self,
        faults: Iterable[str] | Mapping[str, float] = (),
        seed: int = 0,
        *,
        model: str = "model",
        max_model_len: int = 512,
        port: int = 0,
        hang_s: float = 30.0,
        slow_s: float = 0.3,
        delay_s: float = 0.0,
        exits: bool = False,
        encode: Callable[[str], list[int]] | None = None,
    ):
        self.model, self.max_model_len = model, max_model_len
        self.hang_s, self.slow_s, self.delay_s = hang_s, slow_s, delay_s
        self.exits, self.encode = exits, encode
        self.given: Counter[str] = Counter()
        self.asked: list[dict[str, Any]] = []
        self.served: list[tuple[str, int | None]] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self._odds = dict(faults) if isinstance(faults, Mapping) else None
        self._script = iter(() if self._odds is not None else list(faults))
        self._random = random.Random(seed)
        self.port = port
        self.start()

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Listen; after ``stop`` or "death" on the same port again."""
        self.stopped = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._http = _Listener(("127.0.0.1", self.port), _Handler)
        self._http.owner = self
        self.port = self._http.server_address[1]
        threading.Thread(
            target=self._http.serve_forever, args=(0.02,), daemon=True
        ).start()

    def stop(self) -> None:
        """Close the port and every connection."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()
        with self.lock:
            for connection in self._sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> FaultyServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def next_fault(self) -> str:
        """The fault of the next completion request."""
        with self.lock:
            if self._odds is None:
                name = next(self._script, "ok")
            else:
                names = [*self._odds, "ok"]
                odds = list(self._odds.values())
                left = max(0.0, 1.0 - sum(odds))
                name = self._random.choices(names, [*odds, left])[0]
            if name not in FAULTS:
                raise ValueError(f"no such fault: {name}")
            self.given[name] += 1
            return name

    def die(self) -> None:
        """End as a crashed server does."""
        if self.exits:
            os._exit(1)
        threading.Thread(target=self.stop, daemon=True).start()
        self.stopped.wait(5)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024
    owner: FaultyServer

    def process_request(self, request, client_address):
        with self.owner.lock:
            self.owner._sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        with self.owner.lock:
            self.owner._sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """Connections that we or the client cut are no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """/health, /version and /v1/models."""
        owner = self.server.owner
        if self.path == "/health":
            self._send(200, b"")
        elif self.path == "/version":
            self._send_json(200, {"version": VERSION})
        elif self.path == "/v1/models":
            card = {
                "id": owner.model,
                "object": "model",
                "created": 0,
                "owned_by": "faulty",
                "max_model_len": owner.max_model_len,
            }
            self._send_json(200, {"object": "list", "data": [card]})
        else:
            self._refuse(404, "Not Found")

    def do_POST(self) -> None:
        """/v1/completions."""
        size = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(size))
        owner = self.server.owner
        if self.path != "/v1/completions":
            self._refuse(404, "Not Found")
            return
        with owner.lock:
            owner.asked.append(body)
            owner.in_flight += 1
            owner.most_in_flight = max(owner.most_in_flight, owner.in_flight)
        try:
            self._complete(body, owner.next_fault())
        finally:
            with owner.lock:
                owner.in_flight -= 1

    def _complete(self, body: dict[str, Any], fault: str) -> None:
        owner = self.server.owner
        if fault == "death":
            owner.die()
            self.close_connection = True
        elif fault == "timeout":
            self._wait_and_close()
        elif fault in ("500", "503", "429", "400"):
            self._refuse(int(fault), f"injected {FAULTS[fault]}")
        elif fault == "404":
            self._refuse(404, f"The model `{body['model']}` does not exist.")
        elif fault == "502":
            self._send(502, b"<html>Bad Gateway</html>", "text/html")
        elif fault == "too_long":
            self._refuse(
                400,
                "This model's maximum context length is "
                f"{owner.max_model_len} tokens. However, your request has "
                "more input tokens. Please reduce the length of the input "
                "messages.",
            )
        elif fault == "reset":
            self._reset()
        else:
            owner.stopped.wait(owner.delay_s)
            if fault == "slow":
                owner.stopped.wait(owner.slow_s)
            self._answer(body, fault)

    def _answer(self, body: dict[str, Any], fault: str) -> None:
        prompt, seed = body["prompt"], body.get("seed")
        said = answer(prompt, seed, body.get("max_tokens", 16))
        if fault == "cut":
            cap = max(1, body.get("max_tokens", 16) - 1)
            said = answer(prompt, seed, 1) | {"tokens": cap}
            said["logprobs"] = [-0.1] * cap
        if fault == "empty":
            said = {
                "text": "",
                "tokens": 1,
                "logprobs": said["logprobs"][:1],
                "finish_reason": "stop",
            }
        data = _make_reply(body, said)
        encode = self.server.owner.encode
        if encode and body.get("return_token_ids"):
            data["choices"][0]["prompt_token_ids"] = encode(prompt)
        reply = json.dumps(data).encode()
        if fault == "truncated":
            self._send(200, reply[: len(reply) // 2])
        elif fault == "no_choices":
            self._send_json(200, {"object": "text_completion"})
        elif fault == "short":
            self._send(200, reply[: len(reply) // 2], length=len(reply))
            self.close_connection = True
        else:
            # Noted first: whoever has the answer finds it noted.
            with self.server.owner.lock:
                self.server.owner.served.append((prompt, seed))
            self._send(200, reply)

    def _wait_and_close(self) -> None:
        self.server.owner.stopped.wait(self.server.owner.hang_s)
        self.close_connection = True

    def _reset(self) -> None:
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.connection.close()
        self.close_connection = True

    def _refuse(self, status: int, message: str) -> None:
        error = {"message": message, "type": "Error", "code": status}
        self._send_json(status, {"error": error})

    def _send_json(self, status: int, data: Any) -> None:
        self._send(status, json.dumps(data).encode())

    def _send(
        self,
        status: int,
        body: bytes,
        kind: str = "application/json",
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        size = len(body) if length is None else length
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(body)


def _make_reply(body: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "text": said["text"],
        "logprobs": None,
        "finish_reason": said["finish_reason"],
        "stop_reason": None,
    }
    if body.get("logprobs") is not None:
        count = said["tokens"]
        choice["logprobs"] = {
            "tokens": [f"token_id:{i}" for i in range(count)],
            "token_logprobs": said["logprobs"],
            "top_logprobs": None,
            "text_offset": [0] * count,
        }
    return {
        "id": "cmpl-0",
        "object": "text_completion",
        "created": 0,
        "model": body["model"],
        "choices": [choice],
        "usage": {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": said["tokens"],
            "total_tokens": len(body["prompt"]) + said["tokens"],
        },
    }


# --- in the place of the vllm executable ----------------------------------


def write_command(folder: str | Path, **settings: Any) -> Path:
    """An executable ``vllm`` that serves with these settings.

    Args:
        folder: where it is written.
        settings: those of :class:`FaultyServer`; besides, ``start_s`` (it
            loads so long), ``dies`` (text it prints, exiting with 1 instead
            of serving), ``dies_times`` (only the first so many starts die),
            ``child`` (it starts a process of its own, as vLLM's EngineCore).

    Returns:
        The path. Every start has another seed (``seed`` plus the number of
        starts before) and adds a line with its arguments, the devices it
        sees and its pids to ``starts.jsonl`` beside it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings), "utf-8")
    path = folder / "vllm"
    words = [sys.executable, str(Path(__file__).resolve()), str(folder)]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', "utf-8")
    path.chmod(0o755)
    return path


def read_starts(command: Path) -> list[dict[str, Any]]:
    """The starts of a command of :func:`write_command`, oldest first."""
    file = command.parent / "starts.jsonl"
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def main(folder: Path, words: list[str]) -> None:
    """Serve until killed, as the settings in ``folder`` say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", default="model")
    parser.add_argument("--max-model-len", type=int, default=512)
    known, _ = parser.parse_known_args(words)
    settings = json.loads((folder / "settings.json").read_text("utf-8"))
    start_s = settings.pop("start_s", 0.0)
    dies, times = settings.pop("dies", ""), settings.pop("dies_times", 10**6)
    child = None
    if settings.pop("child", False):
        # close_fds=False as a fork would: nothing inherited is let go of
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            close_fds=False,
        ).pid
    before = len(read_starts(folder / "vllm"))
    note = {
        "arguments": words,
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "pid": os.getpid(),
        "child": child,
    }
    with open(folder / "starts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(note) + "\n")
    print(f"faulty server: loading {known.model}", flush=True)
    time.sleep(start_s)
    if dies and before < times:
        print(dies, file=sys.stderr, flush=True)
        raise SystemExit(1)
    FaultyServer(
        port=known.port,
        seed=settings.pop("seed", 0) + before,
        model=known.served_model_name,
        max_model_len=known.max_model_len,
        exits=True,
        **settings,
    )
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
