"""Find, load and place models: device, dtype, quantization, chat template.

Where a model is looked for: a folder inside the repository (or an absolute
one), then the same name under ``MATHSLM_MODEL_DIR`` (a classroom without a
network copies its models there), then the hub or its local cache. The model
of tier smol comes from a Python package instead (:mod:`helpers.models.smol`).

torch is imported inside the functions: finding a path stays light.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from helpers.base import (
    REPO_ROOT,
    LabError,
    Recipe,
    RunDir,
    read_json,
    use_cache_when_unreachable,
    write_json,
)
from helpers.models.device_memory import (
    make_offload_folder,
    map_layers,
    measure_training_room,
    reserve_room,
)
from helpers.models.ladder import (
    Climb,
    Rung,
    apply_rung,
    list_rungs,
    raise_out_of_memory,
    walk_ladder,
)
from helpers.models.precision import (
    explain_precision,
    keep_layout,
    make_quantization,
    pick_device,
    prepare_training,
    require_trainable,
    resolve_dtype,
)
from helpers.models.smol import SMOL_ID, ensure_smol

OWN_FOLDERS = ("data/", "runs/", "./", "../", "/")
# Tokens that never end a response, best first, for a tokenizer without pad.
PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "<unk>")


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
    use_cache_when_unreachable()
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


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Save a tokenizer so that it comes back as it was.

    transformers leaves ``legacy`` out of the saved settings. Mistral's
    tokenizer has it: without it the saved one puts a space before the first
    word only, and encodes every prompt otherwise than the base model's.
    """
    tokenizer.save_pretrained(folder)
    if getattr(tokenizer, "legacy", False):
        path = Path(folder) / "tokenizer_config.json"
        write_json(path, {**read_json(path), "legacy": True})


def load_model(
    recipe: Recipe, path: str | Path | None = None, *, training: bool = False
) -> tuple[Any, Any]:
    """The model in the recipe's precision on its device, and its tokenizer.

    With ``model.ladder`` it goes down to fewer bits when memory runs out,
    and says so; see :mod:`helpers.models.ladder`.

    Args:
        recipe: says dtype, quantization, attention and device.
        path: a folder or hub id; None for the recipe's base model.
        training: make a quantized model ready for QLoRA, and leave room
            for what the planner says that training takes beside it.

    Returns:
        (model in eval mode, tokenizer).

    Raises:
        LabError: nothing to load there, or it does not fit the memory.
    """
    return climb(recipe, path, training=training).loaded


def climb(
    recipe: Recipe, path: str | Path | None = None, *, training: bool = False
) -> Climb:
    """:func:`load_model` with the rung that held and what each one cost."""
    device = pick_device(recipe)
    recipe = resolve_dtype(recipe)
    if recipe.model.dtype != "float32":
        print(explain_precision(recipe, device))
    if training:
        require_trainable(recipe, device)
    base = is_base(recipe, path)
    room = 0
    if training and device == "cuda":
        room = measure_training_room(recipe, base)
    rungs = list_rungs(recipe, base=base, training=training, device=device)

    def load(rung: Rung) -> tuple[Any, Any]:
        loaded = load_rung(recipe, path, rung, device)
        if training:
            prepare_training(loaded[0])
        # After it: it turns embeddings and head to fp32, which is more.
        reserve_room(room, device)
        return loaded

    return walk_ladder(rungs, load)


def load_rung(
    recipe: Recipe, path: str | Path | None, rung: Rung, device: str
) -> tuple[Any, Any]:
    """The model in ``path`` (None: the base) as one rung holds it.

    Raises:
        LabError: nothing to load there.
        RuntimeError: it does not fit, in torch's or another's words.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if rung.model:
        recipe, path = apply_rung(recipe, rung), None
    # A revision names a commit of the base on the hub, of nothing else.
    revision = recipe.model.revision if is_base(recipe, path) else None
    path = find_base(recipe) if path is None else Path(path)
    tokenizer = load_tokenizer(path, revision)
    place = {"": device} if rung.quantization else None
    if rung.offload:
        place = map_layers(path, revision, device, rung)
    try:
        with raise_out_of_memory():
            model = AutoModelForCausalLM.from_pretrained(
                path.as_posix(),
                revision=revision,
                dtype=getattr(torch, rung.dtype),
                attn_implementation=recipe.model.attn_implementation,
                quantization_config=make_quantization(
                    rung.quantization, rung.dtype, offload=rung.offload
                ),
                device_map=place,
                offload_folder=make_offload_folder() if rung.offload else None,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _explain_missing(path, error) from None
    model = keep_layout(model.eval())
    if is_base(recipe, path):
        # An adapter names it; a cache folder would tie that to one machine.
        model.name_or_path = recipe.model.id
    return (model if place else model.to(device)), tokenizer


def is_base(recipe: Recipe, path: str | Path | None) -> bool:
    """True for the recipe's own model, False for one merged in a run."""
    return path is None or Path(path) == find_base(recipe)


def fit_recipe(recipe: Recipe, path: str | Path | None) -> Recipe:
    """The recipe with the quantization that holds for the model in ``path``.

    A merged model is not quantized unless ``model.merged_quantization`` is
    set.
    """
    if recipe.model.quantization is None or is_base(recipe, path):
        return recipe
    changes = {"quantization": recipe.model.merged_quantization}
    model = recipe.model.model_copy(update=changes)
    return recipe.model_copy(update={"model": model})


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
