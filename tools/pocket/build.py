"""Write the pocket problem sets again: ``python -m tools.pocket.build``.

Needs the extra ``build`` (reasoning-gym). The same seed gives the same
files, byte for byte; a test compares a fresh build with the shipped one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helpers.base import DATA_DIR, Problem, write_records
from tools.pocket import corpus
from tools.pocket.story import Story

SEED = 20260102
MIXED_STEPS = {1: 0.12, **{n: 0.88 * p for n, p in corpus.MAIN_STEPS.items()}}
# name: (split, size, maker); tests first, so that they get their pick.
SETS: dict[str, tuple[str, int, corpus.Maker]] = {
    "main": (
        "test",
        500,
        lambda rng: corpus.make_story(rng, corpus.MAIN_STEPS),
    ),
    "easy": (
        "test",
        200,
        lambda rng: corpus.make_story(rng, corpus.EASY_STEPS),
    ),
    "hard": ("test", 60, corpus.make_hard),
    "shifted": ("test", 500, corpus.make_shifted),
    "dev": ("dev", 400, lambda rng: corpus.make_story(rng, MIXED_STEPS)),
    "train": ("train", 3000, lambda rng: corpus.make_story(rng, MIXED_STEPS)),
}


def to_problem(name: str, number: int, story: Story) -> Problem:
    """A story as a record; the solution is its plain list of steps."""
    lines = [f"{s.left} = {s.value} ({s.what})" for s in story.steps]
    return Problem(
        id=f"{name}-{number:04d}",
        problem=story.text,
        answer=str(story.answer),
        source=story.family.split()[0],
        solution="\n".join(lines),
    )


def build_sets(folder: Path) -> dict[str, int]:
    """Write every set as ``<folder>/<name>.jsonl``; returns their sizes."""
    taken: set[str] = set()
    sizes = {}
    for offset, (name, (split, size, make)) in enumerate(SETS.items()):
        stories = corpus.make_set(SEED + offset, split, size, make, taken)
        rows = [to_problem(name, i, s) for i, s in enumerate(stories)]
        sizes[name] = write_records(folder / f"{name}.jsonl", rows)
    return sizes


def main(
    out: Annotated[Path, typer.Option(help="folder of the files")] = (
        DATA_DIR / "pocket"
    ),
) -> None:
    """Write the problem sets and print their sizes."""
    for name, size in build_sets(out).items():
        print(f"{out / (name + '.jsonl')}: {size} problems")


if __name__ == "__main__":
    typer.run(main)
