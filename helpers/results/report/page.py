"""The report as one Markdown page, and the same rendered to HTML.

A section collects blocks of Markdown; whatever is foreign (a response, a
file name, a message) goes through :func:`escape` or :func:`fence`. The HTML
page is markdown-it's rendering of the blocks inside ``template.html``, with
the figures in the text itself; ``report.md`` leaves them out, since every
figure has its numbers in a table beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from helpers.results.plots import figure_data

TEMPLATE_DIR = Path(__file__).resolve().parent
NUMBER = re.compile(r"^(< )?[+\-]?[\d.,]+( %)?$")
SPECIAL = re.compile(r"([\\`*_\[\]<>|&~])")
# What would begin a heading, a list or a line at the start of a block.
STARTS_BLOCK = re.compile(r"^(#{1,6}|[-+]|\d{1,9}[.)])(?=\s|$)|^-(?=[-\s]*$)")
LONG = 18  # characters of a cell that should not be set too narrow
FIGURES = ("figure", "tiles")  # classes of blocks with nothing but figures


@dataclass
class Block:
    """Some Markdown; ``css`` is its class on the HTML page.

    ``caption`` stands above a table, and in HTML inside it.
    """

    markdown: str
    css: str = ""
    caption: str = ""


@dataclass
class Section:
    """One part of the page. ``gap`` is shown when there are no blocks."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    gap: str = "Not in the run folder yet: see the missing parts at the end."

    @property
    def shown(self) -> list[Block]:
        """The blocks, or what to say instead."""
        return self.blocks or [Block(escape_block(self.gap), "note")]

    def text(self, text: str, tone: str = "") -> None:
        """Add a paragraph; ``tone`` may be a verdict, shown as a badge."""
        if text and tone:
            badge = f"**{tone.upper()}** {escape(text)}"
            self.blocks.append(Block(badge, f"verdict {tone}"))
        elif text:
            self.blocks.append(Block(escape_block(text)))

    def figure(self, figure: Any, alt: str) -> None:
        """Add a matplotlib figure with its alt text."""
        self.blocks.append(Block(write_image(figure, alt), "figure"))

    def tiles(self, figures: Sequence[tuple[Any, str]]) -> None:
        """Add several small figures side by side, each with alt text."""
        images = [write_image(figure, alt) for figure, alt in figures]
        if images:
            self.blocks.append(Block("\n\n".join(images), "tiles"))

    def table(
        self,
        caption: str,
        header: list[str],
        rows: list[list[Any]],
        note: str = "",
    ) -> None:
        """Add a table; the first cell of a row is its header."""
        cells = [[show_value(cell) for cell in row] for row in rows]
        table = write_table(header, cells)
        self.blocks.append(Block(table, "scroll", caption))
        if note:
            self.blocks.append(Block(escape_block(note), "note"))


# --- Markdown --------------------------------------------------------------


def write_table(header: list[str], rows: list[list[str]]) -> str:
    """A pipe table; columns of numbers are set to the right."""
    numbers = [
        place > 0 and all(is_number(row[place]) for row in rows)
        for place in range(len(header))
    ]
    marks = ["---:" if number else "---" for number in numbers]
    lines = [list(map(escape, header)), marks]
    lines += [list(map(escape, row)) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_image(figure: Any, alt: str) -> str:
    """A figure with the PNG itself in the text."""
    return f"![{escape(alt)}]({figure_data(figure, alt)})"


def escape(text: str) -> str:
    """The text in one line, with Markdown's own characters made plain."""
    return SPECIAL.sub(r"\\\1", re.sub(r"[\r\n]+", " ", text))


def escape_block(text: str) -> str:
    """The same of a whole paragraph, which must not become a list."""
    text = escape(text).strip()
    found = STARTS_BLOCK.match(text)
    if not found:
        return text
    place = found.end() - 1 if found[0][0].isdigit() else 0
    return f"{text[:place]}\\{text[place:]}"


def fence(text: str) -> str:
    """A code block that the text cannot leave."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"


def write_code(text: str) -> str:
    """Code within a line that the text cannot leave."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    ticks, space = "`" * (longest + 1), " " * bool(longest)
    return f"{ticks}{space}{text}{space}{ticks}"


def render_markdown(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page without its figures; ends with a line break."""
    parts = [f"# {escape(title)}", escape_block(lead)]
    for section in sections:
        parts.append(f"## {escape(section.title)}")
        for block in section.shown:
            if block.caption:
                parts.append(f"**{escape(block.caption)}**")
            if block.css not in FIGURES:
                parts.append(block.markdown)
    return "\n\n".join(parts) + "\n"


# --- HTML ------------------------------------------------------------------


def render_page(
    title: str, lead: str, sections: Sequence[Section], **words: Any
) -> str:
    """The page as HTML: the blocks rendered, the rest escaped by jinja2.

    Args:
        words: what else the template fills in.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html").render(
        title=title,
        lead=lead,
        sections=sections,
        render=lambda block: render_block(block.markdown, block.caption),
        **words,
    )


def render_block(markdown: str, caption: str = "") -> str:
    """One block as HTML, a table with its caption inside."""
    return make_renderer().render(markdown, {"caption": caption})


@cache
def make_renderer() -> Any:
    """markdown-it with tables and without HTML in the Markdown."""
    from markdown_it import MarkdownIt
    from markdown_it.common.utils import escapeHtml

    def open_table(self, tokens, place, options, env):
        return f"<table>\n<caption>{escapeHtml(env['caption'])}</caption>\n"

    def draw_fence(self, tokens, place, options, env):
        text = escapeHtml(tokens[place].content)
        return f'<pre tabindex="0">{text}</pre>\n'

    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    renderer.core.ruler.push("headers", _mark_headers)
    renderer.add_render_rule("table_open", open_table)
    renderer.add_render_rule("fence", draw_fence)
    return renderer


def _mark_headers(state: Any) -> None:
    """Make the first cell of a row its header; long cells get a class."""
    tokens = state.tokens
    for place, token in enumerate(tokens):
        if token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.type == "tr_open" and tokens[place + 1].type == "td_open":
            first = tokens[place + 1]
            first.tag = tokens[place + 3].tag = "th"
            first.attrSet("scope", "row")
        if token.type == "td_open" and len(tokens[place + 1].content) > LONG:
            token.attrSet("class", "long")


# --- values as text --------------------------------------------------------


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
    """True for a number, a percentage, a small p, or "–" for none."""
    return text == "–" or bool(NUMBER.match(text))


def show_seconds(seconds: float) -> str:
    """``75`` → ``1 min 15 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def flatten(
    values: Mapping[str, Any], prefix: str = "", *, lists: bool = False
) -> list[list[str]]:
    """Nested values as rows ``[dotted name, text]``.

    A share (a mapping with ``text``, or with ``k`` and ``n``) is one row, a
    list too if ``lists`` says so; else it is skipped.
    """
    rows: list[list[str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and "text" in value:
            rows.append([f"{prefix}{key}", str(value["text"])])
        elif isinstance(value, Mapping) and value.keys() >= {"k", "n", "p"}:
            share = f"{value['k']}/{value['n']} ({100 * value['p']:.1f} %)"
            rows.append([f"{prefix}{key}", share])
        elif isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{key}.", lists=lists)
        elif not isinstance(value, list):
            rows.append([f"{prefix}{key}", show_value(value)])
        elif lists:
            joined = ", ".join(map(str, value))
            rows.append([f"{prefix}{key}", show_value(joined)])
    return rows
