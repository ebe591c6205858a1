"""Worked solutions of several problem sets as rows for SFT.

mix ─ write in one form ─ grade ─ drop too long ─ write

For a base that solves next to nothing: its own samples hold nothing to learn
from, the solutions that come with a problem set do. Each set's solutions are
brought to one form (:mod:`helpers.problems.worked`), graded like any response,
and counted at every step, so that a source which is lost stops the run
instead of changing the experiment unseen.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from helpers.base import (
    TEMPLATES,
    LabError,
    Problem,
    Recipe,
    RunDir,
    SftRow,
    open_stage,
    recipe_hash,
    write_records,
)
from helpers.grading import grade_many
from helpers.models import (
    MARKS,
    fix_model,
    load_tokenizer,
    model_path,
    render_prompt,
)
from helpers.problems import (
    BadSolution,
    LoadReport,
    Mix,
    hash_problems,
    is_local,
    load_mix,
    load_problems,
    write_worked,
)

STAGE, OUTPUT = "solutions", "solutions.jsonl"
STEPS = ("mixed", "worked", "graded", "length")
SPACE_MB = 50


def run_solutions(
    recipe: Recipe, run: RunDir, *, force: bool = False, check: bool = False
) -> dict[str, Any]:
    """Write ``solutions.jsonl``, or load what was measured when it is there.

    Args:
        force: set the old rows aside and write them again.
        check: refuse what can be refused now; load and write nothing. A
            problem set that would come from the hub is not fetched.

    Returns:
        rows, tokens, and per source how many rows survive each step.

    Raises:
        LabError: the recipe names no solutions, its mark is not the one that
            the prompt template asks for, or a source was lost on the way.
    """
    if recipe.solutions is None:
        raise LabError(
            f"Recipe '{recipe.name}' trains on its own samples.",
            why="it has no section 'solutions'",
            fix="--set 'solutions.mix={pocket/train.jsonl: 500}'",
        )
    mark = choose_mark(recipe)
    if check:
        _require_sets(recipe)
    # The prompts are in the form of the model that is trained on them.
    recipe = fix_model(recipe, run, check)
    with open_stage(
        run,
        STAGE,
        describe_inputs(recipe),
        outputs=[OUTPUT],
        megabytes=SPACE_MB,
        force=force,
        check=check,
    ) as stage:
        if stage.is_needed:
            rows, stage.metrics = make_rows(recipe, run, mark)
            write_records(run.file(OUTPUT), rows)
    return stage.metrics


def choose_mark(recipe: Recipe) -> str:
    """``boxed`` or ``hash``: what the prompt asks for, else the recipe's.

    Raises:
        LabError: the recipe sets another mark than its prompt asks for.
    """
    config, name = recipe.solutions, recipe.data.prompt_template
    asked = MARKS.get(name)
    if asked is None or "mark" not in config.model_fields_set:
        return asked or config.mark
    if config.mark != asked:
        raise LabError(
            f"solutions.mark={config.mark}, but the prompt template "
            f"'{name}' asks for {asked}.",
            why="the model would be asked for one form and taught another",
            fix=f"set solutions.mark={asked}, or another template",
        )
    return asked


def _require_sets(recipe: Recipe) -> None:
    """LabError for a set that is not there; none is fetched from the hub."""
    for name in list_sets(recipe):
        if is_local(name):
            load_problems(name, 1)


def list_sets(recipe: Recipe) -> tuple[str, ...]:
    """The sources of the mix, and the sets it must not overlap with."""
    return (*recipe.solutions.mix, *list_against(recipe))


def list_against(recipe: Recipe) -> tuple[str, ...]:
    """Sets that no training row may overlap with."""
    if recipe.solutions.against is not None:
        return recipe.solutions.against
    return tuple(dict.fromkeys(b.path for b in recipe.evaluate.benchmarks))


def describe_inputs(recipe: Recipe) -> dict[str, str]:
    """Hashes of all that the rows depend on."""
    template = recipe.data.prompt_template
    text = hashlib.sha256(TEMPLATES[template].encode()).hexdigest()[:16]
    return {
        "recipe": recipe_hash(recipe, "seed", "solutions"),
        "model": f"{recipe.model.id}@{recipe.model.revision}",
        "template": f"{template} {text}",
        "max_length": str(recipe.sft.max_length),
        **{f"set {name}": hash_problems(name) for name in list_sets(recipe)},
    }


def make_rows(
    recipe: Recipe, run: RunDir, mark: str
) -> tuple[list[SftRow], dict[str, Any]]:
    """The rows in training order, and what was measured of them."""
    config = recipe.solutions
    # Step 1: draw from the sources, without what overlaps with a test set.
    mix = load_mix(
        config.mix,
        recipe.seed,
        against=list_against(recipe),
        cap=config.cap,
        least=config.least,
        masked=not config.templated,
        words=not config.templated,
    )
    print(mix)
    # Step 2: one form, right for the grader, short enough.
    base = model_path(recipe, run, "base")
    tokenizer = load_tokenizer(base, recipe.model.revision)
    worked = write_rows(recipe, tokenizer, mix, mark, run.path.resolve().name)
    print(worked)
    # Step 3: without one of its sources it would be another experiment.
    require_sources(worked, mix, config.least)
    return worked.rows, summarise(worked, mix, mark)


@dataclass
class Worked:
    """The rows in training order with their tokens; one report a source.

    ``reports`` count the rows of each source after ``STEPS``: taken from
    the mix, holding a solution, right for the grader, short enough.
    """

    reports: dict[str, LoadReport]
    rows: list[SftRow] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.reports, "source"))
        lines = [
            "  ".join(["source".ljust(width), *(f"{s:>7}" for s in STEPS)])
        ]
        for name, report in self.reports.items():
            cells = (f"{report.steps[step]:>7,}" for step in STEPS)
            lines.append("  ".join([name.ljust(width), *cells]))
        for name, report in self.reports.items():
            lines += [f"{name}, {line}" for line in report.list_reasons()]
        return "\n".join(lines)


def write_rows(
    recipe: Recipe, tokenizer: Any, mix: Mix, mark: str, run_name: str
) -> Worked:
    """Problems of a mix as training rows; what is left out is counted."""
    out = Worked({name: _begin(name, r) for name, r in mix.reports.items()})
    # Step 1: the solution of each problem in one form.
    written: list[tuple[Problem, str]] = []
    for problem in mix.problems:
        report = out.reports[problem.source]
        report.steps["mixed"] += 1
        try:
            text = write_worked(problem, mark)
        except BadSolution as error:
            report.drop("worked", str(error), problem.id)
            continue
        report.steps["worked"] += 1
        written.append((problem, text))
    # Step 2: those that the grader finds right, as it judges responses.
    golds = [problem.answer for problem, _ in written]
    grades = grade_many([text for _, text in written], golds)
    rows: list[SftRow] = []
    for (problem, text), grade in zip(written, grades, strict=True):
        report = out.reports[problem.source]
        if not grade.correct:
            report.drop("graded", "wrong for the grader", problem.id)
            continue
        report.steps["graded"] += 1
        row = SftRow(
            prompt=write_prompt(recipe, tokenizer, problem),
            completion=text,
            problem_id=problem.id,
            sample=0,
            run=run_name,
            source=problem.source,
        )
        rows.append(row)
    # Step 3: those that the trainer would not cut, end token included.
    most = recipe.sft.max_length
    for row, size in zip(rows, count_tokens(tokenizer, rows), strict=True):
        report = out.reports[row.source]
        if size > most:
            reason = f"over sft.max_length={most} tokens"
            report.drop("length", reason, row.problem_id)
            continue
        report.steps["length"] += 1
        out.rows.append(row)
        out.sizes.append(size)
    return out


def _begin(name: str, mixed: LoadReport) -> LoadReport:
    """The report of a source that the mix has drawn from."""
    return LoadReport(
        name,
        asked=(mixed.asked or 0) - mixed.dropped["cap"].total(),
        steps=dict.fromkeys(STEPS, 0),
        dropped={step: Counter() for step in STEPS},
    )


def write_prompt(recipe: Recipe, tokenizer: Any, problem: Problem) -> str:
    """What the model is asked, as sampling asks it (``solutions.chat``)."""
    name = recipe.data.prompt_template
    if recipe.solutions.chat:
        return render_prompt(tokenizer, problem.problem, name)
    return TEMPLATES[name].replace("{problem}", problem.problem) + "\n"


def count_tokens(tokenizer: Any, rows: Sequence[SftRow]) -> list[int]:
    """Tokens of prompt, completion and end token, per row."""
    if not rows:
        return []
    texts = [row.prompt + row.completion for row in rows]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [len(ids) + 1 for ids in encoded]


def require_sources(worked: Worked, mix: Mix, least: float) -> None:
    """LabError when a source shrank so far that the mix is another one."""
    for name, report in worked.reports.items():
        wanted, left = report.asked, report.steps[STEPS[-1]]
        if left < max(1, least * wanted):
            raise LabError(
                f"{name}: {left:,} of {wanted:,} problems became training "
                "rows: this source is lost.",
                why="; ".join(report.list_reasons())
                or "; ".join(mix.reports[name].list_reasons()),
                fix="leave the source out, raise sft.max_length, or lower "
                f"solutions.least (now {least:g})",
            )


def summarise(worked: Worked, mix: Mix, mark: str) -> dict[str, Any]:
    """What the stage measured."""
    return {
        "rows": len(worked.rows),
        "tokens": sum(worked.sizes),
        "longest": max(worked.sizes),
        "mark": mark,
        "against": list(mix.against),
        "sources": {
            name: {
                "asked": report.asked,
                **mix.reports[name].steps,
                **{step: report.steps[step] for step in STEPS[1:]},
                "reasons": [
                    *mix.reports[name].list_reasons(),
                    *report.list_reasons(),
                ],
            }
            for name, report in worked.reports.items()
        },
    }
