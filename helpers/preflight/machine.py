"""Cards, memory and packages: can this machine hold this tier?"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from collections.abc import Sequence

from helpers.base import Recipe
from helpers.doctor import Line, choose_device
from helpers.machine import Machine, find_version
from helpers.models import smol
from helpers.planner import (
    GIB,
    USABLE,
    Card,
    Gpu,
    MemoryEstimate,
    Plan,
    check_card_count,
    check_precision,
    choose_format,
    estimate_memory,
    judge_memory,
    plan,
)
from helpers.preflight.lines import try_guard
from helpers.problems import GYM_PREFIX
from helpers.sampling import find_command

PROCESS_GIB = 0.6  # Python, torch and the rest, beside the estimate


def judge_hardware(recipe: Recipe, machine: Machine) -> list[Line]:
    """Cards and their number format, memory, the packages of the tier."""
    return [
        *judge_cards(recipe, machine),
        *judge_memories(recipe, machine),
        *judge_extras(recipe),
    ]


def judge_cards(recipe: Recipe, machine: Machine) -> list[Line]:
    """As many cards as the recipe asks for, and torch can use them."""
    device = choose_device(recipe, machine)
    need = max(1, recipe.hardware.cards)
    if device == "mps":
        found = "there" if machine.mps else "not there"
        fix = "" if machine.mps else "; set hardware.device=auto"
        status = "OK" if machine.mps else "FAIL"
        return [Line(status, "cards", f"an Apple GPU is {found}{fix}")]
    if device != "cuda":
        return [Line("OK", "cards", f"device '{device}': none needed")]
    cards, have = machine.gpus[:need], len(machine.gpus)
    fix = "start where there is one; tier pocket needs none"
    if fewer := find_cards(recipe, have):
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
    if cards and not machine.torch_cuda:
        text = (
            "torch sees no CUDA, nvidia-smi lists cards. Do this: install a "
            f"CUDA build of torch {find_version('torch') or ''}".strip()
        )
        lines.append(Line("FAIL", "torch", text))
    return lines + [judge_precision(recipe, card) for card in cards]


def find_cards(recipe: Recipe, most: int) -> int:
    """The largest number of cards that both trainers can divide; or 0."""
    for cards in range(most, 0, -1):
        if all(
            config.effective_batch % (config.per_device_batch * cards) == 0
            for config in (recipe.sft, recipe.dpo)
        ):
            return cards
    return 0


def judge_precision(recipe: Recipe, card: Gpu) -> Line:
    """The recipe's number format on this card."""
    dtype = recipe.model.dtype
    return try_guard(
        "precision",
        lambda: check_precision(card.name, card.capability, dtype),
        f"{dtype} on {card.name}",
    )


def judge_memories(recipe: Recipe, machine: Machine) -> list[Line]:
    """Every job of the plan against the memory that is really here."""
    found = plan(recipe, has_token=True)
    merge = judge_merge(recipe, found.parameters, machine)
    if choose_device(recipe, machine) != "cuda":
        have = machine.memory_gib - PROCESS_GIB
        jobs = [
            judge_job(recipe, estimate, "this machine", have)
            for estimate in found.memory
        ]
        return [*jobs, merge]
    cards = machine.gpus[: max(1, recipe.hardware.cards)]
    if not cards:
        return []
    least = min(cards, key=lambda card: card.memory_gib)
    memory = found.memory
    if found.workload.card is None:  # "auto" was planned for a CPU
        memory = estimate_on(recipe, found, least)
    name, have = f"a {least.name}", least.memory_gib
    return [*(judge_job(recipe, j, name, have) for j in memory), merge]


def estimate_on(recipe: Recipe, found: Plan, gpu: Gpu) -> list[MemoryEstimate]:
    """The plan's jobs on a card that is here; its speed is not asked."""
    card = Card(gpu.name, gpu.memory_gib, 1, 1, 1, has_bf16=gpu.bf16)
    work = found.workload.on(card, found.workload.cards)
    work = dataclasses.replace(work, dtype=choose_format(recipe, card))
    return estimate_memory(work)


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
    ladder = recipe.model.ladder  # a smaller model may be settled on
    return Line("WARN" if ladder else "FAIL", title, text)


def judge_job(
    recipe: Recipe, estimate: MemoryEstimate, name: str, have: float
) -> Line:
    """FAIL when a job does not fit; with a memory ladder only WARN."""
    title = f"memory of {estimate.title}"
    warning = judge_memory(estimate, name, have)
    if warning is None:
        text = f"{estimate.gib:.1f} of {have:.1f} GiB"
        return Line("OK", title, text)
    if getattr(recipe.model, "ladder", None):
        text = f"{warning} The memory ladder will try with fewer bits."
        return Line("WARN", title, text)
    return Line("FAIL", title, warning)


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


def judge_extras(recipe: Recipe) -> list[Line]:
    """The tier's own packages, at versions that are known to work."""
    lines = []
    for extra in list_extras(recipe):
        for name, least in read_extra(extra):
            lines.append(judge_package(name, least, extra))
    if recipe.model.id == smol.SMOL_ID:
        reasons = smol.find_obstacles()
        text = "; ".join(reasons) or "the package or its model is there"
        lines.append(Line("FAIL" if reasons else "OK", "extra smol", text))
    if recipe.engine.name == "vllm" and not recipe.engine.url:
        lines.append(
            try_guard("vllm", lambda: find_command(recipe), "installed")
        )
        lines[-1] = _name_command(lines[-1], recipe)
    return lines


def _name_command(line: Line, recipe: Recipe) -> Line:
    """find_command returns a path, which is no warning."""
    if line.status != "WARN":
        return line
    return Line("OK", line.name, f"'{recipe.engine.command}' is installed")


def judge_package(name: str, least: str, extra: str) -> Line:
    """FAIL when it is missing or older than the extra asks for."""
    version = find_version(name)
    fix = f'Do this: python -m pip install -c constraints.txt -e ".[{extra}]"'
    if version is None:
        return Line("FAIL", name, f"not installed. {fix}")
    if parse_version(version) < parse_version(least):
        return Line("FAIL", name, f"{version}, {least} is needed. {fix}")
    return Line("OK", name, f"{version} (extra {extra}, {least} or newer)")


def read_extra(extra: str) -> Sequence[tuple[str, str]]:
    """(package, smallest version) of an extra, as this package declares."""
    try:
        declared = importlib.metadata.requires("math-slm-lab") or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    pattern = re.compile(
        r"([\w.-]+)\s*>=\s*([\w.]+)\s*;.*extra\s*==\s*[\"']"
        + re.escape(extra)
        + r"[\"']"
    )
    found = (pattern.match(text) for text in declared)
    return [(match[1], match[2]) for match in found if match]


def parse_version(text: str) -> tuple[int, ...]:
    """``"0.48.1+cu12"`` as (0, 48, 1)."""
    return tuple(int(n) for n in re.findall(r"\d+", text.split("+")[0])[:3])
