"""A run folder: where every stage reads and writes, and how it resumes.

``RunDir.open("runs/pocket", recipe)`` creates or reopens the folder. A stage
asks ``run.is_done(name, inputs)`` and, if not, works inside
``with run.stage(name, inputs) as record:``. ``inputs`` are hashes of all that
its result depends on; a stage whose recorded inputs match is loaded, one with
other inputs is refused unless ``force`` (then the old output is set aside,
never deleted).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from helpers.base.errors import LabError
from helpers.base.guards import AFTER, PLANNING, guard
from helpers.base.lock import hold_lock, is_first_rank
from helpers.base.manifest import describe_machine
from helpers.base.recipe import load_recipe
from helpers.base.recipe_schema import Recipe
from helpers.base.records import (
    choose_aside,
    disk_errors,
    measure_size,
    read_json,
    require_writable,
    write_json,
    write_text,
)

REPO_ROOT = Path(__file__).resolve().parents[2]
DATA_DIR = REPO_ROOT / "data"
IDENTITY = ("name", "seed", "model", "data")
# Inputs of older runs that no longer decide: whoever reads rows grades them.
RETIRED_INPUTS = {"grader"}
MODELS = ("base", "sft", "dpo")
HARVEST = ("sft.jsonl", "pairs.jsonl")  # other rows: <stage>.jsonl
LINEAGE = "lineage.json"  # in a merged model: hashes of its parts
HASH_WHOLE_BELOW = 1 << 28  # bytes: of larger models blocks are hashed
BLOCKS, BLOCK = 64, 1 << 16  # of each file: so many, so many bytes each


@dataclass(frozen=True)
class Tag:
    """Which model of a run: base, sft, dpo or dpo-<variant>."""

    model: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str, *, trained: bool = False) -> Tag:
        """The tag that is written so; ``trained``: with an adapter.

        Raises:
            LabError: there is no such model, or adapter.
        """
        model, _, variant = text.partition("-")
        known = MODELS[1:] if trained else MODELS
        if model in known and (model == "dpo" or not variant):
            return cls(model, variant or None)
        raise LabError(
            f"There is no {'adapter' if trained else 'model'} '{text}'.",
            fix=f"choose {', '.join(known)} or dpo-<variant>",
        )

    def __str__(self) -> str:
        return f"{self.model}-{self.variant}" if self.variant else self.model

    @property
    def options(self) -> str:
        """As the commands take it: ``dpo --variant published``."""
        return self.model + (
            f" --variant {self.variant}" if self.variant else ""
        )


class RunDir:
    """One run on disk; see design of the folder in the README."""

    def __init__(self, path: Path, recipe: Recipe):
        self.path, self.recipe = path, recipe

    @classmethod
    def open(cls, path: str | Path, recipe: Recipe) -> RunDir:
        """Create the folder, or reopen it when it belongs to this recipe.

        Raises:
            LabError: the folder holds another recipe's run, is a file, or
                cannot be written.
        """
        run = cls(Path(path), recipe)
        with disk_errors(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        require_writable(run.path)
        stored = run.path / "recipe.yaml"
        run.check_same_recipe()
        if not stored.is_file():
            run.save_recipe()
        if not (run.path / "manifest.json").is_file():
            write_json(run.path / "manifest.json", describe_machine(recipe))
        return run

    def save_recipe(self) -> None:
        """Write ``recipe.yaml``: what the latest stage was made with."""
        data = self.recipe.model_dump(mode="json")
        text = yaml.safe_dump(data, sort_keys=False)
        write_text(self.file("recipe.yaml"), text)

    def check_same_recipe(self) -> None:
        """LabError when the folder's recipe differs in its IDENTITY.

        And when there are files without a recipe: it is no run folder.
        """
        stored = self.file("recipe.yaml")
        if not stored.is_file():
            if self.path.is_dir() and any(self.path.iterdir()):
                raise LabError(
                    f"{self.path} is not empty and holds no recipe.yaml.",
                    why="it does not look like a run folder",
                    fix="choose another --run-dir",
                )
            return
        try:
            old = yaml.safe_load(stored.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise LabError(
                f"Cannot read {stored}: {error}",
                fix="choose another --run-dir",
            ) from None
        new = self.recipe.model_dump(mode="json")
        differ = [key for key in IDENTITY if old.get(key) != new[key]]
        if differ:
            shown = ", ".join(
                f"{key}: {old.get(key)!r} there, {new[key]!r} asked"
                for key in differ
            )
            raise LabError(
                f"{self.path} belongs to another recipe ({shown}).",
                why="results of two recipes must not mix in one folder",
                fix="choose another --run-dir",
            )

    @property
    def label(self) -> str:
        """The folder as messages name it, without this machine's paths."""
        return name_folder(self.path)

    def file(self, *parts: str) -> Path:
        """A path inside the run folder."""
        return self.path.joinpath(*parts)

    def is_done(
        self, stage: str, inputs: Mapping[str, str], force: bool = False
    ) -> bool:
        """True when this stage has finished with exactly these inputs.

        Raises:
            LabError: it finished with other inputs and ``force`` is off.
        """
        path = self._stage_file(stage)
        if not path.is_file():
            return False
        record = read_json(path)
        present = all(self.file(name).exists() for name in record["outputs"])
        if force:
            with hold_lock(self.path):
                self._set_aside(stage, record)
            return False
        differ = compare_inputs(record["inputs"], inputs)
        check_same_inputs(str(self.path), stage, differ)
        return present

    @contextmanager
    def stage(
        self, name: str, inputs: Mapping[str, str]
    ) -> Iterator[dict[str, Any]]:
        """Time a stage; on success record inputs, outputs and seconds.

        The folder is locked meanwhile, see :mod:`helpers.base.lock`.

        Yields a dict: put ``outputs`` (paths relative to the folder) and any
        ``metrics`` in it. Nothing is recorded when the body raises; the
        folder's ``recipe.yaml`` is that of its latest finished stage.
        """
        if not is_first_rank():  # of several that train together
            yield {}
            return
        with hold_lock(self.path):
            started = datetime.now(UTC).isoformat(timespec="seconds")
            clock = time.perf_counter()
            record: dict[str, Any] = {"outputs": [], "metrics": {}}
            yield record
            seconds = time.perf_counter() - clock
            self._finish_stage(name, inputs, record, started, seconds)

    def _finish_stage(
        self,
        name: str,
        inputs: Mapping[str, str],
        record: dict[str, Any],
        started: str,
        seconds: float,
    ) -> None:
        check_written(
            name, {o: measure_size(self.file(o)) for o in record["outputs"]}
        )
        metrics = record.pop("metrics")
        record.update(
            stage=name,
            inputs=dict(inputs),
            started=started,
            seconds=round(seconds, 2),
        )
        if self.file("model.json").is_file():  # dtype and bits
            record["model"] = read_json(self.file("model.json"))["rung"]
        self._add_metrics(name, metrics)
        self._add_to_ledger(name, started, seconds)
        self.save_recipe()
        write_json(self._stage_file(name), record)

    def metrics(self) -> dict[str, Any]:
        """All stages' metrics, keyed by stage name."""
        path = self.file("metrics.json")
        return read_json(path) if path.is_file() else {}

    def ledger(self) -> list[dict[str, Any]]:
        """Time and cost per finished stage, in order."""
        path = self.file("ledger.json")
        return read_json(path)["phases"] if path.is_file() else []

    def _stage_file(self, stage: str) -> Path:
        return stage_file(self.path, stage)

    def _add_metrics(self, stage: str, metrics: Mapping[str, Any]) -> None:
        everything = self.metrics()
        everything[stage] = dict(metrics)
        write_json(self.file("metrics.json"), everything)

    def _add_to_ledger(self, stage: str, started: str, seconds: float) -> None:
        price = self.recipe.hardware.usd_per_hour
        phases = [p for p in self.ledger() if p["phase"] != stage]
        phases.append(
            {
                "phase": stage,
                "started": started,
                "seconds": round(seconds, 2),
                "device_seconds": round(
                    seconds * max(self.recipe.hardware.cards, 1), 2
                ),
                "usd": round(seconds / 3600 * price, 4),
            }
        )
        write_json(self.file("ledger.json"), {"phases": phases})

    def _set_aside(self, stage: str, record: Mapping[str, Any]) -> None:
        """Move a finished stage's outputs to ``old/<n>-<stage>``."""
        target = choose_aside(self.path, stage)
        with disk_errors(target):
            for name in record["outputs"]:
                source = self.file(name)
                if source.exists():
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(source, target / name)
            target.mkdir(parents=True, exist_ok=True)
            shutil.move(self._stage_file(stage), target / "stage.json")


