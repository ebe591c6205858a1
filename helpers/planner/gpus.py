"""The NVIDIA cards of this machine, as ``nvidia-smi`` tells; no CUDA here.

No CUDA context is made in this process, and a torch without CUDA in its
environment is no hindrance: the cards belong to the servers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from helpers.base import LabError, Recipe


@dataclass(frozen=True)
class Gpu:
    """One card: what CUDA_VISIBLE_DEVICES calls it, and its memory."""

    name: str
    memory_gib: float


def find_gpus(recipe: Recipe) -> list[Gpu]:
    """The cards that this process may use; none for device "cpu".

    CUDA_VISIBLE_DEVICES is respected, as indices or as UUIDs.

    Raises:
        LabError: the recipe asks for "cuda" and there is no card.
    """
    device = recipe.hardware.device
    gpus = [] if device in ("cpu", "mps") else _list_visible()
    if device == "cuda" and not gpus:
        raise LabError(
            f"Recipe '{recipe.name}' asks for device 'cuda', and nvidia-smi "
            "finds no card that this process may use.",
            fix="set hardware.device=auto, or start where there is one",
        )
    return gpus


def _list_visible() -> list[Gpu]:
    rows = query_gpus("index,uuid,memory.total")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [Gpu(index, _to_gib(mib)) for index, _, mib in rows]
    gpus = []
    for name in filter(None, (n.strip() for n in visible.split(","))):
        for index, uuid, mib in rows:
            if name == index or uuid.startswith(name):
                gpus.append(Gpu(name, _to_gib(mib)))
    return gpus


def query_gpus(fields: str) -> list[list[str]]:
    """A row of these fields for each card; none without nvidia-smi."""
    try:
        done = subprocess.run(
            [
                "nvidia-smi",
                f"--query-gpu={fields}",
                "--format=csv,noheader,nounits",
            ],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    rows = [line.split(",") for line in done.stdout.splitlines() if line]
    return [[cell.strip() for cell in row] for row in rows]


def _to_gib(mib: str) -> float:
    """MiB as nvidia-smi writes them; 0 where it does not know."""
    return float(mib) / 1024 if mib.replace(".", "", 1).isdigit() else 0.0


def measure_gpu_memory(names: Iterable[str]) -> float:
    """GiB in use on the cards of these names, by whomever."""
    names = set(names)
    return sum(
        _to_gib(used)
        for index, uuid, used in query_gpus("index,uuid,memory.used")
        if index in names or any(uuid.startswith(name) for name in names)
    )
