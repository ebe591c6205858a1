"""What this machine has, which tiers it can run, and what stops one tier.

``print(run_doctor())`` in a notebook or ``mathslm doctor`` in a shell looks
at the machine and says which tiers it can run. :func:`check_tier`, ``mathslm
doctor --tier X``, goes through one recipe and run folder: the machine, its
cards, the planner's memory and advice, packages, base model, problem sets,
the output's disk, and last each stage itself, which is started with
``check=True``: what a stage refuses is said there and not checked here again.

Lines start with [OK], [WARN] or [FAIL]; one of a tier that is not OK ends on
its remedy. Nothing is downloaded, no network is touched, no run folder is
made. torch is asked for the GPU when it is installed, and not missed
elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from helpers.base import (
    GUARDS,
    REPO_ROOT,
    LabError,
    Recipe,
    RunDir,
    check_space,
    list_recipes,
    load_recipe,
    require_writable,
    stage_file,
)
from helpers.models import (
    SMOL_ID,
    check_template,
    find_base,
    load_tokenizer,
    read_container_limit,
    smol,
)
from helpers.planner import (
    GIB,
    USABLE,
    Card,
    Gpu,
    JobSteps,
    MemoryEstimate,
    Plan,
    check_card_count,
    check_precision,
    check_steps_per_epoch,
    choose_format,
    collect_advice,
    estimate_memory,
    estimate_run_space,
    estimate_space,
    find_shape,
    find_token,
    judge_memory,
    list_gpus,
    plan,
)
from helpers.problems import GYM_PREFIX, find_source, hash_problems, is_local
from helpers.sampling import find_command
from helpers.stages import (
    list_against,
    list_dependencies,
    list_stages,
    run_stage,
)

Status = Literal["OK", "WARN", "FAIL"]
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
MIN_PYTHON = (3, 11)
MIN_MEMORY_GIB = 2.0  # torch, a pocket model and its optimizer, a notebook
MIN_DISK_GIB = 1.0  # a pocket run folder with checkpoints, generously
PROCESS_GIB = 0.6  # Python, torch and the rest, beside an estimate
DEFAULT_TIER = "pocket"
CONFIG, INDEX = "config.json", "model.safetensors.index.json"


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
        """True when nothing stops the course, or the tier."""
        return all(line.status != "FAIL" for line in self.lines)

    def __str__(self) -> str:
        return "\n".join(str(line) for line in self.lines)


def run_doctor(folder: str | Path = ".") -> Report:
    """Look at this machine; ``folder`` is where runs would be written."""
    return judge_machine(inspect_machine(folder))


def check_tier(
    recipe: Recipe,
    folder: str | Path,
    *,
    force: bool = False,
    machine: Machine | None = None,
) -> Report:
    """Check a recipe on this machine, for a run in ``folder``.

    Args:
        folder: the run folder; it need not exist, and is not made.
        force: results of other inputs are to be set aside.
        machine: what was found; None: look now.
    """
    folder = Path(folder)
    machine = machine or inspect_machine(folder)
    needs_torch = recipe.hardware.device == "cuda"
    lines = [*judge_basics(machine), *judge_gpus(machine, needs_torch)]
    for name, check in {
        "cards": lambda: judge_cards(recipe, machine),
        "plan": lambda: judge_plan(recipe, machine),
        "packages": lambda: judge_extras(recipe),
        "model": lambda: judge_model(recipe),
        "problem sets": lambda: judge_sets(recipe),
        "output": lambda: judge_output(recipe, folder, machine),
        "results": lambda: judge_results(recipe, folder, force),
    }.items():
        try:
            lines += check()
        except LabError as error:
            lines.append(to_line(name, error))
    return Report(tuple(lines))


def list_later() -> dict[str, list[str]]:
    """``{when: titles}`` of the guards that only the stages can run."""
    later: dict[str, list[str]] = {}
    for guard in GUARDS:
        if not guard.doctor:
            later.setdefault(guard.when, []).append(guard.title)
    return later


def try_guard(
    name: str,
    check: Callable[[], Any],
    fine: str,
    status: Status = "FAIL",
) -> Line:
    """Run a check: its refusal becomes ``status``, a sentence a WARN."""
    try:
        found = check()
    except LabError as error:
        return to_line(name, error, status)
    if isinstance(found, str) and found:
        return Line("WARN", name, found)
    return Line("OK", name, fine)


def to_line(name: str, error: LabError, status: Status = "FAIL") -> Line:
    """A refusal as one line: what, why, and what to do."""
    text = error.what
    if error.why:
        text += f" Why: {error.why}."
    if error.fix:
        text += f" Do this: {error.fix}."
    return Line(status, name, text.replace("..", "."))


# --- what the machine has ---


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
    total = min(memory.total, read_container_limit() or memory.total)
    gpus, mps = inspect_accelerators()
    seen = gpus or tuple(
        gpu for gpu in list_gpus() if gpu.memory_gib and gpu.capability
    )
    cores = getattr(os, "sched_getaffinity", None)
    return Machine(
        python=sys.version_info[:3],
        cores=len(cores(0)) if cores else os.cpu_count() or 1,
        memory_gib=total / GIB,
        available_gib=min(memory.available, total) / GIB,
        disk_gib=shutil.disk_usage(find_nearest(folder)).free / GIB,
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
    for index in range(torch.cuda.device_count()):
        if torch.cuda.is_available():
            card = torch.cuda.get_device_properties(index)
            level = (card.major, card.minor)
            memory = card.total_memory / GIB
            gpus.append(Gpu(str(index), memory, card.name, level))
    return tuple(gpus), torch.backends.mps.is_available()


def find_nearest(folder: str | Path) -> Path:
    """The folder, or the one that it would be made in."""
    nearest = Path(folder).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    return nearest


def find_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- the machine and its tiers ---


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


def judge_amount(name: str, have: float, need: float, fix: str) -> Line:
    """WARN when less than ``need`` GiB are free."""
    text = f"{have:.1f} GiB free"
    if have < need:
        return Line("WARN", name, f"{text}, under {need:.0f} GiB: {fix}")
    return Line("OK", name, text)


def judge_gpus(machine: Machine, needed: bool = False) -> list[Line]:
    """One line a GPU, or one that says there is none.

    Cards that torch cannot use are a FAIL when they are ``needed``.
    """
    if not machine.gpus:
        text = "none; tier pocket runs on the CPU"
        if machine.mps:
            text = "Apple (MPS); the course uses the CPU"
        return [Line("OK", "gpu", text)]
    lines = [
        Line("OK", f"gpu {index}", str(gpu))
        for index, gpu in enumerate(machine.gpus)
    ]
    if not machine.torch_cuda:
        text = "sees none of these cards. Do this: install a CUDA build of it."
        lines.append(Line("FAIL" if needed else "WARN", "torch", text))
    return lines


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
    if recipe.model.id == SMOL_ID:
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
    return (REPO_ROOT / model_id).exists() or (
        model_id.split("/")[0] != "data"
    )


# --- one tier: cards, steps and memory ---


def judge_cards(recipe: Recipe, machine: Machine) -> list[Line]:
    """As many cards as the recipe asks for, and torch can use them."""
    device = choose_device(recipe, machine)
    need, have = max(1, recipe.hardware.cards), len(machine.gpus)
    if device == "mps":
        if machine.mps:
            return [Line("OK", "cards", "an Apple GPU is there")]
        text = "no Apple GPU. Do this: --set hardware.device=auto."
        return [Line("FAIL", "cards", text)]
    if device != "cuda":
        return [Line("OK", "cards", f"device '{device}': none needed")]
    fix = "start where there is one; tier pocket needs none"
    if fewer := find_fewer_cards(recipe, have):
        fix = f"start where there are {need}, or --set hardware.cards={fewer} "
        fix += "(the effective batch stays the same)"
    what = f"The processes of recipe '{recipe.name}', one a card,"
    lines = [
        try_guard(
            "cards",
            lambda: check_card_count(what, need, have, fix=fix),
            f"{need} wanted, {have} there",
        )
    ]
    dtype = recipe.model.dtype
    for gpu in machine.gpus[:need]:
        lines.append(
            try_guard(
                "precision",
                lambda g=gpu: check_precision(g.name, g.capability, dtype),
                f"{dtype} on {gpu.name}",
            )
        )
    return lines


def find_fewer_cards(recipe: Recipe, most: int) -> int:
    """The largest number of cards that both trainers can divide; or 0."""
    for cards in range(most, 0, -1):
        if all(
            config.effective_batch % (config.per_device_batch * cards) == 0
            for config in (recipe.sft, recipe.dpo)
        ):
            return cards
    return 0


def judge_plan(recipe: Recipe, machine: Machine) -> list[Line]:
    """Steps, serving and memory, and what else the planner warns of."""
    found = plan(recipe, has_token=True)
    lines = [
        judge_steps(steps)
        for steps in found.steps.values()
        if steps.job.min_steps_per_epoch
    ]
    if found.replicas:
        lines.append(Line("OK", "serving", found.replicas.why.split(". ")[0]))
    lines += judge_jobs(recipe, found, machine)
    advice = collect_advice(found.workload, found.steps, found.replicas)
    return lines + [Line("WARN", "plan", text) for text in advice]


def judge_steps(steps: JobSteps) -> Line:
    """The packing trap; a WARN, as the rows are only estimated."""
    job, count = steps.job, steps.count
    rows = job.rows if job.packing else None
    return try_guard(
        f"steps of {job.title}",
        lambda: check_steps_per_epoch(
            count, job.min_steps_per_epoch, unpacked_rows=rows
        ),
        f"about {count.per_epoch} an epoch, {count.total} in all",
        status="WARN",
    )


def judge_jobs(recipe: Recipe, found: Plan, machine: Machine) -> list[Line]:
    """Every job of the plan against the memory that is here.

    Where the recipe's cards are not here, against those it is planned for.
    """
    memory, card = found.memory, found.workload.card
    cards = machine.gpus[: max(1, recipe.hardware.cards)]
    on_cards = choose_device(recipe, machine) == "cuda"
    if on_cards and cards:
        least = min(cards, key=lambda gpu: gpu.memory_gib)
        name, have = f"a {least.name}", least.memory_gib
        if card is None:  # "auto" was planned for a CPU
            memory = estimate_on(recipe, found, least)
    elif on_cards and card:
        name, have = f"a planned {card.name}", card.memory_gib
    else:
        name, have = "this machine", machine.memory_gib - PROCESS_GIB
    lines = [judge_job(recipe, job, name, have) for job in memory]
    if on_cards and not cards:  # this machine's memory says nothing of theirs
        return lines
    return [*lines, judge_merge(recipe, found.parameters, machine)]


def estimate_on(recipe: Recipe, found: Plan, gpu: Gpu) -> list[MemoryEstimate]:
    """The plan's jobs on a card that is here; its speed is not asked."""
    card = Card(gpu.name, gpu.memory_gib, 1, 1, 1, has_bf16=gpu.bf16)
    work = found.workload.on(card, found.workload.cards)
    work = dataclasses.replace(work, dtype=choose_format(recipe, card))
    return estimate_memory(work)


