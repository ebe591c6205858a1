"""Rows of a source: from a local copy, the hub, or a generator.

``datasets`` reads, caches and streams. ``MATHSLM_DATA_DIR`` names a folder of
local copies that is looked in first: ``<name>.jsonl``, ``.json`` or
``.parquet``, or a folder ``<name>`` of such files.

A set without a pinned commit is read at the hub's newest one the first time,
and at that same commit ever after on this machine, so that two runs of a week
apart see the same problems. The commit is part of every stage's inputs.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from helpers.base import (
    LabError,
    hash_file,
    name_folder,
    read_json,
    resolve_data,
    use_cache_when_unreachable,
    write_json,
)
from helpers.problems.sources import GYM_PREFIX, SOURCES, Source, find_source

KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
BUFFER = 10_000  # rows that a stream is shuffled in
GYM_ROWS = 500  # when nobody says how many
ROW = "_row"  # place of a row in its source, before shuffling

Row = dict[str, Any]


@dataclass
class Opened:
    """An opened source: its rows, and where they come from."""

    rows: Iterable[Row]
    where: str
    columns: list[str]
    total: int | None


def find_copy(source: Source) -> list[Path]:
    """Files of a local copy of the source; empty when there is none."""
    if source.file:
        return [resolve_data(source.file)]
    folder = os.environ.get("MATHSLM_DATA_DIR")
    if not folder:
        return []
    for stem in (source.name, *source.copies):
        base = Path(folder) / stem
        for suffix in KINDS:
            if base.with_name(base.name + suffix).is_file():
                return [base.with_name(base.name + suffix)]
        if base.is_dir():
            files = sorted(p for p in base.iterdir() if p.suffix in KINDS)
            if files:
                return [p for p in files if p.suffix == files[0].suffix]
    return []


def is_local(name: str) -> bool:
    """Whether this set can be loaded without the hub.

    False only for a registered set without a local copy; whether a file is
    there, and right, is found out by loading it.
    """
    source = SOURCES.get(name)
    return (
        source is None
        or name.startswith(GYM_PREFIX)
        or bool(find_copy(source))
    )


def open_source(
    source: Source, seed: int | None = None, n: int | None = None
) -> Opened:
    """Open a source; with a ``seed`` its rows come shuffled.

    A stream is shuffled within a buffer of ``BUFFER`` rows. Every row gets
    its place in the source under ``_row``. ``n`` is only a hint, for sources
    that make their rows.

    Raises:
        LabError: it cannot be read, or lacks the columns it should have.
    """
    if source.name.startswith(GYM_PREFIX):
        return _make_rows(source, seed, n or GYM_ROWS)
    files = find_copy(source)
    if files:
        data = _load_files(source, files)
        where = ", ".join(name_folder(path) for path in files)
    else:
        revision = find_revision(source)
        data = _load_hub(source, revision)
        where = f"{source.hub_id}@{(revision or 'newest')[:12]}"
    columns = list(data.column_names or next(iter(data.take(1)), {}))
    _check_columns(source, columns, where)
    wanted = [c for c in (*source.columns, "images") if c in columns]
    if source.hub_id and not files:
        # pictures are megabytes: never decoded where only text is read
        wanted = [c for c in wanted if c != "images"]
    data = data.select_columns(wanted)
    total = len(data) if hasattr(data, "__len__") else None
    return Opened(_guard(source, _walk(data, seed)), where, columns, total)


def _check_columns(source: Source, columns: list[str], where: str) -> None:
    """LabError when the schema is not the one this kit was written for."""
    missing = [name for name in source.needed if name not in columns]
    golds = [field for field, _ in source.golds]
    if not any(field in columns for field in golds):
        missing.append(" or ".join(golds))
    if missing:
        raise LabError(
            f"{source.name}: the schema of {where} has changed: there is no "
            f"column {', '.join(missing)}.",
            why="it has " + (", ".join(sorted(columns)) or "no columns"),
            fix="pin the revision whose columns are "
            f"{', '.join(source.columns)}, or put a copy with them into "
            "MATHSLM_DATA_DIR",
        )


def _load_files(source: Source, files: list[Path]) -> Any:
    """A local copy as one table."""
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise LabError(
            f"There is no file {missing[0]}.",
            fix="check the path, or run the stage that writes it",
        )
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()  # ours is shown instead
    names = [str(path) for path in files]
    try:
        return load_dataset(
            KINDS.get(files[0].suffix, "json"), data_files=names, split="train"
        )
    except Exception as error:  # pyarrow, json, pandas: each has its own
        raise LabError(
            f"{source.name}: {names[0]} cannot be read: {_root(error)}",
            fix="it must be JSON lines, one JSON list of objects, or parquet",
        ) from error


def _load_hub(source: Source, revision: str | None) -> Any:
    """One commit of a hub data set; several configs are joined."""
    use_cache_when_unreachable()
    from datasets import concatenate_datasets, load_dataset

    options: Row = {"split": source.split, "revision": revision}
    options["streaming"] = source.stream
    try:
        parts = [
            load_dataset(source.hub_id, config, **options)
            for config in source.configs or (None,)
        ]
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    except Exception as error:  # hub, network, disk: each has its own
        raise LabError(
            f"{source.name}: {source.hub_id} cannot be loaded: {_root(error)}",
            why="the hub cannot be reached, or the data set is gone",
            fix=f"connect, or put a copy named {source.name}.jsonl (or .json "
            "or .parquet) into a folder and set MATHSLM_DATA_DIR to it",
        ) from error


def _guard(source: Source, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; an error between two of them becomes a LabError."""
    try:
        yield from rows
    except Exception as error:  # a stream may break, a file be damaged
        raise LabError(
            f"{source.name}: reading stopped: {_root(error)}",
            fix="run it again; what was downloaded is kept in the cache",
        ) from error


