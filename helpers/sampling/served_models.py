"""Which of the models that a server offers is the one we mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.base import LabError, Recipe
from helpers.models import find_base
from helpers.sampling.placement import ADAPTER_NAME


def choose_model(
    cards: Sequence[dict[str, Any]],
    url: str,
    recipe: Recipe,
    path: Path,
    adapter: str | Path | None,
) -> tuple[str, int | None]:
    """The served name of our model, and its longest sequence if told.

    A model is ours when its name, or the folder it was loaded from, is the
    path, or for the recipe's base ends in ``model.id``; of a hub id the last
    part will do. An adapter is found by its folder, or as ``adapter``.

    Raises:
        LabError: the server offers no such model.
    """
    wanted = _names_of_adapter(adapter) if adapter else _names(path)
    ends = _ends(recipe, path) if adapter is None else ()
    for card in cards:
        offered = [_plain(str(card["id"])), _plain(str(card.get("root")))]
        if any(name in wanted or name.endswith(ends) for name in offered):
            length = card.get("max_model_len") or _length_of(cards, card)
            return str(card["id"]), length
    what = f"adapter {adapter}" if adapter else f"model {path}"
    raise LabError(
        f"{url} does not serve the {what}; it serves: "
        + (", ".join(str(card["id"]) for card in cards) or "nothing"),
        why="samples of another model would be taken for this one's",
        fix="start it with --served-model-name "
        f"{ADAPTER_NAME if adapter else path}, or leave engine.url out",
    )


def is_base(recipe: Recipe, path: Path) -> bool:
    """Whether ``path`` is the recipe's base model."""
    base = find_base(recipe)
    return path in (base, base.resolve() if base.is_dir() else base)


def _names(path: Path) -> set[str]:
    names = {str(path), path.as_posix()}
    if path.is_dir():
        names.add(path.resolve().as_posix())
    return {_plain(name) for name in names}


def _ends(recipe: Recipe, path: Path) -> tuple[str, ...]:
    """What the base may be called on another machine."""
    if not is_base(recipe, path):
        return ()
    name = recipe.model.id
    # "model" would be too little to tell; "Qwen2.5-Math-7B" is enough.
    last = () if path.is_dir() else (Path(name).name,)
    return tuple(_plain(part) for part in (name, *last))


def _names_of_adapter(adapter: str | Path) -> set[str]:
    folder = Path(adapter)
    names = (str(adapter), folder.resolve().as_posix(), ADAPTER_NAME)
    return {_plain(name) for name in names}


def _plain(name: str) -> str:
    """In lower case, with one slash before and none behind."""
    return "/" + name.strip("/").casefold()


def _length_of(
    cards: Sequence[dict[str, Any]], card: dict[str, Any]
) -> int | None:
    """An adapter's card may name its base instead of a length."""
    parent = card.get("parent")
    for other in cards:
        if other["id"] == parent:
            return other.get("max_model_len")
    return None
