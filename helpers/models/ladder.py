"""The memory ladder: down a step on out-of-memory, and only then.

bf16 or fp16 → 8 bits → 4 bits (NF4, double quantization) → 4 bits with a
part of the model outside the device → a smaller model of the recipe. Every
attempt is told with its cost; any other error ends the walk at once.

Outside of a card is the machine's memory. Outside of that is the disk, and
there nothing is quantized: transformers leaves what a card does not hold in
full precision, and bitsandbytes' weights cannot be taken from a disk.

The first stage of a run goes down the ladder and writes where it ended into
``model.json``; every later stage, also after a restart or on another machine,
works with the same weights in the same format. So two halves of a run never
mix two models.

What training takes beside the weights is the planner's figure, and nobody
else's; the ladder only tries whether so much is free.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helpers.base import (
    PINNED_MODELS,
    LabError,
    Recipe,
    RunDir,
    read_json,
    world_size,
    write_json,
)
from helpers.planner import GIB, estimate_training, make_workload

MODEL_FILE = "model.json"  # of a run: dtype, step, what each step cost
OFFLOAD_SHARE = 0.8  # of the free memory, for layers; the rest is for work
# Out of memory in the words of torch on CUDA, MPS and a CPU, of CUDA's own
# libraries, and of those that pass a RuntimeError on.
MEMORY_WORDS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "HIP out of memory",
    "MPS backend out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class DoesNotFit(LabError):
    """Out of memory on every step of the ladder."""


@dataclass(frozen=True)
class LadderStep:
    """One way to hold a model; ``model`` is set for a smaller one."""

    dtype: str
    quantization: str | None = None
    offload: bool = False
    model: str | None = None

    def __str__(self) -> str:
        words = [self.quantization or self.dtype]
        if self.quantization == "nf4":
            words.append("double quantization")
        if self.offload:
            words.append("part of it outside the device")
        text = ", ".join(words)
        return f"{self.model} in {text}" if self.model else text


@dataclass(frozen=True)
class Attempt:
    """What one step cost; ``error`` is "" where it held."""

    step: str
    seconds: float
    gib: float
    error: str = ""

    def __str__(self) -> str:
        cost = f"{self.seconds:.1f} s, {self.gib:.2f} GiB"
        if self.error:
            return f"{self.step}: out of memory after {cost} ({self.error})"
        return f"{self.step}: holds ({cost})"


@dataclass
class LadderResult:
    """What was loaded, on which step, and what was tried before."""

    loaded: Any
    step: LadderStep
    attempts: list[Attempt]


# --- once a run ---


def fix_model(recipe: Recipe, run: RunDir, check: bool = False) -> Recipe:
    """The recipe with dtype and step of the ladder fixed for this run.

    Recipes that fix both themselves come back as they are. The ladder is
    gone down by loading the base model, once in the life of a run; a
    ``check`` loads nothing, and takes what is found out already.

    Raises:
        LabError: no step holds; the file was made for another recipe; a
            ladder is to be gone down by several processes at once.
    """
    if recipe.model.dtype != "auto" and not recipe.model.ladder:
        return recipe
    asked = recipe.model.model_dump(mode="json")
    path = run.file(MODEL_FILE)
    if not path.is_file():
        if check:
            return recipe
        write_json(path, {"asked": asked} | _find_step(recipe))
    stored = read_json(path)
    if stored["asked"] != asked:
        raise LabError(
            f"{path} was made for other settings of the model.",
            why="the run holds results of those",
            fix="choose another --run-dir",
        )
    changes = {name: stored[name] for name in ("dtype", "dtype_reason")}
    model = recipe.model.model_copy(update=changes)
    recipe = recipe.model_copy(update={"model": model})
    return apply_step(recipe, LadderStep(**stored["rung"]))


def _find_step(recipe: Recipe) -> dict[str, Any]:
    """dtype, its reason, the step that holds and what each one cost."""
    from helpers.models.load import load_down_the_ladder, resolve_dtype

    recipe = resolve_dtype(recipe)
    config = recipe.model
    found = {"dtype": config.dtype, "dtype_reason": config.dtype_reason}
    print(f"fixed for this run: {config.dtype}, {config.dtype_reason}")
    if not config.ladder:
        step = LadderStep(
            config.dtype, config.quantization, bool(config.offload)
        )
        return found | {"rung": asdict(step), "attempts": []}
    if world_size() > 1:
        raise LabError(
            "The memory ladder is for one process.",
            why="every process would go down on its own",
            fix="set model.ladder=false and the quantization that fits; "
            "mathslm plan says which",
        )
    result = load_down_the_ladder(recipe, training=True)
    result.loaded = None
    free_memory()
    print(f"fixed for this run: {result.step}")
    attempts = [
        {
            "rung": attempt.step,  # the file's word for a step
            "seconds": attempt.seconds,
            "gib": attempt.gib,
            "error": attempt.error,
        }
        for attempt in result.attempts
    ]
    return found | {"rung": asdict(result.step), "attempts": attempts}


# --- down the ladder ---


def list_steps(
    recipe: Recipe, *, base: bool, training: bool, device: str
) -> list[LadderStep]:
    """The steps from where the recipe starts, downwards.

    Without ``model.ladder`` there is one: what the recipe says.

    Args:
        recipe: its dtype is chosen, not "auto".
        base: the recipe's own model, which a smaller one may replace; a
            model that was merged in this run has no substitute.
        training: leave out offloading, with which accelerate refuses to
            train a quantized model.
        device: "cuda", "mps" or "cpu".
    """
    config = recipe.model
    kind = config.quantization if base else config.merged_quantization
    outside = None if device == "cpu" else "nf4"
    if not config.ladder:
        if config.offload:
            kind = outside and kind
        return [LadderStep(config.dtype, kind, bool(config.offload))]
    kinds = [None, "int8", "nf4"]
    if recipe.engine.name == "vllm" and kind != "int8":
        kinds.remove("int8")  # vLLM cannot make it while it loads
    steps = [
        LadderStep(config.dtype, name) for name in kinds[kinds.index(kind) :]
    ]
    if not training:
        steps.append(LadderStep(config.dtype, outside, offload=True))
    if base and config.smaller:
        steps.append(LadderStep(config.dtype, kind, model=config.smaller))
        if kind is None:
            steps.append(LadderStep(config.dtype, "nf4", model=config.smaller))
    return steps


def walk_ladder(
    steps: Sequence[LadderStep], load: Callable[[LadderStep], Any]
) -> LadderResult:
    """Load on the first step that holds.

    Args:
        steps: the best first.
        load: loads a model as a step says.

    Raises:
        DoesNotFit: the last step was too large too.
        Exception: whatever else loading raises, at once.
    """
    attempts: list[Attempt] = []
    for step in steps:
        start = _start_meter()
        try:
            loaded = load(step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().split("\n")[0].split(". ")[0]
            reason = reason or type(error).__name__
        else:
            attempts.append(_finish(step, start))
            if len(steps) > 1:
                print(f"memory ladder: {attempts[-1]}")
            return LadderResult(loaded, step, attempts)
        # Outside the handler: the error's frames held what was loaded.
        attempts.append(_finish(step, start, reason))
        print(f"memory ladder: {attempts[-1]}")
        free_memory()
    raise DoesNotFit(
        "The model does not fit into memory.",
        why="tried: " + "; ".join(str(attempt) for attempt in attempts),
        fix="set model.ladder=true to go down to 8 and 4 bits, name a "
        "model.smaller, or choose a smaller tier",
    )


def _start_meter() -> tuple[float, int]:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return time.perf_counter(), _read_memory()


def _finish(
    step: LadderStep, start: tuple[float, int], error: str = ""
) -> Attempt:
    """Seconds since the start, and memory: the peak where CUDA knows it."""
    clock, before = start
    grown = max(0, _read_memory() - before) / GIB
    seconds = time.perf_counter() - clock
    return Attempt(str(step), round(seconds, 2), round(grown, 3), error)


def _read_memory() -> int:
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss


def apply_step(recipe: Recipe, step: LadderStep) -> Recipe:
    """The recipe that loads on exactly this step.

    Where the base had to go down, what is merged from it, which is as large,
    goes with it. A smaller model brings its own revision.
    """
    changes: dict[str, Any] = {
        "quantization": step.quantization,
        "offload": step.offload or None,
        "ladder": None,
        "smaller": None,
    }
    if step.quantization != recipe.model.quantization:
        changes["merged_quantization"] = step.quantization
    if step.model:
        revision = PINNED_MODELS.get(step.model)
        changes |= {"id": step.model, "revision": revision}
    model = recipe.model.model_copy(update=changes)
    return recipe.model_copy(update={"model": model})


# --- out of memory ---


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors that mean too little memory, and no others."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in MEMORY_WORDS
    )


@contextmanager
def raise_out_of_memory() -> Iterator[None]:
    """Out of memory while transformers quantizes stays what it is.

    It catches every error of the quantization of a weight, goes on without
    that weight, and ends with a RuntimeError that names no cause: the ladder
    would not go down. All other errors are left to it.
    """
    from transformers import core_model_loading as loading

    handle = getattr(loading, "log_conversion_errors", None)
    if handle is None:  # another version, which has no such catch
        yield
        return

    @contextmanager
    def watch(*args: Any, **kwargs: Any) -> Iterator[None]:
        memory = None
        with handle(*args, **kwargs):
            try:
                yield
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                memory = error
        if memory is not None:
            raise memory

    loading.log_conversion_errors = watch
    try:
        yield
    finally:
        loading.log_conversion_errors = handle


# --- memory of the device ---


def free_memory() -> None:
    """Give back what nobody holds any more, also the device's cache."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_training_room(recipe: Recipe, base: bool) -> int:
    """Bytes that training takes beside the weights, as the planner says.

    Of the base model that is SFT, of a merged one DPO; 0 for a model that
    the planner does not know.
    """
    kind = "sft" if base else "dpo"
    try:
        work = make_workload(recipe)
    except LabError:
        return 0
    job = next(job for job in work.jobs if getattr(job, "kind", "") == kind)
    parts = estimate_training(work.holding(job), job).parts
    # The runtime is there by the time that weights are.
    return int(sum(parts.values()) - parts["weights"] - parts["runtime"])


