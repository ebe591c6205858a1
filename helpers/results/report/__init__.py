"""Write ``report.html``: one self-contained page about one run folder.

It reads only the run folder, its problems and ``data/published``, and for a
replayed run the record it was taken from; it trains and samples nothing. A
part that is missing is named together with the command that makes it. The
same as Markdown, and the results in the format of lm-evaluation-harness, on
request.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from helpers.base import RunDir, write_text
from helpers.results.report import beside, examples, sampling, scores, training
from helpers.results.report.blocks import Section
from helpers.results.report.collect import Results, read_results
from helpers.results.report.markdown import render_markdown

TEMPLATE_DIR = Path(__file__).resolve().parent

__all__ = ["read_results", "write_report"]


def write_report(run: RunDir, *, markdown: bool = False) -> Path:
    """Read the run folder and write its ``report.html``; returns the path.

    Args:
        markdown: write ``report.md`` too, with the texts and tables.

    Raises:
        LabError: the page cannot be written (full disk, no permission).
    """
    results = read_results(run)
    sections = build_sections(results)
    target = run.file("report.html")
    write_text(target, render_page(results, sections))
    if markdown:
        page = render_markdown(results, sections)
        write_text(run.file("report.md"), page)
    return target


def build_sections(results: Results) -> list[Section]:
    """All parts of the page, in order."""
    pairs = scores.compare_all(results)
    grid = scores.score_grid(results)
    return [
        scores.build_headline(results, pairs),
        scores.build_scores(results, grid),
        scores.build_paired(results, pairs),
        scores.build_outcomes(results),
        sampling.build_caps(results),
        training.build_lengths(results),
        sampling.build_sampled(results),
        examples.build_examples(results),
        training.build_harvest(results),
        training.build_training(results),
        training.build_merges(results),
        training.build_ledger(results),
        beside.build_published(results, grid),
        examples.build_settings(results),
        training.build_manifest(results),
    ]


def render_page(results: Results, sections: list[Section]) -> str:
    """Fill the page template; every text is escaped by it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    recipe = results.run.recipe
    return environment.get_template("template.html").render(
        title=f"Run report: {recipe.name}",
        recipe=recipe,
        origin=results.describe_origin(),
        replayed=bool(results.replayed.notes),
        sections=sections,
        gaps=results.gaps,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
