"""What this machine has, and which tiers it can run.

``print(run_doctor())`` in a notebook, ``mathslm doctor`` in a shell. Lines
start with [OK], [WARN] or [FAIL]; only a [FAIL] stops the default course.
Nothing is downloaded and no network is touched. torch is asked for the GPU
when it is installed, and not missed elsewhere.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from helpers import smol
from helpers.errors import LabError
from helpers.recipes import Recipe, list_recipes, load_recipe
from helpers.runs import REPO_ROOT

Status = Literal["OK", "WARN", "FAIL"]
GIB = 2**30
MIN_PYTHON = (3, 11)
MIN_MEMORY_GIB = 2.0  # torch, a pocket model and its optimizer, a notebook
MIN_DISK_GIB = 1.0  # a pocket run folder with checkpoints, generously
BF16_CAPABILITY = (8, 0)  # Ampere; older cards only emulate it
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
DEFAULT_TIER = "pocket"


@dataclass(frozen=True)
class Gpu:
    """One CUDA device: name, SM capability, memory in GiB."""

    name: str
    capability: tuple[int, int]
    memory_gib: float

    @property
    def bf16(self) -> bool:
        """True when the card computes in bfloat16 itself."""
        return self.capability >= BF16_CAPABILITY

    def __str__(self) -> str:
        major, minor = self.capability
        what = f"SM {major}.{minor}, {self.memory_gib:.1f} GiB"
        why = (
            "bf16 yes (Ampere or newer)"
            if self.bf16
            else "bf16 no (older than Ampere: fp16 with loss scaling)"
        )
        return f"{self.name}, {what}, {why}"


@dataclass(frozen=True)
class Machine:
    """What counts for choosing a tier; memory and disk in GiB.

    ``memory_gib`` is what this process may use: the machine's memory, or a
    container's limit where that is lower.
    """

    python: tuple[int, int, int]
    cores: int
    memory_gib: float
    available_gib: float
    disk_gib: float
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False
    versions: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One finding."""

    status: Status
    name: str
    text: str

    def __str__(self) -> str:
        return f"{'[' + self.status + ']':<6} {self.name}: {self.text}"


@dataclass(frozen=True)
class Report:
    """All findings; ``ok`` unless one of them is a FAIL."""

    lines: tuple[Line, ...]

    @property
    def ok(self) -> bool:
        """True when the default course can run here."""
        return all(line.status != "FAIL" for line in self.lines)

    def __str__(self) -> str:
        return "\n".join(str(line) for line in self.lines)


def run_doctor(folder: str | Path = ".") -> Report:
    """Look at this machine; ``folder`` is where runs would be written."""
    return judge_machine(inspect_machine(folder))


def inspect_machine(folder: str | Path = ".") -> Machine:
    """Read versions, cores, memory, disk and GPUs; changes nothing."""
    memory = psutil.virtual_memory()
    limit = read_container_limit()
    total = min(memory.total, limit or memory.total)
    gpus, mps = inspect_accelerators()
    return Machine(
        python=sys.version_info[:3],
        cores=count_cores(),
        memory_gib=total / GIB,
        available_gib=min(memory.available, total) / GIB,
        disk_gib=shutil.disk_usage(folder).free / GIB,
        gpus=gpus,
        mps=mps,
        versions={name: find_version(name) for name in REQUIRED},
    )


def judge_machine(machine: Machine) -> Report:
    """Turn what was found into lines; pure, no reading of the machine."""
    lines = [
        judge_python(machine),
        *judge_packages(machine, read_constraints()),
        Line("OK", "cores", str(machine.cores)),
        judge_amount(
            "memory", machine.available_gib, MIN_MEMORY_GIB, "close programs"
        ),
        judge_amount(
            "disk", machine.disk_gib, MIN_DISK_GIB, "free some space"
        ),
        *judge_gpus(machine),
        Line("OK", "network", "not touched; tier pocket needs none"),
    ]
    lines += [judge_tier(name, machine) for name in list_recipes()]
    return Report(tuple(lines))