@guard("results that would be overwritten", PLANNING, doctor=True)
def check_same_inputs(folder: str, stage: str, differ: Sequence[str]) -> None:
    """Refuse to load, or to replace, results of another experiment.

    Story: the published 7B run wrote the scores of the SFT and of the DPO
    model to files of the same names, and a shell script renamed them in
    between. Forget it once, and two models have one score.

    Args:
        folder: the run folder.
        stage: whose results are there.
        differ: names of the inputs that are not those of the results.

    Raises:
        LabError: any input differs.
    """
    if not differ:
        return
    raise LabError(
        f"{folder} holds '{stage}' made from other inputs "
        f"(changed: {', '.join(differ)}).",
        why="loading it would mix two experiments",
        fix="choose another --run-dir, or add --force to set the old "
        "output aside and compute it again",
    )


@guard("unwritten output", AFTER)
def check_written(stage: str, sizes: Mapping[str, int | None]) -> None:
    """Refuse to call a stage finished whose results are not on disk.

    Story: as its source reads, EulerForge 0.1.0 reloads a dense model for
    its export and drops the weights that do not fit: the command ends well,
    and the trained experts are nowhere. A stage is finished when its files
    are there, not when it returns.

    Args:
        stage: its name.
        sizes: for each output its bytes, of a folder those of all files in
            it; None where there is nothing.

    Raises:
        LabError: names the outputs that are missing, or empty folders.
    """
    missing = [name for name, size in sizes.items() if size is None]
    if not missing:
        return
    raise LabError(
        f"Stage '{stage}' wrote no {', no '.join(missing)}.",
        why="a stage counts as finished only with its results on disk",
        fix="look at the messages above and at the free space, then start "
        "the stage again",
    )


