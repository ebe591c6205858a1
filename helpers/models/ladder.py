"""The memory ladder: down a rung on out-of-memory, and only then.

bf16 or fp16 → 8 bits → 4 bits (NF4, double quantization) → 4 bits with a
part of the model outside the device → a smaller model of the recipe. Every
attempt is told with its cost; any other error ends the walk at once.

Outside of a card is the machine's memory. Outside of that is the disk, and
there nothing is quantized: transformers leaves what a card does not hold in
full precision, and bitsandbytes' weights cannot be taken from a disk.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from helpers.base import PINNED_MODELS, LabError, Recipe

GIB = 2**30
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
    """Out of memory on every rung that there was."""


@dataclass(frozen=True)
class Rung:
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
    """What one rung cost; ``error`` is "" where it held."""

    rung: str
    seconds: float
    gib: float
    error: str = ""

    def __str__(self) -> str:
        cost = f"{self.seconds:.1f} s, {self.gib:.2f} GiB"
        if self.error:
            return f"{self.rung}: out of memory after {cost} ({self.error})"
        return f"{self.rung}: holds ({cost})"


@dataclass
class Climb:
    """Where a walk ended: what was loaded, on which rung, and the way."""

    loaded: Any
    rung: Rung
    attempts: list[Attempt]

    def as_dict(self) -> dict[str, Any]:
        """Rung and attempts, for a file."""
        return {
            "rung": asdict(self.rung),
            "attempts": [asdict(attempt) for attempt in self.attempts],
        }


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


def list_rungs(
    recipe: Recipe, *, base: bool, training: bool, device: str
) -> list[Rung]:
    """The rungs from where the recipe starts, downwards.

    Without ``model.ladder`` there is one: what the recipe says.

    Args:
        recipe: its dtype is settled, not "auto".
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
        return [Rung(config.dtype, kind, bool(config.offload))]
    kinds = [None, "int8", "nf4"]
    if recipe.engine.name == "vllm" and kind != "int8":
        kinds.remove("int8")  # vLLM cannot make it while it loads
    rungs = [Rung(config.dtype, name) for name in kinds[kinds.index(kind) :]]
    if not training:
        rungs.append(Rung(config.dtype, outside, offload=True))
    if base and config.smaller:
        rungs.append(Rung(config.dtype, kind, model=config.smaller))
        if kind is None:
            rungs.append(Rung(config.dtype, "nf4", model=config.smaller))
    return rungs


def walk_ladder(rungs: Sequence[Rung], load: Callable[[Rung], Any]) -> Climb:
    """Load on the first rung that holds.

    Args:
        rungs: the best first.
        load: loads a model as a rung says.

    Raises:
        DoesNotFit: the last rung was too large too.
        Exception: whatever else loading raises, at once.
    """
    attempts: list[Attempt] = []
    for rung in rungs:
        start = _start_meter()
        try:
            loaded = load(rung)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().split("\n")[0].split(". ")[0]
            reason = reason or type(error).__name__
        else:
            attempts.append(_finish(rung, start))
            if len(rungs) > 1:
                print(f"memory ladder: {attempts[-1]}")
            return Climb(loaded, rung, attempts)
        # Outside the handler: the error's frames held what was loaded.
        attempts.append(_finish(rung, start, reason))
        print(f"memory ladder: {attempts[-1]}")
        free_memory()
    raise DoesNotFit(
        "The model does not fit into memory.",
        why="tried: " + "; ".join(str(attempt) for attempt in attempts),
        fix="set model.ladder=true to go down to 8 and 4 bits, name a "
        "model.smaller, or choose a smaller tier",
    )


def apply_rung(recipe: Recipe, rung: Rung) -> Recipe:
    """The recipe that loads on exactly this rung.

    Where the base had to go down, what is merged from it, which is as large,
    goes with it. A smaller model brings its own revision.
    """
    changes: dict[str, Any] = {
        "quantization": rung.quantization,
        "offload": rung.offload or None,
        "ladder": None,
        "smaller": None,
    }
    if rung.quantization != recipe.model.quantization:
        changes["merged_quantization"] = rung.quantization
    if rung.model:
        revision = PINNED_MODELS.get(rung.model)
        changes |= {"id": rung.model, "revision": revision}
    model = recipe.model.model_copy(update=changes)
    return recipe.model_copy(update={"model": model})


def free_memory() -> None:
    """Give back what nobody holds any more, also the device's cache."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _start_meter() -> tuple[float, int]:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return time.perf_counter(), _read_memory()


def _finish(rung: Rung, start: tuple[float, int], error: str = "") -> Attempt:
    """Seconds since the start, and memory: the peak where CUDA knows it."""
    clock, before = start
    grown = max(0, _read_memory() - before) / GIB
    seconds = time.perf_counter() - clock
    return Attempt(str(rung), round(seconds, 2), round(grown, 3), error)


def _read_memory() -> int:
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
