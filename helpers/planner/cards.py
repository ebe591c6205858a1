"""The table of cards: memory, bandwidth, arithmetic and price.

The numbers are data: ``cards.yaml``, with what each means and its source.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from helpers.base import LabError, did_you_mean

GIB = 2**30
FILE = Path(__file__).with_name("cards.yaml")


@dataclass(frozen=True, config={"extra": "forbid"})
class Card:
    """One accelerator; the fields are explained in ``cards.yaml``."""

    name: str
    memory_gib: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    tflops: float = Field(gt=0)
    link_gb_s: float = Field(gt=0)
    has_bf16: bool = True
    usd_per_hour: float | None = Field(default=None, gt=0)


def read_cards() -> dict[str, Card]:
    """``{name: card}`` of the table, in its order.

    Raises:
        pydantic.ValidationError: a card that lacks a number.
    """
    rows = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    cards = TypeAdapter(list[Card]).validate_python(rows)
    return {card.name: card for card in cards}


CARDS = read_cards()


def find_card(name: str) -> Card:
    """A card by its name, upper or lower case, with or without blanks.

    Raises:
        LabError: no such card, with the closest name.
    """
    wanted = _plain(name)
    for card in CARDS.values():
        if _plain(card.name) in (wanted, f"rtx{wanted}"):
            return card
    raise LabError(
        f"There is no card '{name}' in the planner's table."
        f"{did_you_mean(name, CARDS)}",
        fix="choose one of: " + ", ".join(CARDS),
    )


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
