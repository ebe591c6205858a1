"""One server process: started, watched, explained when it dies, stopped.

The process runs under :mod:`helpers.sampling.guardian`, in a process group of
its own, so that nothing of it outlives this process, however that ends. What
it prints goes to a log file; its last lines are part of every complaint.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from helpers.base import LabError
from helpers.sampling import guardian

HEALTH_SECONDS = 10.0  # a living server answers within
STOP_SECONDS = 2 * guardian.ASK_SECONDS + 5.0
PORT_TRIES = 3
TAIL_BYTES, TAIL_LINES = 200_000, 12
# A line that tells the cause, and lines that only say that there was one.
CAUSE = re.compile(r"\b\w*(Error|Exception|Interrupt)\b: ?\S|error: \S")
NO_CAUSE = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed"
    r"|cancelled|EngineDeadError"
)
# What Python and vLLM print while they end, whatever the cause.
NOISE = re.compile(
    r"nanobind|leaked |skipped remainder|resource_tracker|warnings\.warn"
    r"|\[shutdown\]"
)
PREFIX = re.compile(r"^(\([\w.=\- ]+\) )?((INFO|WARNING|ERROR) [^\]]+\] ?)?")
HINTS = (
    (
        r"out of memory|Available memory on node|Free memory on device"
        r"|No available memory for the cache|available KV cache memory"
        r"|desired (GPU|CPU) memory|Cannot allocate memory"
        r"|can.t allocate memory",
        "there is not enough memory for the weights and the cache: lower "
        "engine.max_model_len or engine.gpu_memory_utilization (on a CPU the "
        "variable VLLM_CPU_KVCACHE_SPACE, in GiB), end what else uses the "
        "memory, or set model.quantization=nf4",
    ),
    (
        r"divisible by tensor parallel",
        "set engine.tensor_parallel_size to a number that divides the "
        "attention heads, and use engine.data_parallel_size for the rest",
    ),
    (
        r"head[_ ]?(dim|size)|HEAD_SIZE",
        "this vLLM has no attention kernel for the model's head size: use "
        "engine.name=transformers, or another vLLM",
    ),
    (
        r"[Tt]okenizer",
        "the model folder needs its tokenizer: copy tokenizer.json and "
        "tokenizer_config.json there",
    ),
    (
        r"bitsandbytes",
        "install bitsandbytes beside vLLM, or set model.quantization=null; "
        "vLLM has no 4-bit weights on a CPU",
    ),
    (
        r"architectures? .*not supported|has no vLLM implementation",
        "this vLLM does not know the architecture: use "
        "engine.name=transformers, or a newer vLLM",
    ),
    (
        r"unrecognized arguments|invalid choice",
        "this vLLM does not know an option: install one of the versions "
        "that the README names",
    ),
    (
        r"No module named|cannot import|No package metadata",
        "the environment of engine.command is not whole: install vLLM again",
    ),
)
PORT_TAKEN = re.compile(r"[Aa]ddress already in use")


class ServerProcess:
    """A server and all its children.

    Args:
        make_command: gives the command line for a port.
        env: its environment.
        log: file to which its output is appended.
        name: what messages call it.
        startup_timeout_s: how long loading may take.
    """

    def __init__(
        self,
        make_command: Callable[[int], Sequence[str]],
        *,
        env: Mapping[str, str],
        log: Path,
        name: str = "the server",
        startup_timeout_s: float = 900.0,
    ):
        self.make_command, self.env, self.log = make_command, dict(env), log
        self.name, self.startup_timeout_s = name, startup_timeout_s
        self.port = self.group = 0
        self._guardian: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._port_tries = 0
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it on a free port; returns before it is ready.

        Raises:
            LabError: it cannot be executed, or the log cannot be written.
        """
        with self._lock:
            if self._stopping.is_set():
                raise LabError(f"{self.name} was stopped.")
            self.port = find_free_port()
            command = [str(word) for word in self.make_command(self.port)]
            try:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                with open(self.log, "ab") as log:
                    self._log_start = log.tell()
                    self._guardian = subprocess.Popen(
                        [sys.executable, guardian.__file__, *command],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        env=self.env,
                        start_new_session=True,
                    )
            except OSError as error:
                raise LabError(
                    f"{self.name} cannot be started: {error}",
                    fix="check engine.command and the folder of the log",
                ) from None
            first = self._guardian.stdout.readline()
            self.group = int(first) if first.strip() else 0

    def wait_ready(self, look: Callable[[], None] = lambda: None) -> None:
        """Wait until ``/health`` answers; ``look`` is called every second.

        A port that another process took meanwhile is replaced by another.

        Raises:
            LabError: it died before, or took longer than the limit.
        """
        until = time.monotonic() + self.startup_timeout_s
        while not self.is_healthy(timeout_s=2.0):
            if self._stopping.is_set():
                raise LabError(f"{self.name} was stopped while it loaded.")
            if not self.is_alive():
                if not self._take_other_port():
                    raise self.explain_death("before it was ready")
            elif time.monotonic() > until:
                self._end()
                raise self.explain_death(
                    f"it was not ready after {self.startup_timeout_s:.0f} s "
                    "and was stopped",
                    "raise engine.startup_timeout_s, or try a smaller model",
                )
            look()
            self._stopping.wait(0.5)

    def _take_other_port(self) -> bool:
        taken = PORT_TAKEN.search("\n".join(self._read_log()))
        if not taken or self._port_tries >= PORT_TRIES:
            return False
        self._port_tries += 1
        print(f"{self.name}: port {self.port} is taken, trying another.")
        self._end()
        self.start()
        return True

    def is_alive(self) -> bool:
        """Whether the process itself still runs."""
        return self._guardian is not None and self._guardian.poll() is None

    def is_healthy(self, timeout_s: float | None = None) -> bool:
        """Whether ``/health`` says yes within the time."""
        if not self.is_alive():
            return False
        link = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=timeout_s or HEALTH_SECONDS
        )
        try:
            link.request("GET", "/health")
            return link.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            link.close()

    def restart(self) -> None:
        """End what is left of it, start it again, wait until it is ready."""
        self._end()
        self._port_tries = 0
        self.start()
        self.wait_ready()

    def stop(self) -> None:
        """End the whole process group, for good; may be called twice."""
        self._stopping.set()
        with self._lock:
            self._end()

    def _end(self) -> None:
        process = self._guardian
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # Where the guardian itself was killed, its work is left to do.
        if self.group and has_processes(self.group):
            kill_group(self.group)

    def has_processes(self) -> bool:
        """Whether any process of its group is left."""
        return bool(self.group) and has_processes(self.group)

    def explain_death(self, when: str, fix: str = "") -> LabError:
        """What is known of its end: cause, last lines of the log, hint."""
        lines = [line for line in self._read_log() if not NOISE.search(line)]
        tail = "\n".join(f"  | {line}" for line in lines[-TAIL_LINES:])
        causes = [
            line
            for line in lines
            if CAUSE.search(line) and not NO_CAUSE.search(line)
        ]
        causes.reverse()
        status = "" if self.is_alive() else self._guardian.poll()
        ended = f" (exit status {status})" if status != "" else ""
        return LabError(
            f"{self.name} ended {when}{ended}. Its last lines, from "
            f"{self.log}:\n{tail or '  | (none)'}",
            why=next(iter(causes), ""),
            fix=fix or find_hint(causes),
        )

    def _read_log(self) -> list[str]:
        """Lines of this start, without vLLM's prefixes and empty ones."""
        try:
            with open(self.log, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, size - TAIL_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return []
        lines = (PREFIX.sub("", line).rstrip() for line in text.splitlines())
        return [line for line in lines if line.strip()]


def find_hint(causes: Sequence[str]) -> str:
    """What to do about a server that printed these errors, last first."""
    for text in causes:
        for pattern, hint in HINTS:
            if re.search(pattern, text):
                return hint
    return "read the whole log; the cause stands above the last lines"


def find_free_port() -> int:
    """A port of this machine that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def has_processes(group: int) -> bool:
    """Whether the process group has any process left."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_group(group: int) -> None:
    """Kill a process group and wait until it is gone."""
    until = time.monotonic() + guardian.ASK_SECONDS
    while has_processes(group) and time.monotonic() < until:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        time.sleep(0.05)
