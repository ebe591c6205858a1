"""What this machine has: Python, packages, memory, disk, cards.

Only looked at, nothing is changed. torch is asked for the cards when it is
installed; where it has none, ``nvidia-smi`` is.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from helpers.base import REPO_ROOT
from helpers.models import read_container_limit
from helpers.planner import GIB, Gpu, list_gpus

REQUIRED = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "math-verify",
    "papermill",
)


@dataclass(frozen=True)
class Machine:
    """What counts for choosing a tier; memory and disk in GiB.

    ``memory_gib`` is what this process may use: the machine's memory, or a
    container's limit where that is lower. ``torch_cuda`` is False where cards
    are there and torch cannot use them.
    """

    python: tuple[int, int, int]
    cores: int
    memory_gib: float
    available_gib: float
    disk_gib: float
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False
    torch_cuda: bool = True
    versions: dict[str, str | None] = field(default_factory=dict)


def inspect_machine(folder: str | Path = ".") -> Machine:
    """Read versions, cores, memory, disk and GPUs; changes nothing."""
    memory = psutil.virtual_memory()
    limit = read_container_limit()
    total = min(memory.total, limit or memory.total)
    gpus, mps = inspect_accelerators()
    seen = gpus or tuple(
        gpu for gpu in list_gpus() if gpu.memory_gib and gpu.capability
    )
    return Machine(
        python=sys.version_info[:3],
        cores=count_cores(),
        memory_gib=total / GIB,
        available_gib=min(memory.available, total) / GIB,
        disk_gib=measure_free(folder),
        gpus=seen,
        mps=mps,
        torch_cuda=bool(gpus) or not seen,
        versions={name: find_version(name) for name in REQUIRED},
    )


def inspect_accelerators() -> tuple[tuple[Gpu, ...], bool]:
    """CUDA cards and whether Apple's MPS is there; empty without torch."""
    if importlib.util.find_spec("torch") is None:
        return (), False
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            gpus.append(
                Gpu(
                    str(index),
                    card.total_memory / GIB,
                    card.name,
                    (card.major, card.minor),
                )
            )
    return tuple(gpus), torch.backends.mps.is_available()


def measure_free(folder: str | Path) -> float:
    """GiB free where ``folder`` lies, or would lie."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / GIB


def count_cores() -> int:
    """Cores this process may use, at most what the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_constraints() -> dict[str, str]:
    """``{"torch": "2.13.0", …}`` from constraints.txt; empty without it."""
    path = REPO_ROOT / "constraints.txt"
    if not path.is_file():
        return {}
    pairs = (
        line.split("==")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    return {name.strip().lower(): v.strip() for name, v in pairs}
