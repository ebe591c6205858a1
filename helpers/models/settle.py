"""What a run leaves to the machine is settled once, and kept.

``dtype: auto`` and the memory ladder depend on the machine. The first stage
of a run finds out, writes ``model.json`` into the run folder, and every later
stage, also after a restart or on another machine, works with the same
weights in the same format. So two halves of a run never mix two models.
"""

from __future__ import annotations

from dataclasses import asdict

from helpers.base import (
    LabError,
    Recipe,
    RunDir,
    read_json,
    world_size,
    write_json,
)
from helpers.models.ladder import Rung, apply_rung, free_memory
from helpers.models.precision import resolve_dtype

SETTLED = "model.json"


def settle_model(recipe: Recipe, run: RunDir, check: bool = False) -> Recipe:
    """The recipe with dtype and rung fixed for this run.

    Recipes that fix both themselves come back as they are. A ladder is
    walked by loading the base model, once in the life of a run; a ``check``
    loads nothing, and takes what is found out already.

    Raises:
        LabError: no rung holds; the file was made for another recipe; a
            ladder is to be walked by several processes at once.
    """
    if recipe.model.dtype != "auto" and not recipe.model.ladder:
        return recipe
    asked = recipe.model.model_dump(mode="json")
    path = run.file(SETTLED)
    if check and not path.is_file():
        return recipe
    if not path.is_file():
        write_json(path, {"asked": asked} | _find_out(recipe))
    stored = read_json(path)
    if stored["asked"] != asked:
        raise LabError(
            f"{path} was settled for other settings of the model.",
            why="the run holds results of those",
            fix="choose another --run-dir",
        )
    return apply_settled(recipe, stored)


def apply_settled(recipe: Recipe, stored: dict) -> Recipe:
    """The recipe as ``model.json`` says."""
    changes = {name: stored[name] for name in ("dtype", "dtype_reason")}
    model = recipe.model.model_copy(update=changes)
    recipe = recipe.model_copy(update={"model": model})
    return apply_rung(recipe, Rung(**stored["rung"]))


def _find_out(recipe: Recipe) -> dict:
    """dtype, its reason, the rung and what each rung cost."""
    from helpers.models.load import climb

    recipe = resolve_dtype(recipe)
    config = recipe.model
    found = {"dtype": config.dtype, "dtype_reason": config.dtype_reason}
    print(f"settled for this run: {config.dtype}, {config.dtype_reason}")
    if not config.ladder:
        rung = Rung(config.dtype, config.quantization, bool(config.offload))
        return found | {"rung": asdict(rung), "attempts": []}
    if world_size() > 1:
        raise LabError(
            "The memory ladder is for one process.",
            why="every process would go down on its own",
            fix="set model.ladder=false and the quantization that fits; "
            "mathslm plan says which",
        )
    way = climb(recipe, training=True)
    way.loaded = None
    free_memory()
    print(f"settled for this run: {way.rung}")
    return found | way.as_dict()
