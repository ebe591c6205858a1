"""What is to be planned, as plain data: a model, a machine, and jobs.

``helpers.planner.plan`` makes a :class:`Workload` of a recipe; a test or a
notebook can also write one down by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from helpers.base import LabError, LoraSettings
from helpers.planner.cards import Card
from helpers.planner.shapes import ModelShape, count_parameters

Strategy = Literal["ddp", "zero2", "zero3"]
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# bitsandbytes. NF4: half a byte, one byte of scale per 64 weights, and an
# fp32 scale for every 256 of those (double quantization). 8 bits have an fp32
# scale a row beside.
QUANTIZED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}


@dataclass(frozen=True)
class TrainJob:
    """One training run.

    ``rows`` are examples (SFT) or pairs (DPO); ``effective_batch`` and
    ``per_device_batch`` count the same. ``mean_length`` is the tokens of an
    average row, prompt included, ``lora`` None means that all weights are
    trained.
    """

    kind: Literal["sft", "dpo"]
    rows: int
    effective_batch: int
    per_device_batch: int
    max_length: int
    mean_length: float
    epochs: float = 1
    max_steps: int = -1
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.0
    lr_scheduler: str = "cosine"
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    gradient_checkpointing: bool = False
    packing: bool = False
    min_steps_per_epoch: int = 0
    precompute_ref: bool = True

    @property
    def title(self) -> str:
        """What the job is called in a table."""
        return self.kind.upper()

    @property
    def sequences_per_device(self) -> int:
        """Sequences in one forward pass; a pair is two."""
        return self.per_device_batch * (2 if self.kind == "dpo" else 1)


@dataclass(frozen=True)
class SampleJob:
    """Completions to draw: ``n`` for each of ``prompts`` prompts."""

    name: str
    prompts: int
    n: int
    prompt_tokens: float
    mean_tokens: float
    max_new_tokens: int

    @property
    def completions(self) -> int:
        """All completions of the job."""
        return self.prompts * self.n

    @property
    def tokens(self) -> float:
        """All tokens to decode."""
        return self.completions * self.mean_tokens


@dataclass(frozen=True)
class Benchmark:
    """An evaluation set: its size, and the share that is solved already."""

    name: str
    n: int
    expected: float = 0.5


@dataclass(frozen=True)
class Workload:
    """A model, a machine and what is to be done. ``card`` None is a CPU.

    ``samples_sft``: what is harvested are samples of the merged SFT model.
    ``guessed`` names the counts ("rows", "pairs") that follow from a share
    of the problems; ``unplanned`` what the recipe has and no stage does yet.
    """

    name: str
    shape: ModelShape
    jobs: tuple[TrainJob | SampleJob, ...]
    dtype: str = "bfloat16"
    quantization: Literal["nf4", "int8"] | None = None
    merged_quantization: Literal["nf4", "int8"] | None = None
    card: Card | None = None
    cards: int = 1
    strategy: Strategy = "ddp"
    engine: Literal["transformers", "vllm"] = "transformers"
    tensor_parallel_size: int | None = None
    data_parallel_size: int | None = None
    gpu_memory_utilization: float = 0.9
    max_model_len: int = 2048
    sampling_batch: int = 256
    max_batch_tokens: int | None = None
    attention: str = "sdpa"
    usd_per_hour: float = 0.0
    benchmarks: tuple[Benchmark, ...] = ()
    samples_sft: bool = False
    guessed: tuple[str, ...] = ()
    unplanned: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        """Training processes: one a card, one on a CPU."""
        return max(1, self.cards) if self.card else 1

    @property
    def compute_bytes(self) -> int:
        """Bytes of one number in the forward pass."""
        return DTYPE_BYTES[self.dtype]

    def holding(self, job: TrainJob | SampleJob) -> Workload:
        """This workload with the bits of the model that a job works on.

        DPO trains, and evaluation in the end asks, a merged model; so does
        the harvest where SFT came first. (Evaluation also asks the base.)
        """
        merged = {"evaluate", "distill"} if self.samples_sft else {"evaluate"}
        name = job.kind if isinstance(job, TrainJob) else job.name
        if name in merged | {"dpo"}:
            return replace(self, quantization=self.merged_quantization)
        return self

    def on(self, card: Card | None, cards: int = 1) -> Workload:
        """The same work on another machine."""
        return replace(self, card=card, cards=cards)


def count_weight_bytes(
    shape: ModelShape, dtype: str, quantization: str | None, rest: float = 0
) -> float:
    """Bytes of a whole model.

    bitsandbytes quantizes the matrices of the layers; embeddings, head and
    norms stay as they are: in the dtype, or of ``rest`` bytes each.
    """
    total, size = count_parameters(shape), DTYPE_BYTES[dtype]
    if quantization is None:
        return total * size
    layers = shape.num_hidden_layers
    matrices = layers * sum(i * o for i, o in shape.modules.values())
    quantized = matrices * QUANTIZED_BYTES[quantization]
    if quantization == "int8":
        quantized += 4 * layers * sum(o for _, o in shape.modules.values())
    return (total - matrices) * (rest or size) + quantized


def mean_weight_bytes(
    shape: ModelShape, dtype: str, quantization: str | None
) -> float:
    """Bytes of an average weight of a model."""
    whole = count_weight_bytes(shape, dtype, quantization)
    return whole / count_parameters(shape)


def count_lora(shape: ModelShape, lora: LoraSettings) -> int:
    """Exact number of parameters that PEFT's LoRA adds and trains.

    A LoRA on a matrix of ``i`` inputs and ``o`` outputs has r·(i + o).

    Raises:
        LabError: a target that the model does not have. (PEFT leaves it out
            without a word when another target matches.)
    """
    modules = shape.modules
    for name in lora.target_modules:
        if name not in modules:
            raise LabError(
                f"{shape.name} has no module '{name}'.",
                why="PEFT skips such a target silently",
                fix="choose among: " + ", ".join(modules),
            )
    wide = sum(sum(modules[n]) for n in dict.fromkeys(lora.target_modules))
    return _count_layers(shape, lora) * lora.r * wide


def _count_layers(shape: ModelShape, lora: LoraSettings) -> int:
    """How many layers carry the LoRA."""
    if lora.layers is None:
        return shape.num_hidden_layers
    wrong = [i for i in lora.layers if not 0 <= i < shape.num_hidden_layers]
    if wrong:
        raise LabError(
            f"{shape.name} has no layer {wrong[0]}.",
            fix=f"layers are numbered 0 to {shape.num_hidden_layers - 1}",
        )
    return len(set(lora.layers))


def count_trainable(shape: ModelShape, job: TrainJob) -> tuple[int, int]:
    """(trainable, total) parameters as PEFT prints them."""
    base = count_parameters(shape)
    if job.lora is None:
        return base, base
    added = count_lora(shape, job.lora)
    return added, base + added