def judge_job(
    recipe: Recipe, estimate: MemoryEstimate, name: str, have: float
) -> Line:
    """FAIL when a job does not fit; with a memory ladder only WARN."""
    title = f"memory of {estimate.title}"
    warning = judge_memory(estimate, name, have)
    if warning is None:
        text = f"{estimate.gib:.1f} of {have:.1f} GiB, {name}"
        return Line("OK", title, text)
    if recipe.model.ladder:
        text = f"{warning} The memory ladder will try with fewer bits."
        return Line("WARN", title, text)
    return Line("FAIL", title, warning)


def judge_merge(recipe: Recipe, parameters: int, machine: Machine) -> Line:
    """A merge is done in fp32: on the card, or else in the free memory."""
    title, need = "memory of the merge", 4 * parameters / GIB
    text = f"{need:.1f} GiB in fp32"
    if choose_device(recipe, machine) == "cuda" and machine.gpus:
        card = machine.gpus[0]  # a merge is the work of one process
        if need <= USABLE * card.memory_gib:
            return Line("OK", title, f"{text}, on a {card.name}")
    free = machine.available_gib
    if need <= free:
        return Line("OK", title, f"{text} of {free:.1f} GiB free")
    text += f", {free:.1f} GiB are free. Do this: "
    if need <= machine.memory_gib:
        return Line("WARN", title, f"{text}close other programs.")
    text += "merge on a machine with more memory."
    # With a ladder the model may become a smaller one.
    return Line("WARN" if recipe.model.ladder else "FAIL", title, text)


