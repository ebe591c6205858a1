"""The report as Markdown, for a README or an issue.

Figures are left out: every figure has its numbers in a table beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from helpers.results.report.blocks import Example, Section, Table, Text
from helpers.results.report.collect import Gap, Results

ESCAPED = re.compile(r"([\\`*_\[\]<>|])")


def render_markdown(results: Results, sections: Sequence[Section]) -> str:
    """All texts and tables of the sections; ends with a line break."""
    recipe = results.run.recipe
    model = f"{escape(recipe.model.id)}, {recipe.model.dtype}"
    origin = results.describe_origin() if results.replayed.notes else ""
    parts = [
        f"# Run report: {escape(recipe.name)}",
        f"{model}, seed {recipe.seed}" + (origin and f" · {escape(origin)}"),
    ]
    for section in sections:
        parts.append(f"## {escape(section.title)}")
        blocks = [render_block(block) for block in section.blocks]
        parts += [text for text in blocks if text] or [escape(section.gap)]
    if results.gaps:
        parts += ["## Missing parts", render_gaps(results.gaps)]
    return "\n\n".join(parts) + "\n"


def render_block(block: object) -> str:
    """One block as Markdown; "" for a figure."""
    if isinstance(block, Text):
        tone = f"**{block.tone.upper()}** " if block.tone else ""
        return tone + escape(block.text)
    if isinstance(block, Table):
        return render_table(block)
    if isinstance(block, Example):
        return render_example(block)
    return ""


def render_table(table: Table) -> str:
    """A pipe table under its caption; columns of numbers to the right."""
    numbers = [
        place and table.classes(place) == "number"
        for place in range(len(table.header))
    ]
    lines = [
        table.header,
        ["---:" if number else "---" for number in numbers],
        *table.rows,
    ]
    rows = [
        "| " + " | ".join(_cell(text, i == 1) for text in row) + " |"
        for i, row in enumerate(lines)
    ]
    parts = [f"**{escape(table.caption)}**", "\n".join(rows)]
    return "\n\n".join(parts + ([escape(table.note)] if table.note else []))


def _cell(text: str, plain: bool) -> str:
    return text if plain else escape(text).replace("\n", " ")


def render_example(example: Example) -> str:
    """A problem and its answers; model output stands in fences."""
    parts = [f"### {escape(example.title)}", fence(example.problem)]
    if example.gold:
        parts.append(f"Reference answer: {escape(example.gold)}")
    for answer in example.answers:
        head = f"**{escape(answer.model)}**: {escape(answer.verdict)}"
        parts += [head, fence(answer.text)]
    return "\n\n".join(parts)


def render_gaps(gaps: Sequence[Gap]) -> str:
    """What is missing, as a list with commands."""
    return "\n".join(
        f"- {escape(gap.what)}"
        + (f" ({escape(gap.why)})" if gap.why else "")
        + (f": `{gap.command}`" if gap.command else "")
        for gap in gaps
    )


def fence(text: str) -> str:
    """A code block that the text cannot leave."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"


def escape(text: str) -> str:
    """The text with Markdown's own characters made plain."""
    return ESCAPED.sub(r"\\\1", text)
