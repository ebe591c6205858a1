"""What this machine has, and which tiers it can run.

``print(run_doctor())`` in a notebook, ``mathslm doctor`` in a shell. Lines
start with [OK], [WARN] or [FAIL]; only a [FAIL] stops the default course.
Nothing is downloaded and no network is touched. torch is asked for the GPU
when it is installed, and not missed elsewhere.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from helpers.base import REPO_ROOT, LabError, Recipe, list_recipes, load_recipe
from helpers.machine import (
    REQUIRED,
    Machine,
    count_cores,
    find_version,
    inspect_accelerators,
    inspect_machine,
    read_constraints,
)
from helpers.models import read_container_limit, smol
from helpers.planner import GIB, Gpu

__all__ = [
    "GIB",
    "REQUIRED",
    "Gpu",
    "Line",
    "Machine",
    "Report",
    "count_cores",
    "find_version",
    "inspect_accelerators",
    "inspect_machine",
    "judge_machine",
    "read_constraints",
    "read_container_limit",
    "run_doctor",
]
Status = Literal["OK", "WARN", "FAIL"]
MIN_PYTHON = (3, 11)
MIN_MEMORY_GIB = 2.0  # torch, a pocket model and its optimizer, a notebook
MIN_DISK_GIB = 1.0  # a pocket run folder with checkpoints, generously
DEFAULT_TIER = "pocket"


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


def judge_machine(machine: Machine) -> Report:
    """Turn what was found into lines; pure, no reading of the machine."""
    lines = [
        *judge_basics(machine),
        judge_amount(
            "disk", machine.disk_gib, MIN_DISK_GIB, "free some space"
        ),
        *judge_gpus(machine),
        Line("OK", "network", "not touched; tier pocket needs none"),
    ]
    lines += [judge_tier(name, machine) for name in list_recipes()]
    return Report(tuple(lines))


def judge_basics(machine: Machine) -> list[Line]:
    """What every tier needs: Python, packages, cores, memory."""
    return [
        judge_python(machine),
        *judge_packages(machine, read_constraints()),
        Line("OK", "cores", str(machine.cores)),
        judge_amount(
            "memory", machine.available_gib, MIN_MEMORY_GIB, "close programs"
        ),
    ]


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
        lines = [
            Line("OK", f"gpu {index}", str(gpu))
            for index, gpu in enumerate(machine.gpus)
        ]
        if not machine.torch_cuda:
            text = "sees none of these cards: install a CUDA build of it"
            lines.append(Line("WARN", "torch", text))
        return lines
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
    if choose_device(recipe, machine) == "cuda":
        reasons += find_gpu_obstacles(recipe, machine)
    if recipe.hardware.device == "mps" and not machine.mps:
        reasons.append("needs an Apple GPU")
    if recipe.model.quantization and not find_version("bitsandbytes"):
        reasons.append(f"{recipe.model.quantization} needs bitsandbytes")
    if recipe.model.id == smol.SMOL_ID:
        reasons += smol.find_obstacles()
    elif not has_model(recipe.model.id):
        reasons.append(f"{recipe.model.id} is missing from this folder")
    return reasons


def choose_device(recipe: Recipe, machine: Machine) -> str:
    """The recipe's device; "auto" is "cuda" where torch can use a card."""
    if recipe.hardware.device != "auto":
        return recipe.hardware.device
    return "cuda" if machine.gpus and machine.torch_cuda else "auto"


def find_gpu_obstacles(recipe: Recipe, machine: Machine) -> list[str]:
    """Too few CUDA cards, or cards that lack the recipe's number format."""
    need, have = max(recipe.hardware.cards, 1), len(machine.gpus)
    if have < need:
        return [f"needs {need} CUDA GPU(s), found {have}"]
    if not machine.torch_cuda:
        return ["torch here is built without CUDA"]
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
