"""The base model: is it there, is it whole, does its tokenizer fit?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from helpers.base import LabError, Recipe
from helpers.doctor import Line
from helpers.machine import Machine
from helpers.models import check_template, find_base, load_tokenizer, smol
from helpers.planner import estimate_space, find_shape, find_token
from helpers.preflight.lines import blame, try_guard

CONFIG, INDEX = "config.json", "model.safetensors.index.json"


def judge_model(recipe: Recipe, machine: Machine) -> list[Line]:
    """Weights, licence and tokenizer of the recipe's base model."""
    if recipe.model.id == smol.SMOL_ID:
        folder = smol.smol_folder()
        if not smol.is_complete(folder):
            text = "made from its package when it is first needed"
            return [Line("OK", "model", text)]
        return [
            Line("OK", "model", f"{recipe.model.id} is converted"),
            judge_tokenizer(recipe, folder),
        ]
    try:
        base = find_base(recipe)
    except LabError as error:
        return [blame("model", error)]
    if not base.is_dir():
        return judge_hub_model(recipe)
    return [judge_folder(base), judge_tokenizer(recipe, base)]


def judge_folder(folder: Path) -> Line:
    """FAIL for a folder that holds no whole model."""
    return try_guard(
        "model",
        lambda: require_whole(folder),
        f"{folder.name} holds a whole model",
    )


def require_whole(folder: Path) -> None:
    """Refuse a model folder that is incomplete or was cut off.

    The weights are not read: the index names the files, and the head of
    each file says how long it is.

    Raises:
        LabError: names the file that is missing or too short.
    """
    from safetensors import SafetensorError, safe_open

    if not (folder / CONFIG).is_file():
        raise _incomplete(folder, f"there is no {CONFIG}")
    names = {p.name for p in folder.glob("*.safetensors")}
    if (folder / INDEX).is_file():
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
        if missing := sorted({*index["weight_map"].values()} - names):
            raise _incomplete(folder, f"there is no {missing[0]}")
    if not names and not any(folder.glob("*.bin")):
        raise _incomplete(folder, "there are no weights")
    for name in sorted(names):
        try:
            with safe_open(folder / name, "numpy"):
                continue
        except (SafetensorError, OSError) as error:
            raise _incomplete(folder, f"{name}: {error}") from None


def _incomplete(folder: Path, what: str) -> LabError:
    return LabError(
        f"The model folder {folder} is not whole: {what}.",
        why="a copy or a download was cut off",
        fix="copy it again, or remove the folder to fetch it anew",
    )


def judge_hub_model(recipe: Recipe) -> list[Line]:
    """A hub model: in the local cache, or to be fetched, with a token?"""
    cached = find_cached(recipe)
    if cached:
        where = "in the local cache of the hub"
        lines = [Line("OK", "model", f"{recipe.model.id} is {where}")]
    elif is_offline():
        text = (
            f"{recipe.model.id} is neither a folder nor in the local cache, "
            "and the hub is not asked (no network, or HF_HUB_OFFLINE). "
            "Do this: connect once, or set "
            "MATHSLM_MODEL_DIR to a folder with a copy."
        )
        return [Line("FAIL", "model", text)]
    else:
        text = f"{recipe.model.id} will be fetched from the hub"
        if size := _size_mb(recipe):
            text += f", about {size / 1000:.1f} GB. Do this once, on a "
            text += "machine that is not rented by the minute"
        lines = [Line("WARN", "model", text)]
    if line := judge_gate(recipe, cached):
        lines.append(line)
    if cached:
        lines.append(judge_tokenizer(recipe, Path(recipe.model.id)))
    return lines


def _size_mb(recipe: Recipe) -> int:
    try:
        find_shape(recipe.model.id)
    except LabError:
        return 0
    return estimate_space(recipe, "merge")


def is_offline() -> bool:
    """Whether the hub library is told to stay off the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or bool(
        os.environ.get("TRANSFORMERS_OFFLINE")
    )


def find_cached(recipe: Recipe) -> Path | None:
    """The model's folder in the hub's local cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        recipe.model.id, CONFIG, revision=recipe.model.revision
    )
    return Path(found).parent if isinstance(found, str) else None


def judge_gate(recipe: Recipe, cached: Path | None) -> Line | None:
    """FAIL for a gated model that is not here and no token to fetch it."""
    try:
        gated = find_shape(recipe.model.id).gated
    except LabError:
        return None
    if not gated:
        return None
    if cached or find_token():
        return Line("OK", "licence", "gated; a token or a copy is here")
    return Line(
        "FAIL",
        "licence",
        f"{recipe.model.id} is gated and no token of the hub is set. Do "
        "this: accept its licence on its page and run 'hf auth login', or "
        "choose an ungated tier (t4, t4-r1).",
    )


def judge_tokenizer(recipe: Recipe, path: Path) -> Line:
    """Template, BOS, end token and marks, on the real tokenizer."""
    template = recipe.data.prompt_template

    def check() -> Any:
        revision = recipe.model.revision if not path.is_dir() else None
        return check_template(load_tokenizer(path, revision), template)

    return try_guard(
        "tokenizer",
        check,
        f"template '{template}', one BOS, the end token and marks survive",
    )
