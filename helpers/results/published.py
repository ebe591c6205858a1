"""What other projects published, as facts with their source.

``load_published("math-slm")`` reads and checks the file of that name in
``data/published/``: scores (with the counts behind them), single facts and
small tables, each naming the source it was read from. These are other
people's figures: show them with :attr:`Published.credit` and never as
results of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from helpers.base import DATA_DIR, LabError, did_you_mean, read_json

PUBLISHED_DIR = DATA_DIR / "published"


class _Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Fact):
    """A document: what it is called and where it is found."""

    title: str = Field(min_length=1)
    where: str = Field(min_length=1)


class Score(_Fact):
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
    source: str
    where: str
    note: str = ""

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


class Fact(_Fact):
    """One published number or word, with its unit and place."""

    value: float | int | str
    unit: str = ""
    source: str
    where: str
    note: str = ""


class Table(_Fact):
    """A small published table; every row has the same columns."""

    source: str
    where: str
    note: str = ""
    rows: list[dict[str, Any]] = Field(min_length=1)

    @model_validator(mode="after")
    def _same_columns(self):
        if len({tuple(row) for row in self.rows}) > 1:
            raise ValueError("the rows have different columns")
        return self


class Published(_Fact):
    """All that is used of one project's publication."""

    name: str
    title: str
    published_by: str
    model: str
    decoding: str
    sources: dict[str, Source]
    scores: list[Score]
    facts: dict[str, Fact]
    tables: dict[str, Table]

    @model_validator(mode="after")
    def _sources_exist(self):
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
        where = "; ".join(s.where for s in self.sources.values())
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


def list_published() -> list[str]:
    """Names of the publications at hand."""
    return sorted(path.stem for path in PUBLISHED_DIR.glob("*.json"))


def load_published(name: str, folder: str | Path | None = None) -> Published:
    """Read and check one publication.

    Raises:
        LabError: unknown name, or a file that does not hold together (a
            count that is not its percentage, an unnamed source).
    """
    folder = Path(folder) if folder else PUBLISHED_DIR
    path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.json"))
        raise LabError(
            f"There is no publication '{name}'.{did_you_mean(name, known)}",
            fix="choose one of: " + ", ".join(known),
        )
    try:
        return Published.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise LabError(
            f"{path}: {where}: {first['msg']}.",
            fix="mend the entry against its source",
        ) from None


def grid(name: str = "math-slm") -> dict[str, dict[str, Score]]:
    """The published scores of a project as ``grid[model][benchmark]``."""
    return load_published(name).grid()


def _pick(known: dict[str, Any], key: str, what: str) -> Any:
    if key not in known:
        raise LabError(
            f"There is no {what} '{key}'.{did_you_mean(key, known)}",
            fix="choose one of: " + ", ".join(known),
        )
    return known[key]
