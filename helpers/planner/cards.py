"""A small table of cards: memory, bandwidth and arithmetic, as sold.

Sources: NVIDIA's data sheets (bandwidth and dense tensor throughput, without
sparsity) and the memory that ``nvidia-smi`` reports, which is less than the
name says where error correction takes its share. Prices are not in here:
they change by the week, and a recipe says what its machine costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.base import LabError, did_you_mean

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """One accelerator.

    ``memory_gib`` is what nvidia-smi shows, ``bandwidth_gb_s`` the memory's,
    ``tflops`` dense 16-bit tensor throughput with fp32 accumulation, and
    ``link_gb_s`` what it exchanges with its neighbours one way: NVLink, or
    PCI Express (about 80 % of its nominal rate).
    ``has_bf16`` is false below compute capability 8.0.
    """

    name: str
    memory_gib: float
    bandwidth_gb_s: float
    tflops: float
    link_gb_s: float
    has_bf16: bool = True


CARDS = {
    card.name: card
    for card in (
        Card("T4", 15360 / 1024, 320, 65, 12, has_bf16=False),
        # GeForce: half rate when sums are kept in fp32, as training does
        Card("RTX 3090", 24576 / 1024, 936, 71, 25),
        Card("A40", 46068 / 1024, 696, 149.7, 25),
        Card("A100 40GB", 40960 / 1024, 1555, 312, 300),
        Card("A100 80GB", 81920 / 1024, 2039, 312, 300),
        Card("H100", 81559 / 1024, 3350, 989, 450),
        Card("H200", 143771 / 1024, 4800, 989, 450),
    )
}


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
