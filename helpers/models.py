"""Find, load and place models: device, dtype, quantization, chat template.

Where a model is looked for: a folder inside the repository (or an absolute
one), then the same name under ``MATHSLM_MODEL_DIR`` (a classroom without a
network copies its models there), then the hub or its local cache. The model
of tier smol comes from a Python package instead (:mod:`helpers.smol`).

torch is imported inside the functions: finding a path stays light.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from helpers.errors import LabError
from helpers.recipes import Recipe
from helpers.runs import REPO_ROOT, RunDir
from helpers.smol import SMOL_ID, ensure_smol

OWN_FOLDERS = ("data/", "runs/", "./", "../", "/")
# Tokens that never end a response, best first, for a tokenizer without pad.
PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "<unk>")


def pick_device(recipe: Recipe) -> str:
    """ "cuda", "mps" or "cpu", as the recipe asks.

    Raises:
        LabError: the recipe names a device that this machine lacks.
    """
    import torch

    have = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    wanted = recipe.hardware.device
    if wanted == "auto":
        return next(name for name, there in have.items() if there)
    if not have[wanted]:
        raise LabError(
            f"Recipe '{recipe.name}' asks for device '{wanted}', "
            "which torch does not find here.",
            fix="set hardware.device=auto, or start where there is one "
            "(mathslm doctor says what this machine has)",
        )
    return wanted


def model_path(recipe: Recipe, run: RunDir, tag: str) -> Path:
    """Where the model called ``tag`` lies, or will lie.

    ``base`` gives a local folder or, when there is none, the hub id as a
    path; ``sft``, ``dpo`` and ``dpo-<variant>`` give ``<tag>/merged`` in the
    run folder.

    Raises:
        LabError: unknown tag, or the recipe names a missing folder.
    """
    if tag == "base":
        return find_base(recipe)
    kind, _, variant = tag.partition("-")
    if kind not in ("sft", "dpo") or (kind == "sft" and variant):
        raise LabError(
            f"There is no model '{tag}'.",
            fix="choose base, sft, dpo or dpo-<variant>",
        )
    if variant:
        recipe.dpo_variant(variant)
    return run.file(tag, "merged")


def find_base(recipe: Recipe) -> Path:
    """The base model's folder, or its hub id as a path."""
    name = recipe.model.id
    if name == SMOL_ID:
        return ensure_smol()
    if (REPO_ROOT / name).is_dir():
        return REPO_ROOT / name
    if copies := os.environ.get("MATHSLM_MODEL_DIR"):
        for local in (Path(copies) / name, Path(copies) / Path(name).name):
            if local.is_dir():
                return local
    if name.startswith(OWN_FOLDERS):
        raise LabError(
            f"There is no model folder {REPO_ROOT / name}.",
            fix="check model.id, or copy the folder there",
        )
    return Path(name)


def load_tokenizer(path: str | Path, revision: str | None = None) -> Any:
    """A tokenizer that pads on the left and has a pad and an end token.

    Raises:
        LabError: no such folder or hub model, no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            Path(path).as_posix(), revision=revision, padding_side="left"
        )
    except (OSError, ValueError) as error:
        raise _explain_missing(path, error) from None
    if tokenizer.eos_token is None:
        raise LabError(
            f"The tokenizer of {path} has no end token.",
            why="neither training nor sampling would know where to stop",
        )
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        known = [t for t in PAD_CANDIDATES if t in vocabulary]
        # The end token is the last resort: masking pads would mask it too.
        tokenizer.pad_token = known[0] if known else tokenizer.eos_token
    return tokenizer


def load_model(
    recipe: Recipe, path: str | Path | None = None
) -> tuple[Any, Any]:
    """The model in the recipe's precision on its device, and its tokenizer.

    Args:
        recipe: says dtype, quantization, attention and device.
        path: a folder or hub id; None for the recipe's base model.

    Returns:
        (model in eval mode, tokenizer).

    Raises:
        LabError: nothing to load there, or it does not fit the memory.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    base = find_base(recipe)
    path = base if path is None else Path(path)
    device = pick_device(recipe)
    # A revision names a commit of the base on the hub, of nothing else.
    revision = recipe.model.revision if path == base else None
    quantized = recipe.model.quantization is not None
    tokenizer = load_tokenizer(path, revision)
    if recipe.model.dtype != "float32":
        print(explain_precision(recipe, device))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.as_posix(),
            revision=revision,
            dtype=getattr(torch, recipe.model.dtype),
            attn_implementation=recipe.model.attn_implementation,
            quantization_config=make_quantization(recipe),
            device_map={"": device} if quantized else None,
        )
        model = model.eval() if quantized else model.eval().to(device)
    except torch.OutOfMemoryError as error:
        raise LabError(
            f"{path} does not fit into the memory of {device}.",
            why=str(error).split(". ")[0],
            fix="set model.quantization=nf4, or choose a smaller tier",
        ) from None
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _explain_missing(path, error) from None
    return model, tokenizer


def explain_precision(recipe: Recipe, device: str) -> str:
    """One line: the 16-bit precision, why, and what this device makes of it.

    Raises:
        LabError: bfloat16 on a card that has none (compute capability
            below 8.0, such as a T4's 7.5).
    """
    import torch

    name, has = recipe.model.dtype, ""
    if name == "bfloat16" and device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if major < 8:
            raise LabError(
                f"{torch.cuda.get_device_name()} has no bfloat16.",
                why=f"its compute capability is {major}.{minor}; bfloat16 "
                "came with 8.0",
                fix="--set model.dtype=float16",
            )
    if name == "bfloat16" and device == "cpu":
        has = "; this CPU computes in it"
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            has = "; this CPU only imitates it: model.dtype=float32 is faster"
    reason = recipe.model.dtype_reason or "as the recipe says"
    return f"precision {name}: {reason}{has}"


def make_quantization(recipe: Recipe) -> Any:
    """The bitsandbytes configuration the recipe asks for, or None.

    ``nf4`` is QLoRA's 4-bit NormalFloat with double quantization, computing
    in the recipe's dtype; ``int8`` is LLM.int8().
    """
    if recipe.model.quantization is None:
        return None
    import torch
    from transformers import BitsAndBytesConfig

    if recipe.model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, recipe.model.dtype),
    )


def _explain_missing(path: str | Path, error: Exception) -> LabError:
    first = str(error).strip().split("\n")[0]
    if Path(path).is_dir():
        return LabError(
            f"Cannot load a model from {path}: {first}",
            fix="check that the folder holds config.json, the weights and "
            "the tokenizer of one model",
        )
    return LabError(
        f"Cannot load the model {Path(path).as_posix()}: {first}",
        why="it is neither a local folder nor, as far as this machine can "
        "reach, a hub model",
        fix="check model.id and the network; for a gated model log in with "
        "'hf auth login'; without a network set MATHSLM_MODEL_DIR to a "
        "folder with a copy",
    )
