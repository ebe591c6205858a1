"""The NVIDIA cards of this machine, as ``nvidia-smi`` tells; no CUDA here.

No CUDA context is made in this process, and a torch without CUDA in its
environment is no hindrance: the cards belong to the servers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace

from helpers.base import LabError, Recipe
from helpers.planner.guards import BF16_CAPABILITY


@dataclass(frozen=True)
class Gpu:
    """One card of this machine.

    ``id`` is what CUDA_VISIBLE_DEVICES calls it, an index or a UUID;
    ``memory_gib`` is 0 and ``capability`` (compute capability, for example
    (8, 0)) None where the driver does not know.
    """

    id: str
    memory_gib: float
    name: str = ""
    capability: tuple[int, int] | None = None

    @property
    def bf16(self) -> bool:
        """True when the card computes in bfloat16 itself."""
        return (self.capability or (0, 0)) >= BF16_CAPABILITY

    def __str__(self) -> str:
        major, minor = self.capability or (0, 0)
        what = f"SM {major}.{minor}, {self.memory_gib:.1f} GiB"
        why = (
            "bf16 yes (Ampere or newer)"
            if self.bf16
            else "bf16 no (older than Ampere: fp16 with loss scaling)"
        )
        return f"{self.name}, {what}, {why}"


def find_gpus(recipe: Recipe) -> list[Gpu]:
    """The cards that a recipe may use here; none for device "cpu".

    Raises:
        LabError: the recipe asks for "cuda" and there is no card.
    """
    device = recipe.hardware.device
    gpus = [] if device in ("cpu", "mps") else list_gpus()
    if device == "cuda" and not gpus:
        raise LabError(
            f"Recipe '{recipe.name}' asks for device 'cuda', and nvidia-smi "
            "finds no card that this process may use.",
            fix="set hardware.device=auto, or start where there is one",
        )
    return gpus


def list_gpus() -> list[Gpu]:
    """The cards that this process may use.

    CUDA_VISIBLE_DEVICES is respected, as indices or as UUIDs.
    """
    known = []
    for row in query_gpus("index,uuid,name,memory.total,compute_cap"):
        index, uuid, name, mib, level = row
        major, _, minor = level.partition(".")
        capability = (int(major), int(minor)) if major.isdigit() else None
        known.append((uuid, Gpu(index, _to_gib(mib), name, capability)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [gpu for _, gpu in known]
    gpus = []
    for wanted in filter(None, (n.strip() for n in visible.split(","))):
        for uuid, gpu in known:
            if wanted == gpu.id or uuid.startswith(wanted):
                gpus.append(replace(gpu, id=wanted))
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
    """GiB in use on the cards of these ids, by whomever."""
    names = set(names)
    return sum(
        _to_gib(used)
        for index, uuid, used in query_gpus("index,uuid,memory.used")
        if index in names or any(uuid.startswith(name) for name in names)
    )
