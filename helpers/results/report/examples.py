"""Ten random problems with every model's answer, and the settings."""

from __future__ import annotations

import random

from helpers.base import LabError
from helpers.grading import GradedCompletion
from helpers.problems import load_problems
from helpers.results.report.collect import Results
from helpers.results.report.page import (
    Block,
    Section,
    escape,
    escape_block,
    fence,
    flatten,
)
from helpers.results.report.training import find_twins
from helpers.results.scores import choose_benchmarks

EXAMPLES = 10


def build_examples(results: Results) -> Section:
    """Random problems of the main benchmark, the answers side by side.

    Which problems is drawn from the run's seed alone, so nobody chose them.
    """
    section = Section("examples", "Ten random problems")
    main = results.run.recipe.evaluate.main
    found = {
        tag: {row.problem_id: row for row in benches[main]}
        for tag, benches in results.evals.items()
        if main in benches
    }
    if not found:
        return section
    shared = sorted(set.intersection(*map(set, found.values())))
    if not shared:
        return section
    rng = random.Random(results.run.recipe.seed)
    chosen = rng.sample(shared, min(EXAMPLES, len(shared)))
    texts = _read_texts(results, main)
    twins = find_twins({t: list(rows.values()) for t, rows in found.items()})
    for name in chosen:
        rows = {tag: rows[name] for tag, rows in found.items()}
        first = next(iter(rows.values()))
        section.blocks += [
            Block(f"### {escape(name)}"),
            Block(fence(texts.get(name, first.prompt)), "problem"),
            Block(escape_block(f"Reference answer: {first.gold}"), "note"),
        ]
        for tag, row in rows.items():
            section.blocks.append(_show_answer(tag, row, twins.get(tag)))
    section.text(
        f"Shown are {len(chosen)} of {len(shared)} problems of {main}, drawn "
        f"by the run's seed {results.run.recipe.seed}; nobody picked them."
    )
    return section


def _show_answer(tag: str, row: GradedCompletion, twin: str | None) -> Block:
    """What one model wrote, and the grader's verdict on it."""
    model = tag if twin is None else f"{tag} (all as {twin})"
    told = "right" if row.correct else "wrong"
    ended = "cut at the cap" if row.finish_reason == "length" else ""
    parts = [told, ended, row.reason, f"{row.tokens} tokens"]
    verdict = ", ".join(part for part in parts if part)
    text = f"**{escape(model)}**: {escape(verdict)}\n\n{fence(row.response)}"
    return Block(text, "answer helps" if row.correct else "answer hurts")


def _read_texts(results: Results, name: str) -> dict[str, str]:
    """The problems' own texts; the prompts stand in where they are gone."""
    (config,) = choose_benchmarks(results.run.recipe, [name])
    try:
        problems = load_problems(config.path, config.n)
    except LabError:
        return {}
    return {problem.id: problem.problem for problem in problems}


def build_settings(results: Results) -> Section:
    """Every value of the recipe that the run was made with."""
    section = Section("settings", "Settings")
    data = results.run.recipe.model_dump(mode="json", exclude_none=True)
    benchmarks = data["evaluate"].pop("benchmarks")
    rows = flatten(data, lists=True)
    section.table("Recipe", ["setting", "value"], rows)
    section.table(
        "Benchmarks",
        ["name", "problems", "file or set", "plays the part of"],
        [[b["name"], str(b["n"]), b["path"], b["role"]] for b in benchmarks],
    )
    return section
