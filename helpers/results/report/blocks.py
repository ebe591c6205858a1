"""The pieces a report page is made of; the template draws them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from helpers.results.plots import figure_html

NUMBER = re.compile(r"^(< )?[+\-]?[\d.,]+( %)?$")


@dataclass
class Table:
    """A table with a caption; the first cell of a row is its header."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    kind: Literal["table"] = "table"

    def classes(self, column: int) -> str:
        """How a column is set: numbers right, long texts not too narrow."""
        cells = [row[column] for row in self.rows]
        if all(is_number(cell) or cell == "–" for cell in cells):
            return "number"
        return "long" if max(map(len, cells)) > 18 else ""


@dataclass
class Figure:
    """A drawn figure, already HTML with its alt text."""

    html: str
    kind: Literal["figure"] = "figure"


@dataclass
class Tiles:
    """Several small figures side by side."""

    htmls: list[str]
    kind: Literal["tiles"] = "tiles"


@dataclass
class Text:
    """One paragraph; ``tone`` may be a verdict, shown as a badge."""

    text: str
    tone: str = ""
    kind: Literal["text"] = "text"


@dataclass
class Answer:
    """What one model wrote, and the grader's verdict on it."""

    model: str
    right: bool
    verdict: str
    text: str


@dataclass
class Example:
    """A problem with the answers of all models, side by side."""

    title: str
    problem: str
    gold: str
    answers: list[Answer]
    kind: Literal["example"] = "example"


Block = Table | Figure | Tiles | Text | Example


@dataclass
class Section:
    """One part of the page. ``gap`` is shown when there are no blocks."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    gap: str = "Not in the run folder yet: see the missing parts at the end."

    def text(self, text: str, tone: str = "") -> None:
        if text:
            self.blocks.append(Text(text, tone))

    def figure(self, figure: Any, alt: str, caption: str = "") -> None:
        self.blocks.append(Figure(figure_html(figure, alt, caption)))

    def table(
        self,
        caption: str,
        header: list[str],
        rows: list[list[Any]],
        note: str = "",
    ) -> None:
        cells = [[show_value(cell) for cell in row] for row in rows]
        self.blocks.append(Table(caption, header, cells, note))


def show_value(value: Any) -> str:
    """A value as table text: short floats, "–" for nothing."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def is_number(text: str) -> bool:
    """True for a cell that is only a number, a percentage or a small p."""
    return bool(NUMBER.match(text))


def show_seconds(seconds: float) -> str:
    """``75`` → ``1 min 15 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Nested values as rows ``[dotted name, text]``; lists are skipped.

    A share (a mapping with ``text``, or with ``k`` and ``n``) is one row.
    """
    rows: list[list[str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and "text" in value:
            rows.append([f"{prefix}{key}", str(value["text"])])
        elif isinstance(value, Mapping) and value.keys() >= {"k", "n", "p"}:
            share = f"{value['k']}/{value['n']} ({100 * value['p']:.1f} %)"
            rows.append([f"{prefix}{key}", share])
        elif isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            rows.append([f"{prefix}{key}", show_value(value)])
    return rows