# --- packages of the tier ---


def judge_extras(recipe: Recipe) -> list[Line]:
    """The tier's own packages, at versions that are known to work."""
    lines = [
        judge_package(requirement, extra)
        for extra in list_extras(recipe)
        for requirement in read_extra(extra)
    ]
    if recipe.engine.name == "vllm" and not recipe.engine.url:
        fine = f"'{recipe.engine.command}' is installed"
        lines.append(
            try_guard("vllm", lambda: bool(find_command(recipe)), fine)
        )
    return lines


def list_extras(recipe: Recipe) -> list[str]:
    """Names of the extras of this package that the recipe needs."""
    extras = []
    if recipe.model.quantization:
        extras.append("gpu")
    if recipe.hardware.strategy != "ddp" and recipe.hardware.cards > 1:
        extras.append("zero3")
    mixed = recipe.solutions.mix if recipe.solutions else ()
    if any(n.startswith(GYM_PREFIX) for n in (recipe.data.train, *mixed)):
        extras.append("build")
    return extras


def read_extra(extra: str) -> Iterator[Any]:
    """The requirements of an extra, as this package declares them."""
    from packaging.requirements import Requirement

    try:
        declared = importlib.metadata.requires("math-slm-lab") or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    for text in declared:
        found = Requirement(text)
        if found.marker and not found.marker.evaluate({"extra": ""}):
            if found.marker.evaluate({"extra": extra}):
                yield found


