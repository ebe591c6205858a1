"""Memory of one card, part by part, from sizes alone.

What is counted is what the installed libraries keep: the tensors that
autograd saves in transformers' layers under PEFT's LoRA, and the output head
of TRL 1.16, which never holds all logits but tiles of them. Tests compare it
with what autograd really saves and with the peak of real runs. Everything is
for rows of the full length: the worst batch decides, not the average one.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.planner.cards import GIB
from helpers.planner.guards import USABLE
from helpers.planner.serving import kv_bytes_per_card, serving_overhead_bytes
from helpers.planner.shapes import ModelShape, count_parameters
from helpers.planner.workload import (
    SampleJob,
    TrainJob,
    Workload,
    count_trainable,
    count_weight_bytes,
)

# Context, kernels and the libraries' work space on a card.
CUDA_BYTES = 1.0 * GIB
# TRL's head: logits of so many tokens by so many words at once.
TILE_TOKENS, TILE_WORDS = 4096, 32768
# fp32 copies of a tile that its torch version makes, off the GPU.
TILE_COPIES_ON_CPU = 8
# DeepSpeed's stage3_max_live_parameters: gathered weights kept at once.
ZERO3_LIVE = 1_000_000_000
PARTS = (
    "weights",
    "adapter and optimizer",
    "checkpoints",
    "activations",
    "logits",
    "KV cache",
    "runtime",
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one card, by part; ``title`` says of which job.

    ``loading``: what the card holds before, while the model is loaded,
    where that is not simply the weights of the parts.
    """

    title: str
    parts: dict[str, float]
    loading: float = 0.0

    @property
    def total(self) -> float:
        """The peak in bytes: all parts, or the load where that is more."""
        return max(self.loading, sum(self.parts.values()))

    @property
    def gib(self) -> float:
        """The peak in GiB."""
        return self.total / GIB

    @property
    def largest(self) -> tuple[str, float]:
        """(name, bytes) of what takes most of the peak."""
        if self.loading and self.total == self.loading:
            return "the whole model while it is loaded", self.loading
        name = max(self.parts, key=self.parts.get)
        return name, self.parts[name]

    def fits(self, memory_gib: float) -> bool:
        """Within 95 % of a card; the rest is lost to fragmentation."""
        return self.gib <= USABLE * memory_gib


def frozen_bytes(workload: Workload, *, training: bool = False) -> float:
    """Bytes of the frozen model on one card, before any sharding.

    PEFT's preparation for training turns what is not quantized to fp32.
    """
    return count_weight_bytes(
        workload.shape,
        workload.dtype,
        workload.quantization,
        rest=4 if training else 0,
    )


def adapter_bytes(workload: Workload, job: TrainJob) -> float:
    """Trained weights, their gradients and AdamW's two moments.

    Adapters are in fp32; under ZeRO-3 TRL has them in bf16, and DeepSpeed
    holds fp32 masters.
    """
    trainable, _ = count_trainable(workload.shape, job)
    world = workload.world_size
    if workload.strategy in ("zero2", "zero3") and world > 1:
        weights = 0 if job.lora is None else 2  # else in "weights" already
        master = 2 + 12  # bf16 gradient, fp32 weight and moments, sharded
        if workload.strategy == "zero3":
            return trainable * (weights + master) / world
        return trainable * (weights + master / world)
    if job.lora is None:
        size = workload.compute_bytes
        return trainable * (3 * size)  # gradient and moments
    each = 4 + 4 + 8  # weight, gradient, two moments
    return trainable * (each + (4 if world > 1 else 0))  # DDP's buckets


def layer_bytes_per_token(workload: Workload, job: TrainJob) -> float:
    """What autograd saves of one token in one layer.

    Found by counting the saved tensors of a LoRA forward pass: per norm one
    fp32 copy; queries, keys, values and the attention's output; gate, its
    activation and up; the input of every LoRA, once each under autocast, and
    its dropout mask (one byte on a GPU, a number on a CPU).
    """
    shape, size = workload.shape, workload.compute_bytes
    heads = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    inner = shape.intermediate_size * max(1, shape.num_experts_per_tok)
    hidden = shape.hidden_size
    saved = 2 * 4 * hidden
    saved += size * (2 * heads + 2 * keys) + 4 * shape.num_attention_heads
    saved += size * 3 * inner
    if job.lora is None:
        return saved + size * (2 * hidden + inner)
    targets = {n: shape.modules[n][0] for n in job.lora.target_modules}
    wide = sum(targets.values())
    masked = job.lora.dropout > 0
    if size == 2 or masked:
        saved += size * wide
    else:
        saved += size * _shared_inputs(shape, set(targets))
    if masked:
        saved += wide * (1 if workload.card else 4)
    return saved + size * job.lora.r * len(targets)


def _shared_inputs(shape: ModelShape, targets: set[str]) -> int:
    """Width of the distinct inputs of the targets (attention's is saved)."""
    width = 0
    if targets & {"q_proj", "k_proj", "v_proj"}:
        width += shape.hidden_size
    if targets & {"gate_proj", "up_proj"}:
        width += shape.hidden_size
    if "down_proj" in targets:
        width += shape.intermediate_size
    return width


def attention_bytes(workload: Workload, sequences: int, length: int) -> float:
    """The squares that eager attention keeps of one layer; 0 for sdpa.

    Softmax in fp32 and its copy in the compute dtype.
    """
    if workload.attention != "eager":
        return 0.0
    squares = sequences * workload.shape.num_attention_heads * length**2
    return squares * (4 + workload.compute_bytes)


