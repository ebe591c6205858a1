"""Record a finished run, and take it back: what replay works from.

``record_run`` packs what a run has made into ``data/measured/<tier>/run``:
completions (samples are gzipped), harvest, adapters, logs, evaluations,
metrics, the ledger, what the notebooks showed, the tokenizer, and
``record.json`` with the SHA-256 of every file. Merged weights are not kept:
they are made again from the adapter, and replay needs none. Of an adapter,
files over ``HEAVY`` bytes are listed only; such a record serves replay alone.

Each completion of a record has the verdict of the day (``extracted``,
``correct``). Nobody reads scores from it, since readers grade; it shows when
a later grader judges differently.

``take_stage`` copies one recorded stage into a run folder, and checks its
hashes. What a stage sampled comes with the stamp beside it, which says what
the lines were drawn from: without it nobody could draw more of them.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.base import (
    Completion,
    LabError,
    Recipe,
    RunDir,
    disk_errors,
    fits,
    iter_records,
    make_note,
    read_json,
    record_folder,
    stage_file,
    write_json,
)
from helpers.grading import grade_completions

INDEX = "record.json"
VALUES = "values.json"
TOKENIZER = "tokenizer"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
ALWAYS = ("recipe.yaml", "manifest.json", "metrics.json", "ledger.json")
PACKED = ".gz"
PARTIAL = ".partial"  # a file that is still being written
HEAVY = 3 << 20  # bytes


# --- record ------------------------------------------------------------------


def record_run(
    run: RunDir, stages: Sequence[str], out: Path | None = None
) -> Path:
    """Pack a finished run for replay.

    Args:
        stages: what must be there; merges give their fidelity only. Other
            finished stages of the folder are packed too.
        out: the folder to write; default: the tier's place in ``data/``.

    Returns:
        The folder, replaced as a whole once everything is in it.

    Raises:
        LabError: a stage is not finished, or was itself taken from a
            record; or ``out`` holds something else than a record.
    """
    found = [read_json(p) for p in run.file("stages").glob("*.json")]
    _require_own(run, found)
    missing = [s for s in stages if not stage_file(run.path, s).is_file()]
    if missing:
        raise LabError(
            f"{run.label} has not finished: {', '.join(missing)}.",
            why="every notebook of the course replays a record",
            fix="run mathslm course into that folder first",
        )
    stages = [*stages, *sorted({one["stage"] for one in found} - {*stages})]
    place = record_folder(run.recipe.name)
    out = out or place
    _require_free(out)
    timings = run.file("notebooks", "timings.json")
    extra = [timings] if timings.is_file() else []
    beside = out.resolve() == place.resolve()
    with disk_errors(out):
        _fill(run, stages, out, [] if beside else extra)
        for file in extra if beside else []:
            shutil.copy2(file, out.parent)
    return out


def _require_own(run: RunDir, found: Iterable[Mapping[str, Any]]) -> None:
    """A record of a replay would pass for what this machine computed."""
    replayed = sorted(one["stage"] for one in found if one.get("recorded"))
    if replayed:
        raise LabError(
            f"{run.label} holds replayed stages: {', '.join(replayed)}.",
            why="a record says when and on which machine all of it was made",
            fix="run mathslm course -p RUN_MODE=run into a new run folder, "
            "and record that one",
        )


def _require_free(out: Path) -> None:
    """Only an earlier record is replaced: other folders are not ours."""
    if not out.exists() or (out / INDEX).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise LabError(
            f"{out} lies there and holds no {INDEX}.",
            why="a record replaces its folder as a whole",
            fix="name a folder that is empty or not there yet",
        )


def _fill(
    run: RunDir, stages: Sequence[str], out: Path, extra: Sequence[Path]
) -> None:
    """Write all of a record under another name, then put it in place."""
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".record-") as work:
        target, left_out = Path(work) / out.absolute().name, {}
        for name in [*ALWAYS, *_list_files(run, stages)]:
            if is_heavy(run.file(name)):
                left_out[name] = _hash(run.file(name))
            else:
                _pack(run.path, name, target)
        for file in extra:
            shutil.copy2(file, target)
        _copy_tokenizer(run.recipe, target / TOKENIZER)
        _write_index(target, left_out)
        shutil.rmtree(out, ignore_errors=True)
        target.rename(out.absolute())


def _list_files(run: RunDir, stages: Sequence[str]) -> list[str]:
    """Files to keep, relative to the run folder."""
    names = [VALUES] if run.file(VALUES).is_file() else []
    for stage in stages:
        record = stage_file(run.path, stage)
        outputs = read_json(record)["outputs"]
        if stage.startswith("merge/"):
            outputs = [o for o in outputs if o.endswith("fidelity.json")]
        else:
            names.append(record.relative_to(run.path).as_posix())
        for output in outputs:
            path = run.file(output)
            found = sorted(path.rglob("*")) if path.is_dir() else [path]
            names += [
                file.relative_to(run.path).as_posix()
                for file in (*found, run.file(stamp_name(output)))
                if file.is_file()
            ]
    return list(dict.fromkeys(names))


def stamp_name(name: str) -> str:
    """The stamp beside a samples file: what its lines were drawn from."""
    return Path(name).with_suffix(".inputs.json").as_posix()


def is_heavy(file: Path) -> bool:
    """True for a part of an adapter that is too large for a record."""
    return file.parent.name == "adapter" and file.stat().st_size > HEAVY


def _pack(source: Path, name: str, target: Path) -> None:
    """Copy one file; samples are gzipped, the same bytes every time."""
    place = target / name
    place.parent.mkdir(parents=True, exist_ok=True)
    data = (source / name).read_bytes()
    if name.startswith(("samples/", "eval/")) and name.endswith(".jsonl"):
        data = add_grades(source / name)
    if name.startswith("samples/"):
        place = place.with_name(place.name + PACKED)
        data = gzip.compress(data, mtime=0)
    place.write_bytes(data)


def add_grades(path: Path) -> bytes:
    """The lines of a completions file, each with today's verdict.

    Raises:
        LabError: a line is damaged or has no reference answer.
    """
    fields = {*Completion.model_fields, "extracted", "correct"}
    rows = grade_completions(iter_records(path, Completion))
    lines = (row.model_dump_json(include=fields) + "\n" for row in rows)
    return "".join(lines).encode()


def _copy_tokenizer(recipe: Recipe, target: Path) -> None:
    """The tokenizer, so that a replay can count tokens without the model."""
    from helpers.models import find_base

    base = find_base(recipe)
    target.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copy2(base / name, target / name)


def _write_index(folder: Path, left_out: Mapping[str, str]) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    write_json(
        folder / INDEX,
        {
            "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
            "sha256": {
                path.relative_to(folder).as_posix(): _hash(path)
                for path in files
            },
            "left_out": dict(left_out),
        },
    )


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- take back ---------------------------------------------------------------


def take_stage(run: RunDir, stage: str, *, replay: bool = False) -> bool:
    """Copy a stage from the tier's record when its settings are ours.

    Not over work that was begun here: that is gone on with instead. What an
    interrupted take left is no such work. Not from a record without all its
    files either, unless for a replay.

    Raises:
        LabError: a recorded file is not what its hash says.
    """
    source = record_folder(run.recipe.name)
    record_file = stage_file(source, stage)
    if stage_file(run.path, stage).is_file():
        return True
    if not record_file.is_file() or not fits(source, run.recipe):
        return False
    if read_json(source / INDEX).get("left_out") and not replay:
        return False
    record = read_json(record_file)
    files = read_recorded(source, record["outputs"])
    if _is_begun(run, record["outputs"], files):
        return False
    with disk_errors(run.path):
        for name, data in files.items():
            _write_whole(run.file(name), data)
    metrics = read_json(source / "metrics.json")
    everything = run.metrics() | {stage: metrics[stage]}
    write_json(run.file("metrics.json"), everything)
    record["recorded"] = make_note(read_json(source / "manifest.json"))
    write_json(stage_file(run.path, stage), record)
    run.save_recipe()
    return True


def _is_begun(
    run: RunDir, outputs: Sequence[str], files: Mapping[str, bytes]
) -> bool:
    """True when an output holds anything that is not the record's own."""
    for output in outputs:
        path = run.file(output)
        for file in path.rglob("*") if path.is_dir() else [path]:
            name = file.relative_to(run.path).as_posix()
            if not file.is_file() or file.suffix == PARTIAL:
                continue
            if name not in files or file.read_bytes() != files[name]:
                return True
    return False


def _write_whole(place: Path, data: bytes) -> None:
    """All or nothing, so that a killed take leaves no half of a file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + PARTIAL)
    part.write_bytes(data)
    os.replace(part, place)


def read_recorded(source: Path, outputs: Sequence[str]) -> dict[str, bytes]:
    """The files of a stage by their names in a run, unpacked.

    A stamp comes before its samples: these are never there without it.

    Raises:
        LabError: a file is not what its hash says.
    """
    listed: dict[str, str] = read_json(source / INDEX)["sha256"]
    wanted = [part for name in outputs for part in (stamp_name(name), name)]
    files = {}
    for name in wanted:
        for file in listed:
            if file in (name, name + PACKED) or file.startswith(f"{name}/"):
                data = _read_whole(source, file, listed[file])
                files[file.removesuffix(PACKED)] = data
    return files


def _read_whole(source: Path, file: str, digest: str) -> bytes:
    path = source / file
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != digest:
        raise LabError(
            f"The recorded file {file} is damaged.",
            why=f"its SHA-256 is not the one in {INDEX}",
            fix="check the record out again",
        )
    return gzip.decompress(data) if file.endswith(PACKED) else data