def judge_package(requirement: Any, extra: str) -> Line:
    """FAIL when it is missing or older than the extra asks for."""
    name, needed = requirement.name, requirement.specifier
    version = find_version(name)
    fix = f'Do this: python -m pip install -c constraints.txt -e ".[{extra}]"'
    if version is None:
        return Line("FAIL", name, f"not installed. {fix}")
    if not needed.contains(version, prereleases=True):
        return Line("FAIL", name, f"{version}, {needed} is needed. {fix}")
    return Line("OK", name, f"{version} (extra {extra}, {needed})")


# --- the base model ---


def judge_model(recipe: Recipe) -> list[Line]:
    """Weights, licence and tokenizer of the recipe's base model."""
    if recipe.model.id == SMOL_ID and not is_here(recipe):
        reasons = smol.find_obstacles()
        text = "; ".join(reasons) or "made from its package when first needed"
        return [Line("FAIL" if reasons else "OK", "model", text)]
    base = find_base(recipe)
    if not base.is_dir():
        return judge_hub_model(recipe)
    return [judge_folder(base), judge_tokenizer(recipe, base)]


def judge_folder(folder: Path) -> Line:
    """FAIL for a folder that holds no whole model."""
    fine = f"{folder.name} holds a whole model"
    return try_guard("model", lambda: require_whole(folder), fine)


def require_whole(folder: Path) -> None:
    """Refuse a model folder that is incomplete or was cut off.

    The weights are not read: the index names the files, and the head of
    each file says how long it is.

    Raises:
        LabError: names the file that is missing or too short.
    """
    from safetensors import SafetensorError, safe_open

    names = {p.name for p in folder.glob("*.safetensors")}
    missing = set()
    if (folder / INDEX).is_file():
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
        missing = {*index["weight_map"].values()} - names
    fault = ""
    if not (folder / CONFIG).is_file():
        fault = f"there is no {CONFIG}"
    elif missing:
        fault = f"there is no {min(missing)}"
    elif not names and not any(folder.glob("*.bin")):
        fault = "there are no weights"
    for name in sorted(names):
        try:
            with safe_open(folder / name, "numpy"):
                continue
        except (SafetensorError, OSError) as error:
            fault = fault or f"{name}: {error}"
    if fault:
        raise LabError(
            f"The model folder {folder} is not whole: {fault}.",
            why="a copy or a download was cut off",
            fix="copy it again, or remove the folder to fetch it anew",
        )


def judge_hub_model(recipe: Recipe) -> list[Line]:
    """A hub model: in the local cache, or to be fetched, with a token?"""
    name, cached = recipe.model.id, find_cached(recipe)
    lines = judge_licence(recipe, cached)
    if cached:
        line = Line("OK", "model", f"{name} is in the hub's local cache")
        return [line, *lines, judge_tokenizer(recipe, Path(name))]
    if is_offline():
        text = (
            f"{name} is neither a folder nor in the local cache, and the hub "
            "is not asked (no network, or HF_HUB_OFFLINE). Do this: connect "
            "once, or set MATHSLM_MODEL_DIR to a folder with a copy."
        )
        return [Line("FAIL", "model", text), *lines]
    text = (
        f"{name} will be fetched from the hub. Do this once, on a machine "
        "that is not rented by the minute"
    )
    return [Line("WARN", "model", text), *lines]


