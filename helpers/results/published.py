"""What other projects published, as facts with their source.

``load_published("math-slm")`` reads and checks the file of that name in
``data/published/``: scores (with the counts behind them), single facts and
small tables, each naming the source it was read from. These are other
people's figures: show them with :attr:`Published.credit` and never as
results of ours.

:func:`recompute_math_slm` and :func:`price_idle_cards` recompute a published
bill from those facts: a check of our own arithmetic, and a first lesson, for
much of a bill is not computation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from helpers.base import DATA_DIR, LabError, did_you_mean, read_json

PUBLISHED_DIR = DATA_DIR / "published"


class Entry(BaseModel):
    """What was read, and where: ``source`` is a key of the sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str
    where: str
    note: str = ""


class Fact(Entry):
    """One published number or word, with its unit."""

    value: float | int | str
    unit: str = ""


class Table(Entry):
    """A small published table; every row has the same columns."""

    rows: list[dict[str, Any]] = Field(min_length=1)

    @model_validator(mode="after")
    def _same_columns(self):
        if len({tuple(row) for row in self.rows}) > 1:
            raise ValueError("the rows have different columns")
        return self


class Score(Entry):
    """One published score.

    ``count`` says how ``k`` is known: "stated" in the source, "implied" by
    the percentage and n, or "nearest" when the percentage is no whole number
    of problems (an average over several samples).
    """

    model: str
    benchmark: str
    percent: float = Field(ge=0, le=100)
    k: int = Field(ge=0)
    n: int = Field(gt=0)
    count: Literal["stated", "implied", "nearest"]

    @model_validator(mode="after")
    def _count_fits_percent(self):
        off = abs(100 * self.k / self.n - self.percent)
        allowed = 50 / self.n if self.count == "nearest" else 0.05
        if self.k > self.n or off > allowed + 1e-9:
            raise ValueError(
                f"{self.k}/{self.n} is not {self.percent} % "
                f"({self.model}, {self.benchmark})"
            )
        return self


class Published(BaseModel):
    """All that is used of one project's publication.

    ``sources[key]`` has a ``title``, and ``where`` the document is found.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str
    published_by: str
    model: str
    decoding: str
    sources: dict[str, dict[str, str]]
    scores: list[Score]
    facts: dict[str, Fact]
    tables: dict[str, Table]

    @model_validator(mode="after")
    def _check(self):
        for name, source in self.sources.items():
            if set(source) != {"title", "where"} or not all(source.values()):
                raise ValueError(f"source '{name}' needs a title and a place")
        parts = [*self.scores, *self.facts.values(), *self.tables.values()]
        for part in parts:
            if part.source not in self.sources:
                raise ValueError(f"there is no source '{part.source}'")
        cells = [(s.model, s.benchmark) for s in self.scores]
        if len(set(cells)) != len(cells):
            raise ValueError("a model has two scores on one benchmark")
        return self

    @property
    def credit(self) -> str:
        """The line to print under every figure: published by whom, where."""
        where = "; ".join(s["where"] for s in self.sources.values())
        return f"published by {self.published_by} ({where})"

    def fact(self, key: str) -> Fact:
        """A fact by its key, e.g. ``"dpo.beta"``; LabError if unknown."""
        return _pick(self.facts, key, f"fact of {self.name}")

    def table(self, key: str) -> Table:
        """A table by its key, e.g. ``"ledger"``; LabError if unknown."""
        return _pick(self.tables, key, f"table of {self.name}")

    def grid(self) -> dict[str, dict[str, Score]]:
        """The scores as ``grid[model][benchmark]``, in published order."""
        out: dict[str, dict[str, Score]] = {}
        for score in self.scores:
            out.setdefault(score.model, {})[score.benchmark] = score
        return out


def load_published(name: str, folder: str | Path | None = None) -> Published:
    """Read and check one publication.

    Raises:
        LabError: unknown name, or a file that does not hold together (a
            count that is not its percentage, an unnamed source).
    """
    folder = Path(folder) if folder else PUBLISHED_DIR
    known = {path.stem: path for path in sorted(folder.glob("*.json"))}
    path = _pick(known, name, "publication")
    try:
        return Published.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise LabError(
            f"{path}: {where}: {first['msg']}.",
            fix="mend the entry against its source",
        ) from None


def _pick(known: dict[str, Any], key: str, what: str) -> Any:
    if key not in known:
        raise LabError(
            f"There is no {what} '{key}'.{did_you_mean(key, known)}",
            fix="choose one of: " + ", ".join(known),
        )
    return known[key]


class LedgerLine(NamedTuple):
    """One line of a bill: what was published, and what the rates give."""

    phase: str
    minutes: float
    published_usd: float
    usd: float


def recompute_math_slm() -> list[LedgerLine]:
    """The ledger of the published 7B run, minute by minute, and its total.

    The idle line has no minutes there: it is what is left of the 3.5 hours.
    """
    found = load_published("math-slm")
    rate = float(found.fact("run.usd_per_hour").value) / 60
    total = 60 * float(found.fact("run.hours").value)
    rows = found.table("ledger").rows
    idle = total - sum(row["minutes"] or 0 for row in rows)
    lines = []
    for row in rows:
        minutes = row["minutes"] or idle
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