def reserve_room(room: int, device: str) -> None:
    """Out of memory, as torch says it, unless so many bytes are free.

    On a CPU, which promises more memory than it has, nothing is asked.
    """
    if room and device == "cuda":
        import torch

        torch.empty(room, dtype=torch.uint8, device=device)
        torch.cuda.empty_cache()


def map_layers(
    path: Path, revision: str | None, device: str, step: LadderStep
) -> Any:
    """Where each layer goes when not all fit: device first, then outside.

    Outside of a card is the machine's memory, of the machine's memory the
    disk.
    """
    import torch
    from accelerate import infer_auto_device_map

    model = build_empty(path, revision)
    inside, outside = (0, "cpu") if device == "cuda" else (device, "disk")
    room = measure_free_memory(device)
    # Four bits inside, with room for what the making of them takes;
    # embeddings and head, at the ends, are not quantized.
    full = getattr(torch, step.dtype)
    wide = {
        name: full
        for name, _ in model.named_parameters()
        if ".layers." not in name
    }
    return infer_auto_device_map(
        model,
        max_memory={inside: int(room * OFFLOAD_SHARE), outside: 1 << 50},
        no_split_module_classes=model._no_split_modules,
        dtype=torch.int8 if step.quantization else full,
        special_dtypes=wide,
    )


def build_empty(path: Path, revision: str | None) -> Any:
    """The model without weights: names and shapes, and no memory."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path.as_posix(), revision=revision)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def measure_fp32(path: Path, revision: str | None, base: bool) -> int:
    """Bytes that a model's weights take in fp32.

    ``revision`` names a commit of the recipe's ``base``, of no other model.
    """
    model = build_empty(path, revision if base else None)
    return 4 * sum(weight.numel() for weight in model.parameters())


def measure_cpu_room() -> int:
    """Bytes that are free in the machine's memory, or in its container."""
    free = measure_free_memory("cpu")
    return min(free, read_container_limit() or free)


def measure_free_memory(device: str) -> int:
    """Bytes that are free on the device now."""
    import psutil
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def read_container_limit() -> int | None:
    """Memory limit in bytes of a Linux container, if there is one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
