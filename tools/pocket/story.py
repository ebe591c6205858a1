"""What a word problem is: a text with its solution as data."""

from __future__ import annotations

from dataclasses import dataclass

NAMES = (
    "Maya Omar Lena Ivan Rosa Amir Nina Paul Zara Hugo Anna Tom Priya Ben "
    "Clara David Ella Frank Grace Hana"
).split()
THINGS = (
    "apples marbles stickers coins shells cards pencils buttons beads "
    "stamps cookies oranges books flowers balloons"
).split()


@dataclass(frozen=True)
class Step:
    """One calculation: ``left`` = ``value``, and what the value is."""

    left: str
    value: int
    what: str


@dataclass(frozen=True)
class Story:
    """A problem with its solution as data."""

    text: str
    steps: tuple[Step, ...]
    expression: str
    answer: int
    unit: str
    family: str

    @property
    def signature(self) -> str:
        """What must differ between train, dev and test: the calculation."""
        return f"{self.family}:{self.expression.replace(' ', '')}"
