"""What made a run: versions, commit and machine, for its manifest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers import __version__
from helpers.base.recipe_schema import Recipe

CLONE = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")


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
            ["git", "-C", str(CLONE), "rev-parse", "HEAD"],
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