def logits_bytes(workload: Workload, tokens: int) -> float:
    """TRL's tiled output head at its peak, in the backward pass."""
    rows = min(tokens, TILE_TOKENS)
    words = min(workload.shape.vocab_size, TILE_WORDS)
    size = workload.compute_bytes
    if workload.card:
        tile = rows * TILE_WORDS * size  # filled in place by a kernel
    else:
        tile = rows * words * (size + 4 * TILE_COPIES_ON_CPU)
    hidden = tokens * workload.shape.hidden_size
    return tile + hidden * (4 + size)


def full_logits_bytes(workload: Workload, tokens: int) -> float:
    """What all logits would take: 16 bit, fp32, and their gradient.

    The tiled head spares this; trainers before it did not.
    """
    size = workload.compute_bytes
    return tokens * workload.shape.vocab_size * (size + 4 + 4)


def estimate_training(workload: Workload, job: TrainJob) -> MemoryEstimate:
    """Peak of one card in SFT or DPO, by part."""
    shape, size = workload.shape, workload.compute_bytes
    sequences, length = job.sequences_per_device, job.max_length
    tokens = sequences * length
    layers = shape.num_hidden_layers
    layer = tokens * layer_bytes_per_token(workload, job)
    layer += attention_bytes(workload, sequences, length)
    gradients = tokens * size * (3 * shape.intermediate_size)
    if job.gradient_checkpointing:
        # fp32 embeddings of a quantized base make all hidden states fp32
        stream = 4 if workload.quantization else size
        checkpoints = tokens * stream * shape.hidden_size * layers
        activations = layer + gradients
    else:
        checkpoints, activations = 0.0, _count_open(shape, job) * layer
    if workload.quantization:  # one matrix at a time is unpacked
        activations += size * max(i * o for i, o in shape.modules.values())
    weights, gathered = _shard_weights(workload)
    head = logits_bytes(workload, tokens)
    if not job.gradient_checkpointing:
        # the head's tiles are gone when the first layer's gradients come
        head = max(head, gradients)
    parts = {
        "weights": weights + gathered,
        "adapter and optimizer": adapter_bytes(workload, job),
        "checkpoints": checkpoints,
        "activations": activations,
        "logits": head,
        "KV cache": 0.0,
        "runtime": CUDA_BYTES if workload.card else 0.0,
    }
    return MemoryEstimate(job.title, parts, loading_bytes(workload))


def _count_open(shape: ModelShape, job: TrainJob) -> int:
    """Layers that gradients pass through: from the first LoRA upwards."""
    if job.lora is None or job.lora.layers is None:
        return shape.num_hidden_layers
    return shape.num_hidden_layers - min(job.lora.layers)


def loading_bytes(workload: Workload) -> float:
    """What a card holds before ZeRO-3 shards the model; 0 elsewhere.

    The stages load the model before the trainer knows of DeepSpeed, so it
    lies on every card in whole. (Later up to a billion weights are gathered
    at a time, see ``ZERO3_LIVE``.)
    """
    if workload.strategy != "zero3" or workload.world_size == 1:
        return 0.0
    runtime = CUDA_BYTES if workload.card else 0.0
    return frozen_bytes(workload, training=True) + runtime


def _shard_weights(workload: Workload) -> tuple[float, float]:
    """(own share of the weights, weights gathered for use) in bytes."""
    weights = frozen_bytes(workload, training=True)
    world = workload.world_size
    if workload.strategy != "zero3" or world == 1:
        return weights, 0.0
    live = min(ZERO3_LIVE, count_parameters(workload.shape))
    head = workload.shape.embedding_parameters
    rest = (world - 1) / world
    return weights / world, (live + head) * workload.compute_bytes * rest


def estimate_sampling(workload: Workload, job: SampleJob) -> MemoryEstimate:
    """Peak of one card while sampling.

    vLLM takes its share of the card whatever the job, and what is left of it
    is KV cache; in process, the cache is as long as the batch needs.
    """
    size = workload.compute_bytes
    weights = frozen_bytes(workload)
    if workload.engine == "vllm" and workload.card:
        # it fills its share of the card with cache
        tp = workload.tensor_parallel_size or 1
        budget = (
            workload.card.memory_gib * GIB * workload.gpu_memory_utilization
        )
        work = serving_overhead_bytes(workload.shape, tp)
        parts = {
            "weights": weights / tp,
            "logits": work - GIB,
            "KV cache": max(0.0, budget - weights / tp - work),
            "runtime": GIB,
        }
        return MemoryEstimate(job.name, _all_parts(parts))
    length = job.prompt_tokens + job.max_new_tokens
    rows = min(workload.sampling_batch, max(1, job.completions))
    if workload.max_batch_tokens:
        rows = max(1, min(rows, int(workload.max_batch_tokens / length)))
    per_token = kv_bytes_per_card(workload.shape, 1, size)
    parts = {
        "weights": weights,
        "logits": rows * workload.shape.vocab_size * (size + 3 * 4),
        "KV cache": rows * length * per_token,
        "runtime": CUDA_BYTES if workload.card else 0.0,
    }
    return MemoryEstimate(job.name, _all_parts(parts))


def _all_parts(parts: dict[str, float]) -> dict[str, float]:
    return {name: parts.get(name, 0.0) for name in PARTS}
