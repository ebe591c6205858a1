"""Where vLLM servers go and how they are started: cards, options, variables.

Replicas first: independent prompts need no card to wait for another. The
sizes that a recipe leaves open are chosen by the planner.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

COMMAND_VARIABLE = "MATHSLM_VLLM"
PROMPT_ROOM = 4096  # tokens kept for the prompt where the recipe names none
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes
CPU_BATCHED_TOKENS = 2048  # of one step; vLLM's own default on a CPU
MODEL_NAME, ADAPTER_NAME = "model", "adapter"


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
    ranks = placement.tensor_parallel_size
    if placement.replicas * ranks > 1:
        # Left to itself each server would bind to the same first cores.
        bind = bind_cores(index * ranks, ranks, placement.replicas * ranks)
        env.setdefault("VLLM_CPU_OMP_THREADS_BIND", bind)
    return env


def choose_cpu_cache(
    recipe: Recipe, shape: ModelShape, placement: Placement
) -> int:
    """GiB of KV cache of one replica on a CPU.

    Half of what every request at full length would need, at most a quarter
    of the free memory, at least one.
    """
    import psutil

    tokens = placement.max_model_len * recipe.engine.max_concurrency / 2
    size = DTYPE_BYTES[recipe.model.dtype]
    need = tokens * shape.kv_bytes_per_token(size) / 2**30
    free = psutil.virtual_memory().available / 2**30
    return max(1, math.ceil(min(need, free / 4 / placement.replicas)))


def bind_cores(first: int, ranks: int, total: int) -> str:
    """Cores of ``ranks`` workers beginning at ``first``, of ``total``."""
    if not hasattr(os, "sched_getaffinity"):
        return "nobind"
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < total:
        return "nobind"
    share = len(cores) // total
    slices = [cores[i * share : (i + 1) * share] for i in range(total)]
    mine = slices[first : first + ranks]
    return "|".join(",".join(map(str, cores)) for cores in mine)
