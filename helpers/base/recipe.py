"""Recipes: one YAML file per hardware tier holds everything a run depends on.

``load_recipe("pocket")`` reads ``helpers/recipes/pocket.yaml``;
``load_recipe("my.yaml")`` reads a file of yours;
``overrides=("sft.learning_rate=1e-4",)`` changes single values. Unknown keys
and wrong types are refused with one message, in milliseconds and without
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from helpers.base.errors import LabError, did_you_mean
from helpers.base.recipe_schema import Recipe

RECIPE_DIR = Path(__file__).resolve().parents[1] / "recipes"


def list_recipes() -> list[str]:
    """Names of the shipped recipes, e.g. ``["pocket", …]``."""
    return sorted(p.stem for p in RECIPE_DIR.glob("*.yaml"))


def load_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = ()
) -> Recipe:
    """Load a shipped tier by name or a recipe file by path.

    Args:
        name_or_path: ``"pocket"`` or a path that ends in ``.yaml``/``.yml``.
        overrides: ``("section.key=value", …)``; values are read as YAML.

    Raises:
        LabError: unknown tier, unreadable file, unknown key, wrong type.
    """
    path = _find_recipe(name_or_path)
    raw = _read_yaml(path)
    if "extends" in raw:
        parent = _read_yaml(_find_recipe(raw.pop("extends")))
        raw = _merge(parent, raw)
    for text in overrides:
        _apply_override(raw, text)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, path) from None


def is_file_name(name_or_path: str | Path) -> bool:
    """True for the path of a recipe file, False for a tier's name."""
    return str(name_or_path).endswith((".yaml", ".yml"))


def _find_recipe(name_or_path: str | Path) -> Path:
    if is_file_name(name_or_path):
        path = Path(name_or_path)
        if not path.is_file():
            raise LabError(
                f"No recipe file at {path}.",
                fix="check the path, or name a tier: "
                + ", ".join(list_recipes()),
            )
        return path
    text = str(name_or_path)
    path = RECIPE_DIR / f"{text}.yaml"
    if not path.is_file():
        raise LabError(
            f"There is no tier '{text}'.{did_you_mean(text, list_recipes())}",
            fix="choose one of: " + ", ".join(list_recipes()),
        )
    return path


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise LabError(
            f"Cannot read the recipe {path}: {error}",
            fix="it must be a UTF-8 YAML file of sections and keys",
        ) from None
    if not isinstance(raw, dict):
        raise LabError(
            f"The recipe {path} is not a mapping of sections.",
            fix="start from a copy of helpers/recipes/pocket.yaml",
        )
    return raw


def _merge(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Child values win; mappings are merged key by key, lists replaced."""
    out = dict(parent)
    for key, value in child.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = _merge(out[key], value)
        else:
            out[key] = value
    return out


def _apply_override(raw: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise LabError(
            f"Cannot read the override '{text}'.",
            why="an override is section.key=value",
            fix="for example --set sft.learning_rate=1e-4",
        )
    *parents, last = key.strip().split(".")
    node = raw
    for name in parents:
        if not isinstance(node.setdefault(name, {}), dict):
            raise LabError(f"'{name}' in the override '{text}' is no section.")
        node = node[name]
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        node[last] = value


def _explain(error: ValidationError, path: Path) -> LabError:
    """Turn pydantic's report into one message that names key and remedy."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _known_keys(item["loc"][:-1])
            hint = did_you_mean(str(item["loc"][-1]), known)
            lines.append(f"unknown key '{where}'.{hint}")
        elif item["type"] == "missing":
            lines.append(f"missing key '{where}'")
        else:
            got = f" (got {item['input']!r})"
            lines.append(f"'{where}': {item['msg']}{got}")
    return LabError(
        f"The recipe {path.name} cannot be used:\n  - " + "\n  - ".join(lines),
        fix="mend the key in the file or in --set; the keys and their types "
        "are in helpers/base/recipe_schema.py",
    )


def _known_keys(loc: Sequence[str | int]) -> list[str]:
    model: Any = Recipe
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        if field is None:
            return []
        model = field.annotation
        for inner in getattr(model, "__args__", ()):
            if hasattr(inner, "model_fields"):
                model = inner
    return list(getattr(model, "model_fields", {}))
