"""The problem sets: are they here, or will they be fetched?"""

from __future__ import annotations

from helpers.base import LabError, Recipe, resolve_data
from helpers.doctor import Line
from helpers.machine import Machine
from helpers.preflight.lines import blame
from helpers.preflight.model import is_offline
from helpers.problems import GYM_PREFIX, SOURCES, find_copy, find_source
from helpers.stages import list_against


def judge_inputs(recipe: Recipe, machine: Machine) -> list[Line]:
    """Training, dev and benchmark sets, one line each that is not here.

    Worked solutions come from sets of their own, which must not overlap with
    others.
    """
    names = [recipe.data.train, recipe.data.dev]
    names += [b.path for b in recipe.evaluate.benchmarks]
    if recipe.solutions:
        names += [*recipe.solutions.mix, *list_against(recipe)]
    lines = [judge_set(name) for name in dict.fromkeys(names)]
    bad = [line for line in lines if line.status != "OK"]
    here = len(lines) - len(bad)
    return [Line("OK", "problem sets", f"{here} are here"), *bad]


def judge_set(name: str) -> Line:
    """One set: a file, a local copy, a generator, or the hub."""
    title = f"problem set {name}"
    if name not in SOURCES and not name.startswith(GYM_PREFIX):
        if resolve_data(name).is_file():
            return Line("OK", title, "a file")
        text = f"there is no {resolve_data(name)}. Do this: check the path."
        return Line("FAIL", title, text)
    try:
        source = find_source(name)
    except LabError as error:
        return blame(title, error)
    if name.startswith(GYM_PREFIX):
        return Line("OK", title, "made on the spot")
    if any(path.is_file() for path in find_copy(source)):
        return Line("OK", title, "a local copy")
    copy = f"put a copy named {name}.jsonl into MATHSLM_DATA_DIR"
    if is_offline():
        text = (
            "not here, and the hub is not asked (no network, or "
            f"HF_HUB_OFFLINE). Do this: {copy}, or"
        )
        return Line("WARN", title, f"{text} fill the cache while connected.")
    text = f"comes from the hub ({source.hub_id}); without one: {copy}"
    return Line("WARN", title, text)
