"""The weights that an adapter is added to, in fp32.

An adapter that was trained on quantized weights has learnt around their
rounding error. So it is added to those weights, unpacked (dequantized), and
not to the 16-bit ones that they were made from; ``compare_bases`` of
:mod:`helpers.merge` measures the difference.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from helpers.ladder import DoesNotFit, free_memory
from helpers.models import fit_recipe, load_model
from helpers.precision import pick_device
from helpers.recipes import Recipe


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
    try:
        return load_model(recipe, path)
    except DoesNotFit:
        if pick_device(recipe) == "cpu":
            raise
    free_memory()
    print("In fp32 the model is too large for the card: merging on the CPU.")
    hardware = recipe.hardware.model_copy(update={"device": "cpu"})
    return load_model(recipe.model_copy(update={"hardware": hardware}), path)


def load_trained_base(recipe: Recipe, path: Path) -> tuple[Any, Any]:
    """The weights as training saw them, in fp32, and the tokenizer.

    Quantized ones are made from the recipe's dtype, as for training, and
    unpacked.
    """
    import torch

    if fit_recipe(recipe, path).model.quantization is None:
        return load_exact(recipe, path)
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

    from helpers.training import quiet_setup

    load = load_exact if exact else load_trained_base
    model, tokenizer = load(recipe, base)
    with quiet_setup():
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval(), tokenizer
