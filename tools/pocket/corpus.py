"""The pretraining corpus and the problem sets, seeded and disjoint.

Disjoint by construction: a calculation (family and numbers, not names or
wording) belongs to exactly one of ``pretrain``, ``train``, ``dev``, ``test``,
decided by a hash of its signature. The shifted set uses wordings and
families that only ``test`` ever contains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from random import Random

from tools.pocket import gym
from tools.pocket.stories import HELD_OUT, TRAINED, make_fact
from tools.pocket.story import Story
from tools.pocket.styles import write_solution

Maker = Callable[[Random], Story]
# Shares of the hash space, in percent: the rest is pretraining.
SPLITS = {"test": 8, "dev": 4, "train": 12}
# How often each source appears in the corpus and in main, train and dev.
SOURCES = {"story": 0.78, "equation": 0.10, "chain_sum": 0.05, "gsm": 0.07}
CORPUS_SOURCES = {**SOURCES, "fact": 0.18}
CORPUS_STEPS = {1: 0.18, 2: 0.26, 3: 0.26, 4: 0.18, 5: 0.08, 6: 0.04}
MAIN_STEPS = {2: 0.35, 3: 0.40, 4: 0.25}
EASY_STEPS = {1: 0.75, 2: 0.25}
HARD_STEPS = {5: 0.5, 6: 0.5}


def split_of(signature: str) -> str:
    """The one split that may contain this calculation."""
    digest = hashlib.sha256(signature.encode()).digest()
    bucket = int.from_bytes(digest[:4], "big") % 100
    for name, share in SPLITS.items():
        if bucket < share:
            return name
        bucket -= share
    return "pretrain"


def make_story(
    rng: Random,
    steps: dict[int, float],
    sources: dict[str, float] = SOURCES,
) -> Story:
    """One problem of the trained families with a number of steps drawn."""
    n = rng.choices(list(steps), list(steps.values()))[0]
    source = rng.choices(list(sources), list(sources.values()))[0]
    if source == "fact":
        return make_fact(rng, n)
    if source == "equation":
        return gym.make_equation(rng, n)
    if source == "chain_sum":
        return gym.make_chain_sum(rng, min(n, 4))
    if source == "gsm":
        return gym.make_gsm(rng, gym.GSM_TRAINED)
    return TRAINED[rng.choice(list(TRAINED))](rng, n)


def make_hard(rng: Random) -> Story:
    """A chain of five or six events."""
    n = rng.choices(list(HARD_STEPS), list(HARD_STEPS.values()))[0]
    scenes = ("pocket", "bus", "library", "saving", "farm")
    return TRAINED[rng.choice(scenes)](rng, n)


def make_shifted(rng: Random) -> Story:
    """A wording or family that pretraining never contains."""
    if rng.random() < 0.15:
        return gym.make_gsm(rng, gym.GSM_HELD_OUT)
    return HELD_OUT[rng.choice(list(HELD_OUT))](rng, rng.choice((1, 2, 2, 3)))


def make_set(
    seed: int, split: str, size: int, make: Maker, taken: set[str]
) -> list[Story]:
    """``size`` problems of one split, no calculation or text twice.

    Args:
        taken: signatures and texts already used; extended in place.
    """
    rng, out = Random(seed), []
    while len(out) < size:
        story = make(rng)
        if split_of(story.signature) != split:
            continue
        if story.signature in taken or story.text in taken:
            continue
        taken.update((story.signature, story.text))
        out.append(story)
    return out


def iter_corpus(seed: int) -> Iterator[tuple[str, str, str]]:
    """Endless pretraining documents: ``(problem, style, solution)``."""
    rng = Random(seed)
    while True:
        story = make_story(rng, CORPUS_STEPS, CORPUS_SOURCES)
        if split_of(story.signature) != "pretrain":
            continue
        style, solution = write_solution(rng, story)
        yield story.text, style, solution
