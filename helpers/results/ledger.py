"""Published bills, recomputed from the facts that were published with them.

A check of the planner's own arithmetic, and a first lesson: much of a bill
is not computation.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.results.published import load_published


@dataclass(frozen=True)
class LedgerLine:
    """One line of a bill: what was published, and what the rates give."""

    phase: str
    minutes: float
    published_usd: float | None
    usd: float

    @property
    def off(self) -> float:
        """Recomputed minus published, in USD; 0 where none is published."""
        if self.published_usd is None:
            return 0.0
        return self.usd - self.published_usd


def recompute_math_slm() -> list[LedgerLine]:
    """The ledger of the published 7B run, minute by minute, and its total.

    The idle line has no minutes there: it is what is left of the 3.5 hours.
    """
    found = load_published("math-slm")
    rate = float(found.fact("run.usd_per_hour").value) / 60
    total = 60 * float(found.fact("run.hours").value)
    rows = found.table("ledger").rows
    known = sum(row["minutes"] or 0 for row in rows)
    lines = []
    for row in rows:
        minutes = row["minutes"] or total - known
        lines.append(
            LedgerLine(row["phase"], minutes, row["usd"], minutes * rate)
        )
    billed = float(found.fact("run.usd").value)
    return [*lines, LedgerLine("total", total, billed, total * rate)]


def price_idle_cards(idle: int = 4) -> float:
    """What the idle cards of the published TP=4 engine cost, in USD.

    Half of the eight cards had no work while data were sampled and models
    evaluated.
    """
    found = load_published("math-slm")
    cards = float(found.fact("run.cards").value)
    rate = float(found.fact("run.usd_per_hour").value) / 60
    minutes = sum(
        row["minutes"]
        for row in found.table("ledger").rows
        if "TP=4" in row["phase"] or "Eval" in row["phase"]
    )
    return minutes * rate * idle / cards


def recompute_open_rs() -> tuple[float, float]:
    """(card-hours, USD a card-hour) behind the published 42 USD."""
    found = load_published("open-rs")
    hours = float(found.fact("run.cards").value) * float(
        found.fact("run.hours").value
    )
    return hours, float(found.fact("run.usd").value) / hours
