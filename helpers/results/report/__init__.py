"""Write ``report.html``: one self-contained page about one run folder.

It reads only the run folder, its problems and ``data/published``, and for a
replayed run the record it was taken from; it trains and samples nothing. A
part that is missing is named together with the command that makes it. The
page is Markdown, rendered to HTML; ``report.md`` is written on request.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.base import RunDir, write_text
from helpers.results.report import examples, sampling, scores, training
from helpers.results.report.collect import Results, read_results
from helpers.results.report.page import Section, render_markdown, render_page

__all__ = ["read_results", "write_report"]


def write_report(
    run: RunDir, load_tokenizer: Callable[[], Any], *, markdown: bool = False
) -> Path:
    """Read the run folder and write its ``report.html``; returns the path.

    Args:
        load_tokenizer: gives the model's tokenizer; called only where a
            response has to be cut at a token that it never was cut at.
        markdown: write ``report.md`` too, with the texts and tables.

    Raises:
        LabError: the page cannot be written (full disk, no permission).
    """
    results = read_results(run)
    sections = build_sections(results, load_tokenizer)
    recipe, replayed = run.recipe, bool(results.replayed.notes)
    title, origin = f"Run report: {recipe.name}", results.describe_origin()
    model = f"{recipe.model.id}, {recipe.model.dtype}, seed {recipe.seed}"
    lead = f"{model} · {origin}" if origin else model
    page = render_page(
        title,
        lead,
        sections,
        gaps=len(results.gaps),
        source="the run folder and the record it was replayed from"
        if replayed
        else "the run folder alone",
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    target = run.file("report.html")
    write_text(target, page)
    if markdown:
        text = render_markdown(title, lead if replayed else model, sections)
        write_text(run.file("report.md"), text)
    return target


def build_sections(
    results: Results, load_tokenizer: Callable[[], Any]
) -> list[Section]:
    """All parts of the page, in order."""
    pairs = scores.compare_all(results)
    grid = scores.score_grid(results)
    sections = [
        scores.build_headline(results, pairs),
        scores.build_scores(results, grid),
        scores.build_paired(results, pairs),
        scores.build_outcomes(results),
        sampling.build_caps(results, load_tokenizer),
        training.build_lengths(results),
        sampling.build_sampled(results),
        examples.build_examples(results),
        training.build_harvest(results),
        training.build_training(results),
        training.build_merges(results),
        training.build_ledger(results),
        scores.build_published(results, grid),
        examples.build_settings(results),
        training.build_manifest(results),
    ]
    if results.gaps:
        sections.append(results.list_gaps())
    return sections