def _root(error: BaseException) -> str:
    """The first cause of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


def _walk(data: Any, seed: int | None) -> Iterator[Row]:
    """Rows in order, or shuffled; each knows its place in the source."""
    if hasattr(data, "__len__"):
        order: Iterable[int] = range(len(data))
        if seed is not None:
            import numpy as np

            order = np.random.default_rng(seed).permutation(len(data))
            data = data.select(order)
        for place, row in zip(order, data, strict=True):
            yield {**row, ROW: int(place)}
        return
    data = data.map(lambda row, i: {**row, ROW: i}, with_indices=True)
    if seed is not None:
        data = data.shuffle(seed=seed, buffer_size=BUFFER)
    yield from data


def _make_rows(source: Source, seed: int | None, n: int) -> Opened:
    """Problems of a reasoning-gym family, made one by one as they are read.

    Ten times as many as asked for at most: small families make duplicates,
    and those of GSM8K's templates overlap with its test set.
    """
    try:
        from reasoning_gym.factory import create_dataset
    except ImportError:
        raise LabError(
            f"{source.name} needs reasoning-gym, which is not installed.",
            fix='python -m pip install "reasoning-gym>=0.1.25"',
        ) from None
    family = source.name.removeprefix(GYM_PREFIX)
    size = 10 * n + 10
    made = create_dataset(family, size=size, seed=seed or 0)
    rows = (
        {
            "question": item["question"],
            "answer": item["answer"],
            # only gsm_symbolic works its problems out
            "solution": item["metadata"].get("answer_cot"),
            ROW: i,
        }
        for i, item in enumerate(made)
    )
    where = f"reasoning-gym, seed {seed or 0}"
    return Opened(rows, where, ["question", "answer", "solution"], size)


def hash_problems(name: str) -> str:
    """What tells one state of a problem set from another.

    The hash of its file or local copy; else the commit on the hub, or the
    version of what makes the problems.

    Raises:
        LabError: no such set or file.
    """
    named = name in SOURCES or not {"/", "\\", "."} & set(name)
    source = find_source(name) if named else Source(name, file=name)
    if source.name.startswith(GYM_PREFIX):
        version = importlib.metadata.version("reasoning-gym")
        return f"{source.name} {version}"
    files = find_copy(source)
    if not files:
        return f"{source.hub_id}@{find_revision(source) or 'newest'}"
    return " ".join(hash_file(path) for path in files)


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