def judge_python(machine: Machine) -> Line:
    """FAIL below the oldest Python that the package supports."""
    version = ".".join(str(part) for part in machine.python)
    if machine.python < MIN_PYTHON:
        need = ".".join(str(part) for part in MIN_PYTHON)
        return Line("FAIL", "python", f"{version}, needs {need} or newer")
    where = f"{platform.system()} {platform.machine()}"
    return Line("OK", "python", f"{version} on {where}")


def judge_packages(machine: Machine, tested: dict[str, str]) -> list[Line]:
    """One line a package: missing FAILs, another version WARNs."""
    lines = []
    for name, version in machine.versions.items():
        wanted = tested.get(name)
        if version is None:
            text = "not installed; pip install -c constraints.txt -e ."
            lines.append(Line("FAIL", name, text))
        elif wanted and version.split("+")[0] != wanted:
            text = f"{version}; tested with {wanted}"
            lines.append(Line("WARN", name, text))
        else:
            lines.append(Line("OK", name, version))
    return lines


def judge_amount(name: str, have: float, need: float, fix: str) -> Line:
    """WARN when less than ``need`` GiB are free."""
    text = f"{have:.1f} GiB free"
    if have < need:
        return Line("WARN", name, f"{text}, under {need:.0f} GiB: {fix}")
    return Line("OK", name, text)


def judge_gpus(machine: Machine) -> list[Line]:
    """One line a GPU, or one that says there is none."""
    if machine.gpus:
        return [
            Line("OK", f"gpu {index}", str(gpu))
            for index, gpu in enumerate(machine.gpus)
        ]
    if machine.mps:
        return [Line("OK", "gpu", "Apple (MPS); the course uses the CPU")]
    return [Line("OK", "gpu", "none; tier pocket runs on the CPU")]


def judge_tier(name: str, machine: Machine) -> Line:
    """Can this tier run here? The default one not running is a FAIL."""
    try:
        recipe = load_recipe(name)
    except LabError as error:
        return Line("FAIL", f"tier {name}", str(error).splitlines()[0])
    reasons = find_obstacles(recipe, machine)
    if not reasons:
        return Line("OK", f"tier {name}", f"yes: {recipe.description}")
    status: Status = "FAIL" if name == DEFAULT_TIER else "WARN"
    return Line(status, f"tier {name}", "no: " + "; ".join(reasons))


def find_obstacles(recipe: Recipe, machine: Machine) -> list[str]:
    """Why the recipe cannot run on this machine; empty when it can."""
    reasons = []
    if machine.memory_gib < MIN_MEMORY_GIB:
        reasons.append(
            f"{machine.memory_gib:.1f} GiB memory, needs {MIN_MEMORY_GIB:.0f}"
        )
    if recipe.hardware.device == "cuda":
        reasons += find_gpu_obstacles(recipe, machine)
    if recipe.hardware.device == "mps" and not machine.mps:
        reasons.append("needs an Apple GPU")
    if recipe.model.id == smol.SMOL_ID:
        reasons += smol.find_obstacles()
    elif not has_model(recipe.model.id):
        reasons.append(f"{recipe.model.id} is missing from this folder")
    return reasons


def find_gpu_obstacles(recipe: Recipe, machine: Machine) -> list[str]:
    """Too few CUDA cards, or cards that lack the recipe's number format."""
    need, have = max(recipe.hardware.cards, 1), len(machine.gpus)
    if have < need:
        return [f"needs {need} CUDA GPU(s), found {have}"]
    if recipe.model.dtype == "bfloat16":
        return [
            f"{gpu.name} has no bf16 (SM below 8.0)"
            for gpu in machine.gpus[:need]
            if not gpu.bf16
        ]
    return []


def has_model(model_id: str) -> bool:
    """False for a path of this repository that is not there.

    A hub id passes: whether it can be fetched is not asked.
    """
    if (REPO_ROOT / model_id).exists():
        return True
    return model_id.split("/")[0] != "data"


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
                    card.name,
                    (card.major, card.minor),
                    card.total_memory / GIB,
                )
            )
    return tuple(gpus), torch.backends.mps.is_available()


def count_cores() -> int:
    """Cores this process may use, at most what the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_container_limit() -> int | None:
    """Memory limit in bytes of a Linux container, if there is one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


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
