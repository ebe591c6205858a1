"""vLLM servers: on which cards, with which options, and their processes.

Replicas first: independent prompts need no card to wait for another. The
sizes that a recipe leaves open are chosen by the planner. A server runs
under :mod:`helpers.sampling.vllm_watch`, so that nothing of it outlives this
process, however that ends. What it prints goes to a log file; its last lines
are part of every complaint.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tqdm.auto import tqdm

from helpers.base import LabError, Recipe, read_json
from helpers.planner import (
    DTYPE_BYTES,
    Gpu,
    ModelShape,
    check_card_count,
    choose_replicas,
    find_shape,
    list_shapes,
    mean_weight_bytes,
    read_shape,
    require_tensor_parallel,
)
from helpers.sampling import vllm_watch

COMMAND_VARIABLE = "MATHSLM_VLLM"
PROMPT_ROOM = 4096  # tokens kept for the prompt where the recipe names none
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes
CPU_BATCHED_TOKENS = 2048  # of one step; vLLM's own default on a CPU
MODEL_NAME, ADAPTER_NAME = "model", "adapter"
LOOK_SECONDS = 0.5
HEALTH_SECONDS = 2.0  # a living server answers within
STOP_SECONDS = 2 * vllm_watch.ASK_SECONDS + 5.0
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


# --- where they go, and how they are started --------------------------------


@dataclass(frozen=True)
class Placement:
    """``devices[i]`` are the cards of replica ``i``; none on a CPU."""

    tensor_parallel_size: int
    devices: tuple[tuple[str, ...], ...]
    max_model_len: int

    @property
    def replicas(self) -> int:
        """How many servers to start."""
        return len(self.devices)


def find_command(recipe: Recipe) -> str:
    """The vllm executable: engine.command, MATHSLM_VLLM, or the usual one.

    Raises:
        LabError: there is none.
    """
    wanted = recipe.engine.command
    if wanted == "vllm":
        wanted = os.environ.get(COMMAND_VARIABLE) or wanted
    beside = Path(sys.executable).parent / wanted
    found = shutil.which(wanted) or shutil.which(beside)
    if found is None:
        raise LabError(
            f"Recipe '{recipe.name}' samples with vLLM, and there is no "
            f"executable '{wanted}'.",
            why="engine.command and the variable "
            f"{COMMAND_VARIABLE} name it; by default it is 'vllm'",
            fix="pip install vllm (on a machine without a GPU: make "
            f"test-vllm, then {COMMAND_VARIABLE}=.venv-vllm/bin/vllm), set "
            "engine.url to a server that runs, or engine.name=transformers",
        )
    return found


def read_model_shape(path: str | Path, revision: str | None) -> ModelShape:
    """The model's sizes: from its folder, the planner's list, or the hub.

    Raises:
        LabError: no config, or an architecture that cannot be counted.
    """
    if Path(path).is_dir() or Path(path).as_posix() in list_shapes():
        return find_shape(path)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            Path(path).as_posix(), revision=revision
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise LabError(
            f"Cannot read the configuration of {path}: {first}",
            why="it is neither a folder with a config.json nor, as far as "
            "this machine can reach, a hub model",
            fix="check model.id and the network",
        ) from None
    return read_shape(config.to_dict(), str(path))


def place_replicas(
    recipe: Recipe, shape: ModelShape, gpus: list[Gpu]
) -> Placement:
    """How many servers, over which cards, for how long sequences.

    Raises:
        LabError: a tensor-parallel size that does not divide the model, more
            cards asked for than there are, or a model that fits none.
    """
    engine = recipe.engine
    length = choose_length(recipe, shape)
    size = weight_bytes(recipe, shape)
    tp, replicas = engine.tensor_parallel_size, engine.data_parallel_size
    if tp is not None:
        require_tensor_parallel(shape, tp)
    if not gpus:
        return Placement(tp or 1, ((),) * (replicas or 1), length)
    if tp is None:
        plan = choose_replicas(
            shape,
            len(gpus),
            min(gpu.memory_gib for gpu in gpus),
            dtype_bytes=size,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            max_model_len=length,
            kv_dtype_bytes=DTYPE_BYTES[recipe.model.dtype],
        )
        tp = plan.tensor_parallel_size
    replicas = replicas or len(gpus) // tp
    replicas = max(1, replicas)
    check_card_count(
        f"{replicas} replica(s) of {tp} card(s)", replicas * tp, len(gpus)
    )
    names = [gpu.id for gpu in gpus]
    return Placement(
        tp,
        tuple(tuple(names[i * tp : (i + 1) * tp]) for i in range(replicas)),
        length,
    )


def choose_length(recipe: Recipe, shape: ModelShape) -> int:
    """The longest sequence to serve: what the recipe says, or needs.

    Raises:
        LabError: more than the model has positions.
    """
    limit = shape.max_position_embeddings
    wanted = recipe.engine.max_model_len
    if wanted is None:
        cap = max(
            recipe.sampling.max_new_tokens, recipe.evaluate.max_new_tokens
        )
        return min(limit or cap + PROMPT_ROOM, cap + PROMPT_ROOM)
    if limit and wanted > limit:
        raise LabError(
            f"engine.max_model_len={wanted} is more than the {limit} "
            f"positions of {shape.name}.",
            fix=f"set engine.max_model_len to {limit} or less",
        )
    return wanted


def weight_bytes(recipe: Recipe, shape: ModelShape) -> float:
    """Bytes of an average weight as it is served.

    Raises:
        LabError: a quantization that vLLM cannot make while loading.
    """
    kind = recipe.model.quantization
    if kind == "int8":
        raise LabError(
            "vLLM cannot quantize a model to 8 bits while it loads.",
            why="its bitsandbytes loader makes 4-bit weights only",
            fix="set model.quantization=nf4, or engine.name=transformers",
        )
    return mean_weight_bytes(shape, recipe.model.dtype, kind)


def build_arguments(
    recipe: Recipe,
    path: str | Path,
    placement: Placement,
    *,
    adapter: str | Path | None,
    revision: str | None,
) -> list[str]:
    """What follows ``vllm serve``, all but the port."""
    engine = recipe.engine
    words: list[Any] = [path, "--host", "127.0.0.1"]
    words += ["--served-model-name", MODEL_NAME]
    words += ["--dtype", recipe.model.dtype, "--seed", recipe.seed]
    words += ["--tensor-parallel-size", placement.tensor_parallel_size]
    words += ["--gpu-memory-utilization", engine.gpu_memory_utilization]
    words += ["--max-model-len", placement.max_model_len]
    words += ["--max-num-seqs", engine.max_concurrency]
    # Our requests name every setting; the checkpoint's own must not mix in.
    words += ["--generation-config", "vllm"]
    # log p under the model itself, before temperature and top_p
    words += ["--logprobs-mode", "raw_logprobs"]
    words += ["--disable-uvicorn-access-log"]
    if not placement.devices[0]:
        # vLLM 0.32 on a CPU ends with "CPU Generator does not use offset"
        # when it fills in half a prompt of a request that has a seed.
        words += ["--no-enable-chunked-prefill", "--max-num-batched-tokens"]
        words += [max(CPU_BATCHED_TOKENS, placement.max_model_len)]
    if revision:
        words += ["--revision", revision, "--tokenizer-revision", revision]
    if engine.enforce_eager:
        words += ["--enforce-eager"]
    if recipe.model.quantization:
        words += ["--quantization", "bitsandbytes"]
    if adapter is not None:
        words += ["--enable-lora", "--max-lora-rank", read_lora_rank(adapter)]
        folder = Path(adapter).resolve().as_posix()
        words += ["--lora-modules", f"{ADAPTER_NAME}={folder}"]
    return [str(word) for word in words]


def read_lora_rank(adapter: str | Path) -> int:
    """The smallest rank that vLLM accepts and that holds this adapter.

    Raises:
        LabError: no LoRA folder, or a rank beyond vLLM's.
    """
    config = read_json(Path(adapter) / "adapter_config.json")
    ranks = [config.get("r") or 0, *config.get("rank_pattern", {}).values()]
    rank = max(ranks)
    fitting = [known for known in LORA_RANKS if known >= rank]
    if not fitting or config.get("peft_type") != "LORA":
        raise LabError(
            f"{adapter} is a {config.get('peft_type')} adapter of rank "
            f"{rank}.",
            why=f"vLLM serves LoRA adapters up to rank {LORA_RANKS[-1]}",
            fix="merge it first: mathslm merge",
        )
    return fitting[0]


def build_environment(
    recipe: Recipe, shape: ModelShape, placement: Placement, index: int
) -> dict[str, str]:
    """The environment of replica ``index``; what the user set stays."""
    env = dict(os.environ)
    env.setdefault("VLLM_NO_USAGE_STATS", "1")
    devices = placement.devices[index]
    if devices:
        return env | {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
    if recipe.hardware.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    space = choose_cpu_cache(recipe, shape, placement)
    env.setdefault("VLLM_CPU_KVCACHE_SPACE", str(space))
    return env


def choose_cpu_cache(
    recipe: Recipe, shape: ModelShape, placement: Placement
) -> int:
    """GiB of KV cache of one replica on a CPU.

    Half of what every request at full length would need, at most a quarter
    of the free memory, at least one.
    """
    tokens = placement.max_model_len * recipe.engine.max_concurrency / 2
    size = DTYPE_BYTES[recipe.model.dtype]
    need = tokens * shape.kv_bytes_per_token(size) / 2**30
    free = psutil.virtual_memory().available / 2**30
    return max(1, math.ceil(min(need, free / 4 / placement.replicas)))


# --- their processes ---------------------------------------------------------


class ServerProcess:
    """A server and all its children.

    Args:
        make_command: gives the command line for a port.
        env: its environment.
        log: file to which its output is appended.
        name: what messages call it.
    """

    def __init__(
        self,
        make_command: Callable[[int], Sequence[str]],
        *,
        env: Mapping[str, str],
        log: Path,
        name: str = "the server",
    ):
        self.make_command, self.env, self.log = make_command, dict(env), log
        self.name = name
        self.port = self.group = self.starts = 0
        self._watcher: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it on a free port; returns before it is ready.

        Raises:
            LabError: it cannot be executed, or the log cannot be written.
        """
        self.port = find_free_port()
        self.starts += 1
        command = [str(word) for word in self.make_command(self.port)]
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with open(self.log, "ab") as log:
                self._log_start = log.tell()
                self._watcher = subprocess.Popen(
                    [sys.executable, vllm_watch.__file__, *command],
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
        first = self._watcher.stdout.readline()
        self.group = int(first) if first.strip() else 0

    def is_alive(self) -> bool:
        """Whether the process itself still runs."""
        return self._watcher is not None and self._watcher.poll() is None

    def has_ended(self, within_s: float) -> bool:
        """Whether it ends within this time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._watcher.wait(within_s)
        return not self.is_alive()

    def is_healthy(self) -> bool:
        """Whether ``/health`` says yes."""
        link = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=HEALTH_SECONDS
        )
        try:
            link.request("GET", "/health")
            return self.is_alive() and link.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            link.close()

    def take_other_port(self) -> bool:
        """Start it again if it ended because its port was taken."""
        taken = PORT_TAKEN.search("\n".join(self._read_log()))
        if not taken or self.starts > PORT_TRIES:
            return False
        print(f"{self.name}: port {self.port} is taken, trying another.")
        self.stop()
        self.start()
        return True

    def stop(self) -> None:
        """End the whole process group; may be called twice."""
        process = self._watcher
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
        # Where the watcher itself was killed, its work is left to do.
        until = time.monotonic() + vllm_watch.ASK_SECONDS
        while self.has_processes() and time.monotonic() < until:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.group, signal.SIGKILL)
            time.sleep(0.05)

    def has_processes(self) -> bool:
        """Whether any process of its group is left."""
        if not self.group:
            return False
        try:
            os.killpg(self.group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def explain_death(self, what: str, fix: str = "") -> LabError:
        """What is known of its end: cause, last lines of the log, hint."""
        lines = [line for line in self._read_log() if not NOISE.search(line)]
        tail = "\n".join(f"  | {line}" for line in lines[-TAIL_LINES:])
        causes = [
            line
            for line in lines
            if CAUSE.search(line) and not NO_CAUSE.search(line)
        ]
        causes.reverse()
        status = "" if self.is_alive() else self._watcher.poll()
        ended = f" (exit status {status})" if status != "" else ""
        return LabError(
            f"{self.name} {what}{ended}. Its last lines, from "
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


def wait_ready(processes: Sequence[ServerProcess], timeout_s: float) -> None:
    """Wait until ``/health`` of every server answers.

    A port that another process took meanwhile is replaced by another.

    Raises:
        LabError: one died before, or took longer than the limit.
    """
    waiting, until = list(processes), time.monotonic() + timeout_s
    bar = tqdm(
        total=len(waiting),
        desc="vLLM loading",
        bar_format="{desc} {elapsed}, ready {n_fmt} of {total_fmt}",
        leave=False,
        mininterval=1.0 if sys.stderr.isatty() else 30.0,
        miniters=0,
    )
    with bar:
        while waiting:
            for process in list(waiting):
                if process.is_healthy():
                    waiting.remove(process)
                    bar.update()
                elif not process.is_alive():
                    if not process.take_other_port():
                        raise process.explain_death(
                            "ended before it was ready"
                        )
                elif time.monotonic() > until:
                    raise process.explain_death(
                        f"was not ready after {timeout_s:.0f} s",
                        "raise engine.startup_timeout_s, or try a smaller "
                        "model",
                    )
            bar.update(0)
            time.sleep(LOOK_SECONDS)
