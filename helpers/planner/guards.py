"""Cards: how many, how large, and what they can compute."""

from __future__ import annotations

from helpers.base import LOADED, PLANNING, LabError, guard
from helpers.planner.steps import StepCount, Travel

# vLLM pads the vocabulary to a multiple of this before it splits it
# (DEFAULT_VOCAB_PADDING_SIZE in vocab_parallel_embedding.py).
VOCAB_PADDING = 64
BF16_CAPABILITY = (8, 0)  # Ampere; older cards only emulate it
USABLE = 0.95  # of a card's memory; the rest is lost to fragmentation


def find_split_faults(
    tp: int,
    *,
    heads: int,
    kv_heads: int,
    intermediate_size: int,
    vocab_size: int,
) -> list[str]:
    """Every reason for which vLLM would refuse this size, in words."""
    if tp < 1:
        return ["it is not positive"]
    padded = -(-vocab_size // VOCAB_PADDING) * VOCAB_PADDING
    faults = []
    if heads % tp:
        faults.append(f"{heads} attention heads are not divisible by {tp}")
    if kv_heads >= tp and kv_heads % tp:
        faults.append(f"{kv_heads} KV heads are not divisible by {tp}")
    if kv_heads < tp and tp % kv_heads:
        faults.append(
            f"{kv_heads} KV heads, fewer than {tp}, would be copied to every "
            f"card, and {tp} is no multiple of {kv_heads}"
        )
    if intermediate_size % tp:
        faults.append(
            f"the intermediate size {intermediate_size} is not "
            f"divisible by {tp}"
        )
    if padded % tp:
        faults.append(
            f"the padded vocabulary {padded} is not divisible by {tp}"
        )
    return faults


@guard(
    "tensor parallelism that does not divide the model", PLANNING, doctor=True
)
def check_tensor_parallel(
    model: str,
    tp: int,
    *,
    heads: int,
    kv_heads: int,
    intermediate_size: int,
    vocab_size: int,
) -> None:
    """Refuse a tensor-parallel size that does not divide this model.

    vLLM's rule: the attention heads, the intermediate size and the padded
    vocabulary must be divisible by it; KV heads too, unless there are fewer
    of them than cards: then each is copied, and the size must be a multiple
    of their number. Source: ``ModelConfig.verify_with_parallel_config``,
    ``models/qwen2.py``, ``layers/linear.py`` and
    ``layers/vocab_parallel_embedding.py`` of vLLM.

    Story: the published 7B run typed the sizes 1, 2 and 4 into its options,
    because of 4 KV heads. They are right for its model, for another reason
    (28 heads do not divide by 8), and for few others. It took 4, and half of
    its eight cards were idle while it sampled and evaluated.

    Raises:
        LabError: names the number that does not divide, and the valid sizes.
    """
    sizes = {
        "heads": heads,
        "kv_heads": kv_heads,
        "intermediate_size": intermediate_size,
        "vocab_size": vocab_size,
    }
    faults = find_split_faults(tp, **sizes)
    if not faults:
        return
    valid = [
        t for t in range(1, heads + 1) if not find_split_faults(t, **sizes)
    ]
    raise LabError(
        f"tensor_parallel_size={tp} does not work for {model}: {faults[0]}.",
        why="tensor parallelism gives every card the same number of "
        "attention heads and an equal slice of every matrix",
        fix=f"choose one of {', '.join(map(str, valid))}; to use more cards, "
        "start more replicas (data_parallel_size)",
    )


@guard("more cards than there are", PLANNING, doctor=True)
def check_card_count(
    what: str, needed: int, have: int, *, fix: str = ""
) -> None:
    """Refuse to start on more cards than there are.

    Story: the published recipes are for eight cards; whoever rents four
    gets an error from inside CUDA, once a process, after the model has been
    fetched. Counting first takes a moment.

    Raises:
        LabError: more cards are needed than there are.
    """
    if needed <= have:
        return
    raise LabError(
        f"{what} need {needed}, and there are {have}.",
        fix=fix
        or "lower engine.data_parallel_size or engine.tensor_parallel_size; "
        "left open, the planner sets them",
    )


@guard("bf16 on a card that has none", PLANNING, doctor=True)
def check_precision(
    card: str, capability: tuple[int, int], dtype: str
) -> None:
    """Refuse bfloat16 on a card that only imitates it.

    Story: most models are published in bf16, and a T4 takes them: it only
    imitates the format, so nothing fails and everything is slow. The
    published T4 run took fp16.

    Args:
        capability: CUDA compute capability, for example (7, 5) of a T4.

    Raises:
        LabError: bfloat16 below compute capability 8.0.
    """
    if dtype != "bfloat16" or capability >= BF16_CAPABILITY:
        return
    major, minor = capability
    raise LabError(
        f"{card} has no bfloat16.",
        why=f"its compute capability is {major}.{minor}; bfloat16 "
        "came with 8.0",
        fix="--set model.dtype=float16, or auto",
    )


@guard("a card that is too small", PLANNING, doctor=True)
def check_card_memory(
    job: str, needed_gib: float, card: str, have_gib: float, largest: str
) -> str | None:
    """Warn of a job that does not fit its card.

    Story: a published T4 tutorial tries 4 bits first and, when memory runs
    out, 8 and then 16: each try needs more than the one before. The sum can
    be done before anything is loaded.

    Args:
        card: what has to hold it, as in "a T4".
        largest: name and size of the largest part, for the message.

    Returns:
        A warning, or None when the job fits into 95 % of the card.
    """
    if needed_gib <= USABLE * have_gib:
        return None
    return (
        f"{job} needs {needed_gib:.1f} GiB a card and {card} has "
        f"{have_gib:.0f}. Most of it: {largest}. Lower per_device_batch, "
        "turn on gradient_checkpointing, quantize, or shard (ZeRO-3)."
    )


@guard("packing trap", LOADED, doctor=True)
def check_steps_per_epoch(
    count: StepCount, minimum: int, *, unpacked_rows: int | None = None
) -> None:
    """Refuse a run with too few steps an epoch: the packing trap.

    Story: the published 7B run (math-slm) packed 2,439 short examples into
    rows of 2,048 tokens. That left about 6 steps an epoch; its author raised
    the epochs from 3 to 12, and the model learned the rows by heart in a
    quarter of an hour. A guard that counts the rows before packing sees
    nothing, so this one takes those that the trainer sees.

    Args:
        count: of the rows the trainer sees, that is, packed ones.
        minimum: fewest steps an epoch that are accepted.
        unpacked_rows: number of examples before packing, when packing is on.

    Raises:
        LabError: fewer than ``minimum`` steps an epoch.
    """
    if count.per_epoch >= minimum:
        return
    if unpacked_rows is None:
        packed, first = f"{count.rows} rows make", ""
    else:
        packed = (
            f"packing joined {unpacked_rows} examples into {count.rows} "
            "sequences, which make"
        )
        first = "turn packing off (--set sft.packing=false), "
    raise LabError(
        f"Only {count.per_epoch} optimizer steps an epoch; this recipe asks "
        f"for at least {minimum}.",
        why=f"{packed} {count.per_epoch} batches of "
        f"{count.effective_batch}. So few updates hardly move the adapter, "
        "and adding epochs only repeats the same rows until the model knows "
        "them by heart: this is the packing trap. Count steps before "
        "training, not after",
        fix=f"{first}lower sft.effective_batch, harvest more rows, or, when "
        "it is meant so, lower sft.min_steps_per_epoch",
    )


@guard("learning rates too small to be stored", PLANNING, doctor=True)
def check_travel(travel: Travel) -> str | None:
    """Warn of a run whose merge will round its update away.

    Story: the published DPO run took 60 steps whose learning rates sum to
    1.5e-5, and was merged into bf16 weights before it was evaluated. A
    change below half an ulp is not stored: of such an update 1.4 % of the
    entries survive, in a direction that has little to do with it. "DPO did
    nothing" was partly the merge.

    Args:
        travel: the sum of the learning rates against half an ulp.

    Returns:
        A warning, or None when the dtype can store what the run can move.
    """
    if not travel.is_erased:
        return None
    return (
        f"{travel}. Merged into {travel.dtype}, most of the update is rounded "
        "away. Raise the learning rate or the steps, merge in float32, or "
        "evaluate the adapter unmerged."
    )
