"""Problems of reasoning-gym, read as stories with their steps.

``chain_sum`` and ``simple_equations`` come with their structure;
``gsm_symbolic`` templates come with a worked solution whose equations are
read back. Needs the extra ``build``; the shipped problem files do not.
"""

from __future__ import annotations

import importlib
import re
from random import Random

from tools.pocket.story import Step, Story

# gsm_symbolic templates with small whole numbers and clean equations.
GSM_TRAINED = (7, 10, 12, 31, 34, 43, 58, 72, 95)
GSM_HELD_OUT = (16, 54, 70, 75, 78)
EQUATION = re.compile(r"([\d\s+\-*/().$]+?)\s*=\s*\$?(\d+)(?![\d.])")
MAX_VALUE = 999


def make_chain_sum(rng: Random, n_steps: int) -> Story:
    """A sum of ``n_steps + 1`` numbers of one or two digits."""
    from reasoning_gym.arithmetic.chain_sum import (
        ChainSumConfig,
        ChainSumDataset,
    )

    config = ChainSumConfig(
        min_terms=n_steps + 1,
        max_terms=n_steps + 1,
        min_digits=1,
        max_digits=2,
        seed=rng.getrandbits(31),
        size=50,
    )
    for item in ChainSumDataset(config):
        parts = item["metadata"]["expression"].split()
        steps, value = [], int(parts[0])
        for sign, number in zip(parts[1::2], parts[2::2], strict=True):
            after = value + int(number) * (1 if sign == "+" else -1)
            steps.append(Step(f"{value} {sign} {number}", after, "the sum"))
            value = after
        if all(step.value >= 0 for step in steps):
            expression = item["metadata"]["expression"]
            return Story(
                f"Work out {expression}.",
                tuple(steps),
                expression,
                value,
                "",
                "chain_sum",
            )
    return make_chain_sum(rng, n_steps)


def make_equation(rng: Random, n_steps: int) -> Story:
    """A linear equation in one unknown; ``n_steps`` is not used (two)."""
    from reasoning_gym.algebra.simple_equations import (
        SimpleEquationsConfig,
        SimpleEquationsDataset,
    )

    config = SimpleEquationsConfig(
        min_terms=2,
        max_terms=2,
        min_value=1,
        max_value=9,
        operators_weights=(0.5, 0.3, 0.2),
        seed=rng.getrandbits(31),
        size=50,
    )
    for item in SimpleEquationsDataset(config):
        steps = _solve(item["metadata"]["equation"], int(item["answer"]))
        if steps:
            equation = item["metadata"]["equation"]
            unknown = item["metadata"]["variable"]
            expression = _expression(steps)
            return Story(
                item["question"],
                steps,
                expression,
                int(item["answer"]),
                "",
                f"equation {equation.replace(unknown, 'x')}",
            )
    return make_equation(rng, n_steps)


def _solve(equation: str, answer: int) -> tuple[Step, ...] | None:
    """Steps for ``a*x + b = c``, ``a*x - b = c`` and ``b + a*x = c``."""
    left, _, right = equation.partition(" = ")
    found = re.fullmatch(r"(\d+)\*[a-z] ([+-]) (\d+)", left)
    if found:
        a, sign, b = int(found[1]), found[2], int(found[3])
    else:
        found = re.fullmatch(r"(\d+) \+ (\d+)\*[a-z]", left)
        if not found:
            return None
        a, sign, b = int(found[2]), "+", int(found[1])
    if not right.isdigit() or answer < 0:
        return None
    c, back = int(right), "-" if sign == "+" else "+"
    rest = c - b if sign == "+" else c + b
    if rest < 0:
        return None
    return (
        Step(f"{c} {back} {b}", rest, "the left side"),
        Step(f"{rest} / {a}", rest // a, "the unknown"),
    )


def _expression(steps: tuple[Step, ...]) -> str:
    return f"({steps[0].left}) / {steps[1].left.split()[-1]}"


def make_gsm(rng: Random, tasks: tuple[int, ...]) -> Story:
    """A gsm_symbolic problem whose worked solution reads back cleanly."""
    base = "reasoning_gym.arithmetic.gsm_symbolic.generators_"
    while True:
        task = rng.choice(tasks)
        module = importlib.import_module(
            base + ("00_49" if task < 50 else "50_99")
        )
        item = getattr(module, f"generate_{task}")(rng, 1.0)
        story = _read_back(item, task)
        if story is not None:
            return story


def _read_back(item: dict, task: int) -> Story | None:
    steps = []
    for left, value in EQUATION.findall(item["metadata"]["answer_cot"]):
        left = re.sub(r"\s*([-+*/])\s*", r" \1 ", left.replace("$", ""))
        left = left.strip()
        if not re.fullmatch(r"[\d +\-*/()]+", left):
            return None
        if not re.search(r"\d [-+*/] ", left) or int(value) > MAX_VALUE:
            return None
        steps.append(Step(left, int(value), "the result"))
    if not steps or str(steps[-1].value) != item["answer"]:
        return None
    if max(map(int, re.findall(r"\d+", item["question"]))) > MAX_VALUE:
        return None
    return Story(
        " ".join(item["question"].split()),
        tuple(steps),
        steps[-1].left,
        steps[-1].value,
        "",
        f"gsm_symbolic {task} "
        + "-".join(re.findall(r"\d+", item["question"])),
    )
