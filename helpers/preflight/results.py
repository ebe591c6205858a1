"""The run folder: can it be written, is there room, would it mix?"""

from __future__ import annotations

from pathlib import Path

from helpers.base import (
    LabError,
    Recipe,
    RunDir,
    check_same_inputs,
    check_space,
    require_writable,
)
from helpers.doctor import Line
from helpers.machine import Machine
from helpers.models import MODEL_FILE, fix_model
from helpers.planner import estimate_run_space, estimate_space
from helpers.preflight.earlier import list_changed
from helpers.preflight.lines import blame, try_guard
from helpers.preflight.model import find_cached


def judge_results(
    recipe: Recipe, folder: Path, machine: Machine, *, force: bool
) -> list[Line]:
    """Writable, enough room, and nothing there that would be replaced."""
    return [
        judge_output(folder),
        judge_room(recipe, folder, machine),
        *judge_earlier(recipe, folder, force),
    ]


def judge_output(folder: Path) -> Line:
    """Whether the run folder is there, or can be made, and written."""
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    made = "is there" if nearest == folder.absolute() else "can be made"
    return try_guard(
        "output",
        lambda: require_writable(nearest),
        f"{folder} {made} and written",
    )


def judge_room(recipe: Recipe, folder: Path, machine: Machine) -> Line:
    """The disk against what this recipe writes, and fetches."""
    need = estimate_run_space(recipe)
    text = f"a run writes up to {need:,} MB"
    if "/" in recipe.model.id and not _is_here(recipe):
        fetched = estimate_space(recipe, "merge")
        need += fetched
        text += f", the model to fetch has {fetched:,} MB"
    have = machine.disk_gib * 1024
    return try_guard(
        "disk",
        lambda: check_space(str(folder), have, need),
        f"{text}; {have:,.0f} MB are free",
    )


def _is_here(recipe: Recipe) -> bool:
    from helpers.models import find_base

    try:
        return find_base(recipe).is_dir() or find_cached(recipe) is not None
    except LabError:
        return True  # a missing folder is another line's matter


def judge_earlier(recipe: Recipe, folder: Path, force: bool) -> list[Line]:
    """Results of another recipe in the folder; empty when it is new."""
    if not (folder / "recipe.yaml").is_file():
        if folder.is_dir() and any(folder.iterdir()):
            text = f"{folder} is not empty and holds no recipe.yaml. Do this: "
            return [Line("FAIL", "results", text + "choose another --run-dir")]
        return [Line("OK", "results", "none there yet")]
    run = RunDir(folder, recipe)
    try:
        run.check_same_recipe()
        settled = recipe
        if run.file(MODEL_FILE).is_file():  # the stages stored hashes of that
            settled = fix_model(recipe, run)
        changed = list_changed(settled, run)
    except LabError as error:
        return [blame("results", error)]
    if changed and force:
        text = f"{', '.join(changed)} will be set aside (--force)"
        return [Line("WARN", "results", text)]
    return [
        try_guard(
            "results",
            lambda: [
                check_same_inputs(str(folder), name, ["recipe"])
                for name in changed
            ],
            "those that are there are of this recipe",
        )
    ]
