"""Record a finished run, and take it back: what replay works from.

``record_run`` packs what a run has made into ``data/measured/<tier>/run``:
graded completions (gzipped), harvest, adapters, logs, evaluations, metrics,
the ledger, the values that the notebooks showed, the tokenizer, and
``record.json`` with the SHA-256 of every file. Merged weights are not kept:
where they are needed they are made again from the adapter, and replay needs
none. Of an adapter, files over ``HEAVY`` bytes are listed only; a record that
lacks some serves replay, and nothing is computed further from it.

``take_stage`` copies one recorded stage into a run folder, and checks its
hashes; ``Values`` keeps what a notebook computed with a model, so that the
same cell can show it where there is no model.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from helpers.errors import LabError
from helpers.recipes import Recipe, load_recipe
from helpers.records import disk_errors, read_json, write_json
from helpers.runs import DATA_DIR, RunDir

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
HEAVY = 3 << 20  # bytes


def record_folder(tier: str) -> Path:
    """Where the recorded run of a tier lies."""
    return DATA_DIR / "measured" / tier / "run"


def stage_file(folder: Path, stage: str) -> Path:
    """The record of a finished stage in a run folder."""
    return folder / "stages" / f"{stage.replace('/', '-')}.json"


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
        LabError: a stage is not finished.
    """
    missing = [s for s in stages if not stage_file(run.path, s).is_file()]
    if missing:
        raise LabError(
            f"{run.label} has not finished: {', '.join(missing)}.",
            why="a record is replayed by every notebook of the course",
            fix="run mathslm course into that folder first",
        )
    found = [read_json(p)["stage"] for p in run.file("stages").glob("*.json")]
    stages = [*stages, *sorted(set(found) - set(stages))]
    out = out or record_folder(run.recipe.name)
    target = out.with_name(out.name + ".partial")
    with disk_errors(out):
        shutil.rmtree(target, ignore_errors=True)
        left_out = {}
        for name in [*ALWAYS, *_list_files(run, stages)]:
            if is_heavy(run.file(name)):
                left_out[name] = _hash(run.file(name))
            else:
                _pack(run.path, name, target)
        _copy_tokenizer(run.recipe, target / TOKENIZER)
        _write_index(target, left_out)
        shutil.rmtree(out, ignore_errors=True)
        target.rename(out)
    timings = run.file("notebooks", "timings.json")
    if timings.is_file():
        shutil.copy2(timings, out.parent / "timings.json")
    return out


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
                for file in found
                if file.is_file()
            ]
    return list(dict.fromkeys(names))


def is_heavy(file: Path) -> bool:
    """True for a part of an adapter that is too large for a record."""
    return file.parent.name == "adapter" and file.stat().st_size > HEAVY


def _pack(source: Path, name: str, target: Path) -> None:
    """Copy one file; sampled completions are gzipped, the same every time."""
    place = target / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if not name.startswith("samples/"):
        shutil.copy2(source / name, place)
        return
    data = gzip.compress((source / name).read_bytes(), mtime=0)
    place.with_name(place.name + PACKED).write_bytes(data)


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


def check_record(folder: Path) -> list[str]:
    """What is wrong with a record: files missing, changed or unlisted."""
    listed: dict[str, str] = read_json(folder / INDEX)["sha256"]
    there = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != INDEX
    }
    faults = [f"{name}: not in {INDEX}" for name in there - set(listed)]
    for name, digest in listed.items():
        if name not in there:
            faults.append(f"{name}: missing")
        elif _hash(folder / name) != digest:
            faults.append(f"{name}: changed")
    return sorted(faults)


# --- take back ---------------------------------------------------------------


def take_stage(run: RunDir, stage: str, *, replay: bool = False) -> bool:
    """Copy a stage from the tier's record when its settings are ours.

    Not over work that was begun here: that is gone on with instead. Not from
    a record without all its files either, unless for a replay.

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
    if any(run.file(name).exists() for name in record["outputs"]):
        return False
    manifest = read_json(source / "manifest.json")
    with disk_errors(run.path):
        for name in record["outputs"]:
            unpack(source, name, run.path)
    metrics = read_json(source / "metrics.json")
    everything = run.metrics() | {stage: metrics[stage]}
    write_json(run.file("metrics.json"), everything)
    record["recorded"] = {
        "date": manifest["created"][:10],
        "machine": describe_computer(manifest),
    }
    write_json(stage_file(run.path, stage), record)
    run.save_recipe()
    return True


def describe_computer(manifest: Mapping[str, Any]) -> str:
    """The processor and its cores."""
    return f"{manifest['processor']}, {manifest['cores']} cores"


def describe_record(manifest: Mapping[str, Any]) -> str:
    """Note under a replayed figure: when and where it was recorded."""
    date = manifest["created"][:10]
    return f"recorded on {date}, {describe_computer(manifest)}"


def fits(source: Path, recipe: Recipe) -> bool:
    """A record fits when it was made with exactly this recipe."""
    if not (source / "recipe.yaml").is_file():
        return False
    return load_recipe(source / "recipe.yaml") == recipe


def unpack(source: Path, name: str, target: Path) -> None:
    """Copy a file, a packed one or a folder of a record.

    Raises:
        LabError: a file is not what its hash says.
    """
    listed: dict[str, str] = read_json(source / INDEX)["sha256"]
    inside = [
        file
        for file in listed
        if file in (name, name + PACKED) or file.startswith(f"{name}/")
    ]
    for file in inside:
        data = (source / file).read_bytes()
        if hashlib.sha256(data).hexdigest() != listed[file]:
            raise LabError(
                f"The recorded file {file} is damaged.",
                why=f"its SHA-256 is not the one in {INDEX}",
                fix="check the record out again",
            )
        place = target / file.removesuffix(PACKED)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.endswith(PACKED):
            data = gzip.decompress(data)
        place.write_bytes(data)


class Values:
    """What notebooks computed with a model: kept in a run, or replayed.

    Args:
        run: the run folder; new values are added to its ``values.json``.
        replay: take values from the tier's record instead of computing.
    """

    def __init__(self, run: RunDir, replay: bool):
        self.run, self.replay = run, replay

    def recall(
        self,
        name: str,
        compute: Callable[[], Any],
        rows: type[BaseModel] | None = None,
    ) -> Any:
        """``compute()``, or what the recorded run got from it.

        Both go through JSON, so that a cell sees the same types live and
        replayed.

        Args:
            name: unique in the course; the name of a stage stands for its
                metrics.
            rows: the value is a list of these records.

        Raises:
            LabError: replay, and the record has no such value.
        """
        if self.replay:
            value = self._read_recorded(name)
        else:
            value = compute()
            if rows:
                value = [row.model_dump(mode="json") for row in value]
            value = json.loads(json.dumps(value))
            self._keep(name, value)
        return [rows.model_validate(row) for row in value] if rows else value

    def _keep(self, name: str, value: Any) -> None:
        if name in self.run.metrics():
            return
        path = self.run.file(VALUES)
        known = read_json(path) if path.is_file() else {}
        write_json(path, known | {name: value})

    def _read_recorded(self, name: str) -> Any:
        source = record_folder(self.run.recipe.name)
        for file in (VALUES, "metrics.json"):
            if (source / file).is_file():
                known = read_json(source / file)
                if name in known:
                    return known[name]
        raise LabError(
            f"The recorded run has no value '{name}'.",
            why="it was recorded before this cell was written",
            fix='set RUN_MODE = "run", or record the run again',
        )
