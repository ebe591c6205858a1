"""The weights that an adapter is added to, in fp32.

An adapter that was trained on quantized weights has learnt around their
rounding error. So it is added to those weights, unpacked (dequantized), and
not to the 16-bit ones that they were made from; ``compare_bases`` of
:mod:`helpers.stages.merge` measures the difference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.base import LabError, Recipe
from helpers.models import (
    DoesNotFit,
    fit_recipe,
    free_memory,
    is_base,
    is_out_of_memory,
    load_model,
    measure_cpu_room,
    measure_fp32,
    pick_device,
    resolve_dtype,
)
from helpers.planner import GIB


def name_base(recipe: Recipe, path: Path) -> str:
    """ "as stored", or "dequantized nf4" where training saw quantized ones."""
    kind = fit_recipe(recipe, path).model.quantization
    return f"dequantized {kind}" if kind else "as stored"


def load_exact(recipe: Recipe, path: Path) -> tuple[Any, Any]:
    """A model in fp32, unquantized, whatever the recipe computes in.

    On a card that cannot hold it the CPU does.
    """
    changes = {
        "dtype": "float32",
        "quantization": None,
        "merged_quantization": None,
        "ladder": None,
        "offload": None,
    }
    exact = recipe.model.model_copy(update=changes)
    recipe = recipe.model_copy(update={"model": exact})
    return load_where_it_fits(load_model, recipe, path)


def load_where_it_fits(
    load: Callable[[Recipe, Path], tuple[Any, Any]],
    recipe: Recipe,
    path: Path,
) -> tuple[Any, Any]:
    """What ``load`` gives on the recipe's device; of a small card on the CPU.

    Raises:
        LabError: the CPU's memory is too small too; says how much it takes.
    """
    device = pick_device(recipe)
    try:
        return load(recipe, path)
    except Exception as error:
        if not (isinstance(error, DoesNotFit) or is_out_of_memory(error)):
            raise
    # Outside the handler: the error's frames held what was loaded.
    free_memory()
    need = measure_fp32(
        Path(path), recipe.model.revision, is_base(recipe, path)
    )
    room = measure_cpu_room()
    # A CPU promises more memory than it has, and then ends the process.
    if device == "cpu" or room < need:
        raise refuse_merge(need, room)
    print("In fp32 the model is too large for the card: merging on the CPU.")
    hardware = recipe.hardware.model_copy(update={"device": "cpu"})
    recipe = recipe.model_copy(update={"hardware": hardware})
    return load_where_it_fits(load, recipe, path)


def refuse_merge(need: int, room: int) -> LabError:
    """The error of a machine that holds no fp32 model of this size."""
    return LabError(
        f"The merge needs {need / GIB:.1f} GiB of memory for the model in "
        f"fp32; {room / GIB:.1f} GiB are free.",
        why="four bytes a parameter, on a card or else in the machine's "
        "memory",
        fix="close other programs, or copy the run folder to a machine with "
        "more memory and merge there",
    )


def load_trained_base(recipe: Recipe, path: Path) -> tuple[Any, Any]:
    """The weights as training saw them, in fp32, and the tokenizer.

    Quantized ones are made from the recipe's dtype, as for training, and
    unpacked.
    """
    if fit_recipe(recipe, path).model.quantization is None:
        return load_exact(recipe, path)
    # Before the device may change: a CPU could choose another format.
    recipe = resolve_dtype(recipe)
    return load_where_it_fits(load_unpacked, recipe, path)


def load_unpacked(recipe: Recipe, path: Path) -> tuple[Any, Any]:
    """The quantized model, unpacked to fp32 on its device."""
    import torch

    model, tokenizer = load_model(recipe, path)
    # It warns of the very cast that is asked for.
    logging.getLogger("transformers.integrations.bitsandbytes").setLevel(
        logging.ERROR
    )
    return model.dequantize(torch.float32).float(), tokenizer


def load_unmerged(
    recipe: Recipe, adapter: Path, base: Path, *, exact: bool = False
) -> tuple[Any, Any]:
    """The fp32 base with its adapter beside it, and the tokenizer.

    ``exact``: the base as it is stored, also where training quantized it.
    """
    from peft import PeftModel

    from helpers.stages.trainer import quiet_setup

    load = load_exact if exact else load_trained_base
    model, tokenizer = load(recipe, base)
    with quiet_setup():
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval(), tokenizer