def is_offline() -> bool:
    """Whether the hub library is told to stay off the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or bool(
        os.environ.get("TRANSFORMERS_OFFLINE")
    )


def judge_licence(recipe: Recipe, cached: Path | None) -> list[Line]:
    """FAIL for a gated model that is not here and no token to fetch it."""
    try:
        gated = find_shape(recipe.model.id).gated
    except LabError:  # a model that the planner does not know
        gated = False
    if not gated:
        return []
    if cached or find_token():
        return [Line("OK", "licence", "gated; a token or a copy is here")]
    text = (
        f"{recipe.model.id} is gated and no token of the hub is set. Do "
        "this: accept its licence on its page and run 'hf auth login', or "
        "choose an ungated tier (t4, t4-r1)."
    )
    return [Line("FAIL", "licence", text)]


def judge_tokenizer(recipe: Recipe, path: Path) -> Line:
    """Template, BOS, end token and marks, on the real tokenizer."""
    template = recipe.data.prompt_template
    revision = None if path.is_dir() else recipe.model.revision
    return try_guard(
        "tokenizer",
        lambda: check_template(load_tokenizer(path, revision), template),
        f"template '{template}', one BOS, the end token and marks survive",
    )


# --- problem sets, output, and the stages ---


def judge_sets(recipe: Recipe) -> list[Line]:
    """How many sets are here, and one line for each that is not.

    Worked solutions come from sets of their own, which must not overlap with
    others.
    """
    names = [recipe.data.train, recipe.data.dev]
    names += [b.path for b in recipe.evaluate.benchmarks]
    if recipe.solutions:
        names += [*recipe.solutions.mix, *list_against(recipe)]
    lines = [judge_set(name) for name in dict.fromkeys(names)]
    bad = [line for line in lines if line.status != "OK"]
    here = len(lines) - len(bad)
    return [Line("OK", "problem sets", f"{here} are here"), *bad]


def judge_set(name: str) -> Line:
    """One set: a file, a local copy, a generator, or the hub."""
    title = f"problem set {name}"
    if is_local(name):
        find = find_source if name.startswith(GYM_PREFIX) else hash_problems
        return try_guard(title, lambda: bool(find(name)), "is here")
    text = (
        f"comes from the hub ({find_source(name).hub_id}). Do this, where "
        f"there is no network: put a copy named {name}.jsonl into "
        "MATHSLM_DATA_DIR, or fill the cache while connected."
    )
    return Line("WARN", title, text)


def judge_output(recipe: Recipe, folder: Path, machine: Machine) -> list[Line]:
    """The run folder can be written, and what a run writes has room."""
    nearest = find_nearest(folder)
    made = "is there" if nearest == folder.absolute() else "can be made"
    need = estimate_run_space(recipe)
    text = f"a run writes up to {need:,} MB"
    if "/" in recipe.model.id and not is_here(recipe):
        fetched = estimate_space(recipe, "merge")
        need += fetched
        text += f", the model to fetch has {fetched:,} MB"
    have = machine.disk_gib * 1024
    return [
        try_guard(
            "output",
            lambda: require_writable(nearest),
            f"{folder} {made} and written",
        ),
        try_guard(
            "disk",
            lambda: check_space(str(folder), have, need),
            f"{text}; {have:,.0f} MB are free",
        ),
    ]


def judge_results(recipe: Recipe, folder: Path, force: bool) -> list[Line]:
    """Earlier results of the folder, as its stages themselves judge them."""
    run = RunDir(folder, recipe)
    run.check_same_recipe()
    begun = run.file("recipe.yaml").is_file()
    text = "the folder is of this recipe" if begun else "none there yet"
    lines = [Line("OK", "results", text)]
    names = list_stages(recipe)
    done = {name for name in names if stage_file(folder, name).is_file()}
    if is_here(recipe):
        return lines + [
            judge_stage(recipe, run, stage, stage in done, force)
            for stage in names
            if stage in done or may_start(recipe, stage, done)
        ]
    if done:
        text = "not compared with the recipe: the model is not here"
        lines = [Line("WARN", "results", text)]
    return lines


def is_here(recipe: Recipe) -> bool:
    """Whether the base model lies on this machine."""
    if recipe.model.id == SMOL_ID:
        return smol.is_complete(smol.smol_folder())
    return find_base(recipe).is_dir() or find_cached(recipe) is not None


def find_cached(recipe: Recipe) -> Path | None:
    """The model's folder in the hub's local cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        recipe.model.id, CONFIG, revision=recipe.model.revision
    )
    return Path(found).parent if isinstance(found, str) else None


def may_start(recipe: Recipe, stage: str, done: set[str]) -> bool:
    """Whether all that a stage goes on from is there.

    Several samples a problem are judged only where some were drawn already.
    """
    several = stage.startswith("evaluate-t")
    return not several and done.issuperset(list_dependencies(recipe, stage))


def judge_stage(
    recipe: Recipe, run: RunDir, stage: str, done: bool, force: bool
) -> Line:
    """What a stage says of its inputs before it would load a model."""

    def ask(force: bool) -> Line:
        def check() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                run_stage(recipe, run, stage, check=True, force=force)

        text = "done, of this recipe" if done else "may start"
        return try_guard(f"stage {stage}", check, text)

    line = ask(False)
    if line.status == "OK" or not force:
        return line
    again = ask(True)
    if again.status == "OK":
        return Line("WARN", again.name, "will be set aside (--force)")
    return again
