"""Too few steps, and steps too small to be stored."""

from __future__ import annotations

from helpers.errors import LabError
from helpers.schedule import StepCount, Travel


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