def compare_inputs(
    have: Mapping[str, str], want: Mapping[str, str]
) -> list[str]:
    """Names of the inputs that differ; empty when the result still holds."""
    return sorted(
        key
        for key in {*have, *want} - RETIRED_INPUTS
        if have.get(key) != want.get(key)
    )


def resolve_data(path: str | Path) -> Path:
    """A path of the recipe: relative ones live under ``data/``.

    ``MATHSLM_DATA_DIR`` names another folder to look in first.
    """
    path = Path(path)
    if path.is_absolute():
        return path
    override = os.environ.get("MATHSLM_DATA_DIR")
    if override and (Path(override) / path).exists():
        return Path(override) / path
    return DATA_DIR / path


def name_folder(path: str | Path) -> str:
    """A folder as files and notebooks name it.

    Relative inside the clone, so that nothing written names a home folder;
    absolute elsewhere; a hub id stays as it is.
    """
    full = Path(path).resolve()
    if not Path(path).is_absolute() and not full.exists():
        return str(path)
    if full.is_relative_to(REPO_ROOT):
        return full.relative_to(REPO_ROOT).as_posix()
    return full.as_posix()


def hash_file(path: str | Path) -> str:
    """Short SHA-256 of a file's bytes, or of a folder's files in order.

    Raises:
        LabError: there is no such file or folder.
    """
    path, digest = Path(path), hashlib.sha256()
    if not path.exists():
        raise LabError(
            f"There is no file or folder {path}.",
            fix="check the path, or run the stage that writes it",
        )
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for item in files:
        if item.is_file():
            digest.update(item.name.encode())
            with open(item, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def fingerprint_model(path: str | Path, revision: str | None = None) -> str:
    """Short hash of a model: its files, or its hub id and revision.

    A merged model is known by what it was merged from: its weights may
    differ in the last bit between machines. Of weight files too large to
    hash in a moment the size counts and blocks from all over the file.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"{folder.as_posix()}@{revision or 'main'}"
    if (folder / LINEAGE).is_file():
        return hash_file(folder / LINEAGE)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if sum(p.stat().st_size for p in files) < HASH_WHOLE_BELOW:
        return hash_file(folder)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}|".encode())
        digest.update(_read_blocks(file))
    return digest.hexdigest()[:16]


def _read_blocks(path: Path) -> bytes:
    """The whole file when it is short, else evenly spaced blocks of it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= BLOCKS * BLOCK:
            return file.read()
        found = []
        for number in range(BLOCKS):
            file.seek((size - BLOCK) * number // (BLOCKS - 1))
            found.append(file.read(BLOCK))
        return b"".join(found)


def require_space(path: str | Path, megabytes: int) -> None:
    """Refuse before work starts when the disk has less than this free."""
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free // 2**20
    check_space(str(path), free, megabytes)


@guard("a disk that is too small", PLANNING, doctor=True)
def check_space(path: str, free_mb: float, needed_mb: float) -> None:
    """Refuse to start what would fill the disk in the middle of a save.

    Story: a 7B model is 15 GB on disk, twice that while a merge stands
    beside the model it replaces; the disk of a rented machine is often
    smaller than its memory. A save that runs out of disk loses the hour
    before it.

    Args:
        free_mb: megabytes that are free.
        needed_mb: megabytes that the stage will write.

    Raises:
        LabError: fewer are free than are needed.
    """
    if free_mb >= needed_mb:
        return
    raise LabError(
        f"Only {free_mb:,.0f} MB are free where {path} lies; "
        f"about {needed_mb:,.0f} MB are needed.",
        fix="free some space or choose another --run-dir",
    )


def find_harvest(run: RunDir, name: str, smoke: bool = False) -> Path:
    """A file of training rows; a smoke run may use a smoke distillation's.

    Raises:
        LabError: it is not there; names the command that makes it.
    """
    path, trial = run.file(name), run.file("smoke", "distill", name)
    if smoke and trial.exists() and not path.exists():
        return trial
    stage = "distill" if name in HARVEST else Path(name).stem
    return require_file(path, f"mathslm {stage}", run)


def require_file(path: Path, command: str, run: RunDir) -> Path:
    """The path, or a LabError that names the command which makes it."""
    if not path.exists():
        raise LabError(
            f"There is no {path}.",
            why="this stage goes on from it",
            fix=f"make it first: {command} --run-dir {run.label}",
        )
    return path


def require_current_merge(run: RunDir, tag: str) -> None:
    """LabError when ``<tag>/merged`` is of another adapter than is there.

    Where one of the two is absent there is nothing to compare.
    """
    lineage = run.file(tag, "merged", LINEAGE)
    adapter = run.file(tag, "adapter")
    if not lineage.is_file() or not adapter.exists():
        return
    if read_json(lineage).get("adapter") == hash_file(adapter):
        return
    raise LabError(
        f"{tag}/merged in {run.label} was made from another adapter than "
        f"{tag}/adapter.",
        why="the adapter was trained again after the merge",
        fix=f"mathslm merge --model {Tag.parse(tag).options} "
        f"--run-dir {run.label} --force",
    )


def record_folder(tier: str) -> Path:
    """Where the recorded run of a tier lies."""
    return DATA_DIR / "measured" / tier / "run"


def stage_file(folder: Path, stage: str) -> Path:
    """The record of a finished stage in a run folder."""
    return folder / "stages" / f"{stage.replace('/', '-')}.json"


def fits(source: Path, recipe: Recipe) -> bool:
    """A record fits when it was made with exactly this recipe."""
    path = source / "recipe.yaml"
    return path.is_file() and load_recipe(path) == recipe
