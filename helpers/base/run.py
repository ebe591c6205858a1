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
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from helpers import __version__
from helpers.base.errors import LabError
from helpers.base.guards import check_same_inputs, check_space, check_written
from helpers.base.lock import hold_lock, is_first_rank
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

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
REPO_ROOT = Path(__file__).resolve().parents[2]
DATA_DIR = REPO_ROOT / "data"
IDENTITY = ("name", "seed", "model", "data")
# Inputs of older runs that no longer decide: rows carry their grader now.
RETIRED_INPUTS = {"grader"}


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
        if stored.is_file():
            run.check_same_recipe()
        elif any(run.path.iterdir()):
            raise LabError(
                f"{run.path} is not empty and holds no recipe.yaml.",
                why="it does not look like a run folder",
                fix="choose another --run-dir",
            )
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
        """LabError when the folder's recipe differs in its IDENTITY."""
        stored = self.file("recipe.yaml")
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
        if self.file("model.json").is_file():  # see helpers.models.ladder
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
        return self.file("stages", f"{stage.replace('/', '-')}.json")

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


def require_space(path: str | Path, megabytes: int) -> None:
    """Refuse before work starts when the disk has less than this free."""
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free // 2**20
    check_space(str(path), free, megabytes)


def describe_machine(recipe: Recipe) -> dict[str, Any]:
    """What a manifest says: versions, commit, hardware, seed."""
    versions = {"python": platform.python_version(), "helpers": __version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": recipe.name,
        "seed": recipe.seed,
        "versions": versions,
        "commit": _git_commit(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPO_ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def record_folder(tier: str) -> Path:
    """Where the recorded run of a tier lies."""
    return DATA_DIR / "measured" / tier / "run"


def stage_file(folder: Path, stage: str) -> Path:
    """The record of a finished stage in a run folder."""
    return folder / "stages" / f"{stage.replace('/', '-')}.json"


def make_note(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage keeps of the machine and code that recorded it."""
    return {
        "date": manifest["created"][:10],
        "machine": describe_computer(manifest),
        "commit": manifest.get("commit"),
    }


def describe_computer(manifest: Mapping[str, Any]) -> str:
    """The processor and its cores."""
    return f"{manifest['processor']}, {manifest['cores']} cores"


def describe_record(manifest: Mapping[str, Any]) -> str:
    """Note under a replayed figure: when and where it was recorded."""
    date = manifest["created"][:10]
    return f"recorded on {date}, {describe_computer(manifest)}"


def fits(source: Path, recipe: Recipe) -> bool:
    """A record fits when it was made with exactly this recipe."""
    path = source / "recipe.yaml"
    return path.is_file() and load_recipe(path) == recipe
