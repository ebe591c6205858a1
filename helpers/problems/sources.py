"""Every data set this kit knows, as ``sources.yaml`` describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import field_validator
from pydantic.dataclasses import dataclass

from helpers.base import LabError, did_you_mean

FILE = Path(__file__).with_name("sources.yaml")
GYM_PREFIX = "reasoning-gym:"
GYM_FAMILIES = (
    "basic_arithmetic",
    "chain_sum",
    "gcd",
    "gsm_symbolic",
    "lcm",
    "leg_counting",
    "products",
    "simple_equations",
)
"""Families whose answer is one number, so that our grader can judge it."""


@dataclass(frozen=True)
class Source:
    """One data set and how its rows become problems.

    ``golds`` are (column, rule) pairs, see :mod:`helpers.problems.golds`; the
    first column that a row fills decides. ``keep`` names a row filter there.
    ``numeric`` golds must be numbers. ``rows`` is the size of the split, None
    where it is not known exactly. ``copies`` are further names under which a
    local copy may lie.
    """

    name: str
    hub_id: str = ""
    role: Literal["train", "evaluation"] = "train"
    split: str = "train"
    configs: tuple[str, ...] = ()
    revision: str | None = None
    problem: str = "problem"
    golds: tuple[tuple[str, str], ...] = (("answer", "text"),)
    solution: str = ""
    id_field: str = ""
    keep: str = ""
    uses: tuple[str, ...] = ()
    numeric: bool = False
    stream: bool = False
    rows: int | None = None
    size: str = ""
    licence: str = ""
    copies: tuple[str, ...] = ()
    file: str = ""
    note: str = ""

    @field_validator("golds", mode="before")
    @classmethod
    def _pair_up(cls, golds: Any) -> Any:
        """``[{column: rule}, …]`` as the file has it."""
        pairs = ([*g.items()] if isinstance(g, dict) else [g] for g in golds)
        return tuple(pair for found in pairs for pair in found)

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns without which a row cannot be read."""
        return (self.problem, *self.uses)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        optional = (self.solution, self.id_field)
        gold = tuple(column for column, _ in self.golds)
        names = (*self.needed, *gold, *(name for name in optional if name))
        return tuple(dict.fromkeys(names))


def read_sources() -> dict[str, Source]:
    """The sets of ``sources.yaml``, and the families of reasoning-gym."""
    rows = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    found = {name: Source(name, **row) for name, row in rows.items()}
    for family in GYM_FAMILIES:  # made, not loaded
        found[GYM_PREFIX + family] = Source(
            GYM_PREFIX + family,
            problem="question",
            numeric=True,
            solution="solution",
            size="made",
            licence="Apache-2.0",
            note="made from a seed; needs the extra `build`",
        )
    return found


SOURCES = read_sources()


def find_source(name: str) -> Source:
    """The source of that name.

    Raises:
        LabError: there is none; the message names the closest ones.
    """
    if name in SOURCES:
        return SOURCES[name]
    raise LabError(
        f"There is no problem set '{name}'.{did_you_mean(name, SOURCES)}",
        fix="choose from: " + ", ".join(SOURCES) + "; or give a .jsonl file",
    )
