"""Which commit of a hub data set is read: the pinned one, or the one kept.

A set without a pinned commit is read at the hub's newest one the first time,
and at that same commit ever after on this machine, so that two runs of a week
apart see the same problems. The commit is part of every stage's stamp.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from helpers.base import (
    LabError,
    read_json,
    use_cache_when_unreachable,
    write_json,
)
from helpers.problems.registry import Source

PATIENCE_S = 10.0


def kept_file() -> Path:
    """Where the commits are kept: in the user's cache folder."""
    import platformdirs

    cache = platformdirs.user_cache_path("math-slm-lab", False)
    return cache / "revisions.json"


def find_kept(source: Source) -> dict[str, str] | None:
    """``commit`` and ``since`` (a date) of a set that was read before.

    Raises:
        LabError: the file of kept commits is damaged.
    """
    return _read_kept().get(source.hub_id)


def find_revision(source: Source) -> str | None:
    """The commit to read; asks the hub once for a set without a pinned one.

    Returns:
        None for a set that is not on the hub, and where the hub cannot say:
        then ``datasets`` reads what its cache holds, or says what is wrong.
    """
    if source.revision or not source.hub_id:
        return source.revision
    if found := find_kept(source):
        return found["commit"]
    if use_cache_when_unreachable():
        return None
    commit = _ask_hub(source.hub_id)
    if commit:
        kept = {"commit": commit, "since": date.today().isoformat()}
        write_json(kept_file(), {**_read_kept(), source.hub_id: kept})
    return commit


def _ask_hub(hub_id: str) -> str | None:
    """The hub's newest commit; None when it gives none."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(hub_id, timeout=PATIENCE_S).sha
    except Exception:  # hub, network: each has its own; loading will say
        return None


def _read_kept() -> dict[str, Any]:
    """``{hub id: {"commit": …, "since": …}}``; empty before the first."""
    path = kept_file()
    if not path.is_file():
        return {}
    kept = read_json(path)
    if isinstance(kept, dict) and all(
        isinstance(entry, dict) and {"commit", "since"} <= entry.keys()
        for entry in kept.values()
    ):
        return kept
    raise LabError(
        f"{path} does not hold the commits of data sets.",
        fix="delete it; the newest commits are kept from then on",
    )
