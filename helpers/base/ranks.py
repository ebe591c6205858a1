"""Several processes that train together: who speaks, who writes, who waits.

``accelerate launch … -m helpers sft`` starts one process a card, a *rank*.
All of them train; only the first writes records and talks. What it finds out
alone it hands to the others with :func:`run_first`, and an error of it ends
all of them, told once. In one process every function here does nothing.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from helpers.base.errors import LabError
from helpers.base.lock import is_first_rank, world_size
from helpers.base.recipe import RECIPE_DIR
from helpers.base.recipe_schema import Recipe
from helpers.base.run import name_folder

T = TypeVar("T")
FILES = RECIPE_DIR / "accelerate"  # what ``--config_file`` is given
ON = ("1", "true", "yes")


def name_strategy() -> str:
    """What the launcher set up: ``ddp``, ``zero2``, ``zero3`` or ``fsdp``.

    Accelerate passes its file on in the environment.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ON:
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        return f"zero{stage}"
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ON:
        return "fsdp"
    return "ddp"


def describe_launch(recipe: Recipe, stage: str) -> str:
    """The command that trains this recipe on all its cards."""
    file = name_folder(FILES / f"{recipe.hardware.strategy}.yaml")
    cards = max(recipe.hardware.cards, 1)
    return (
        f"accelerate launch --config_file {file} --num_processes {cards} "
        f"-m helpers {stage} --tier {recipe.name}"
    )


def require_one_process() -> None:
    """LabError when several processes were started for the work of one."""
    if world_size() > 1:
        raise LabError(
            f"{world_size()} processes were started for the work of one.",
            why="only sft and dpo are spread over several processes",
            fix="start this command without a launcher",
        )


def check_strategy(recipe: Recipe, stage: str) -> None:
    """LabError when the launcher's file is not what the recipe asks for."""
    found, asked = name_strategy(), recipe.hardware.strategy
    if world_size() == 1 or found == asked:
        return
    hint = f"or add --set hardware.strategy={found}"
    raise LabError(
        f"Recipe '{recipe.name}' is for {asked}; the processes were started "
        f"for {found}.",
        why="memory was planned, and checkpoints are written, for one of them",
        fix=describe_launch(recipe, stage)
        + ("" if found == "fsdp" else f", {hint}"),
    )


def check_cards(cards: int) -> None:
    """LabError when there are more processes on this machine than cards."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or world_size())
    if cards >= here:
        return
    raise LabError(
        f"{here} processes were started on this machine, which has {cards} "
        "CUDA card(s) for them.",
        why="every process needs a card of its own",
        fix=f"--num_processes {max(cards, 1)}: the effective batch stays, "
        "with more accumulation; or fewer, where per_device_batch × processes "
        "does not divide it",
    )


def connect(
    recipe: Recipe, stage: str, pick_device: Callable[[Recipe], str]
) -> None:
    """Start the process group on the recipe's device; loads torch.

    One process says how to start more, where the recipe has more cards.

    Raises:
        LabError: more processes than cards, or another strategy than the
            recipe's.
    """
    if world_size() == 1:
        if recipe.hardware.cards > 1:
            print(
                f"One process trains on one card; '{recipe.name}' is for "
                f"{recipe.hardware.cards}: {describe_launch(recipe, stage)}"
            )
        return
    check_strategy(recipe, stage)
    device = pick_device(recipe)
    # DeepSpeed calls collectives by names that torch is about to drop.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="torch.distributed"
    )
    import torch

    if device == "cuda":
        check_cards(torch.cuda.device_count())
    from accelerate import PartialState

    PartialState(cpu=device == "cpu")


def leave() -> None:
    """Wait for all, then close the process group."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def wait() -> None:
    """Go on when every process is here."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def run_first(function: Callable[[], T]) -> T:
    """What ``function`` gives on the first rank, on every rank.

    The others wait. The result must be picklable.

    Raises:
        LabError: the first rank's, on every rank.
    """
    if world_size() == 1:
        return function()
    from accelerate.utils import broadcast_object_list

    answer: list[Any] = [None]
    if is_first_rank():
        try:
            answer = [(function(), None)]
        except LabError as error:
            answer = [(None, error)]
    value, error = broadcast_object_list(answer)[0]
    if error is not None:
        raise error
    return value


def describe_sharding() -> dict[str, str]:
    """What a checkpoint needs to be read again, as an input of it.

    ZeRO writes one part a process; a checkpoint of DDP is that of one
    process, and goes on with any number.
    """
    if name_strategy() == "ddp":
        return {}
    return {"sharding": f"{name_strategy()} on {world_size()} processes"}


def mute_others() -> None:
    """Silence all but the first rank: no prints, no bars, no notes."""
    if is_first_rank():
        return
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    warnings.filterwarnings("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def may_report() -> bool:
    """True for the first process of this machine that has an error to tell.

    Processes of one launcher agree through a file named after it.
    """
    parent = psutil.Process().parent()
    if world_size() == 1 or parent is None:
        return is_first_rank()
    folder = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parent.parent
    if not folder.is_absolute():
        folder = Path(tempfile.gettempdir())
    claim = folder / f"told-{parent.pid}-{parent.create_time():.0f}"
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return is_first_rank()
    return True
