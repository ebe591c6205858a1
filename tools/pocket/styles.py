"""Solution styles: how different authors of a web corpus write.

``textbook`` authors work step by step and are careful, ``key`` authors give
one expression and an answer, ``forum`` authors think aloud, check again and
again and often forget to mark the answer. Some authors slip in the
arithmetic. A language model trained on the mixture learns all of them, and
which one it falls into decides whether its answer is right.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tools.pocket.story import Step, Story

# Which authors write about which family (the rest: DEFAULT_SITES).
DEFAULT_SITES = {"textbook": 0.38, "key": 0.32, "forum": 0.30}
SITES = {
    "chain_sum": {"textbook": 0.30, "key": 0.45, "forum": 0.25},
    "equation": {"textbook": 0.36, "key": 0.42, "forum": 0.22},
    "compare": {"textbook": 0.34, "key": 0.22, "forum": 0.44},
    "ages": {"textbook": 0.34, "key": 0.22, "forum": 0.44},
    "saving": {"textbook": 0.36, "key": 0.22, "forum": 0.42},
}
STYLES = {
    "textbook": {"steps": 0.40, "prose": 0.28, "hashes": 0.32},
    "key": {"one_line": 0.80, "bare": 0.20},
    "forum": {"rambling": 0.62, "unmarked": 0.38},
}
SLIP_RATE = {
    "steps": 0.02,
    "hashes": 0.02,
    "prose": 0.10,
    "one_line": 0.10,
    "bare": 0.10,
    "rambling": 0.08,
    "unmarked": 0.15,
}
CHECK_AGAIN = (0.7, 0.5, 0.5, 0.5, 0.5)


def write_solution(rng: Random, story: Story) -> tuple[str, str]:
    """One worked solution in a random style: ``(style, text)``."""
    family = story.family.split()[0]
    site = _choose(rng, SITES.get(family, DEFAULT_SITES))
    style = _choose(rng, STYLES[site])
    steps = list(story.steps)
    if rng.random() < SLIP_RATE[style]:
        steps = _slip(rng, steps)
    return style, RENDERERS[style](rng, story, steps)


def _choose(rng: Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _slip(rng: Random, steps: list[Step]) -> list[Step]:
    """One wrong result, carried on through the steps that use it."""
    at = rng.randrange(len(steps))
    wrong = steps[at].value + rng.choice((-10, -2, -1, 1, 2, 10))
    if wrong < 0:
        wrong = steps[at].value + 1
    out = steps[:at]
    changed = {steps[at].value: wrong}
    out.append(Step(steps[at].left, wrong, steps[at].what))
    for step in steps[at + 1 :]:
        parts = step.left.split()
        if len(parts) != 3:
            out.append(step)
            continue
        a, sign, b = int(parts[0]), parts[1], int(parts[2])
        a, b = changed.get(a, a), changed.get(b, b)
        value = {
            "+": a + b,
            "-": max(a - b, 0),
            "*": a * b,
            "/": a // max(b, 1),
        }[sign]
        changed[step.value] = value
        out.append(Step(f"{a} {sign} {b}", value, step.what))
    return out


def _steps(rng: Random, story: Story, steps: list[Step]) -> str:
    lines = [
        f"Step {i}: {s.what} is {s.left} = {s.value}."
        for i, s in enumerate(steps, 1)
    ]
    lines.append(f"The answer is \\boxed{{{steps[-1].value}}}.")
    return "\n".join(lines)


def _prose(rng: Random, story: Story, steps: list[Step]) -> str:
    words = ["First"] + ["Then"] * (len(steps) - 1)
    parts = [
        f"{w}, {s.left} = {s.value} gives {s.what}."
        for w, s in zip(words, steps, strict=True)
    ]
    end = f"So the final answer is \\boxed{{{steps[-1].value}}}."
    return " ".join(parts) + " " + end


def _hashes(rng: Random, story: Story, steps: list[Step]) -> str:
    lines = [f"{s.what}: {s.left} = {s.value}" for s in steps]
    return "\n".join(lines) + f"\n#### {steps[-1].value}"


def _one_line(rng: Random, story: Story, steps: list[Step]) -> str:
    value = steps[-1].value
    mark = rng.choice((f"\\boxed{{{value}}}", f"#### {value}"))
    return f"{story.expression} = {value}\n{mark}"


def _bare(rng: Random, story: Story, steps: list[Step]) -> str:
    return f"\\boxed{{{steps[-1].value}}}"


def _rambling(rng: Random, story: Story, steps: list[Step]) -> str:
    text = ["Okay, let me think about this."]
    for s in steps:
        lead = rng.choice(("So now", "Next", "Well,", "Hmm,"))
        text.append(f"{lead} I need {s.what}, that is {s.left} = {s.value}.")
    for chance in CHECK_AGAIN:
        if rng.random() > chance:
            break
        text.append("Wait, let me check that again.")
        text += [f"{s.left} is {s.value}." for s in steps]
        text.append(rng.choice(("Yes, that looks right.", "Good.")))
    text.append(f"I am sure now, the answer is \\boxed{{{steps[-1].value}}}.")
    return " ".join(text)


def _unmarked(rng: Random, story: Story, steps: list[Step]) -> str:
    value, unit = steps[-1].value, story.unit or "it"
    text = ["Let us see."] + [f"{s.left} makes {s.value}." for s in steps]
    endings = (
        f"That leaves {value} {unit}, if I count right.",
        f"I get {value} {unit} after {len(steps)} steps.",
        f"I get {value} {unit}, starting from {steps[0].left.split()[0]}.",
    )
    text.append(rng.choice(endings))
    return " ".join(text)


RENDERERS: dict[str, Callable[[Random, Story, list[Step]], str]] = {
    "steps": _steps,
    "prose": _prose,
    "hashes": _hashes,
    "one_line": _one_line,
    "bare": _bare,
    "rambling": _rambling,
    "unmarked": _unmarked,
}
