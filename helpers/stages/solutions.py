"""Worked solutions of several problem sets as rows for SFT.

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
    recipe_hash,
    require_space,
    write_records,
)
from helpers.grading import grade_many
from helpers.models import MARKS, fix_model, render_prompt
from helpers.problems import (
    BadSolution,
    LoadReport,
    Mix,
    hash_problems,
    load_mix,
    write_worked,
)

STAGE, OUTPUT = "solutions", "solutions.jsonl"
STEPS = ("mixed", "worked", "graded", "length")
SPACE_MB = 50


@dataclass
class Worked:
    """The rows in training order, and one report a source.

    ``reports`` count the rows of each source after ``STEPS``: taken from
    the mix, holding a solution, right for the grader, short enough.
    """

    rows: list[SftRow] = field(default_factory=list)
    reports: dict[str, LoadReport] = field(default_factory=dict)

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


def run_solutions(
    recipe: Recipe, run: RunDir, *, force: bool = False
) -> dict[str, Any]:
    """Write ``solutions.jsonl``, or load what was measured when it is there.

    Returns:
        rows, tokens, and per source how many rows survive each step.

    Raises:
        LabError: the recipe names no solutions, its mark is not the one that
            the prompt template asks for, or a source was lost on the way.
    """
    from helpers.models import load_tokenizer, model_path

    config = recipe.solutions
    if config is None:
        raise LabError(
            f"Recipe '{recipe.name}' trains on its own samples.",
            why="it has no section 'solutions'",
            fix="--set 'solutions.mix={pocket/train.jsonl: 500}'",
        )
    mark = choose_mark(recipe)
    require_space(run.path, SPACE_MB)
    # The prompts are in the form of the model that is trained on them.
    recipe = fix_model(recipe, run)
    inputs = describe_inputs(recipe)
    if run.is_done(STAGE, inputs, force):
        print(f"{STAGE}: done with these inputs, loaded.")
        return run.metrics()[STAGE]
    with run.stage(STAGE, inputs) as record:
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
        base = model_path(recipe, run, "base")
        tokenizer = load_tokenizer(base, recipe.model.revision)
        name = run.path.resolve().name
        worked = write_rows(recipe, tokenizer, mix, mark, name)
        print(worked)
        require_sources(worked, mix, config.least)
        write_records(run.file(OUTPUT), worked.rows)
        metrics = summarise(worked, mix, mark, tokenizer)
        record.update(outputs=[OUTPUT], metrics=metrics)
    return metrics


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


def list_against(recipe: Recipe) -> tuple[str, ...]:
    """Sets that no training row may overlap with."""
    if recipe.solutions.against is not None:
        return recipe.solutions.against
    return tuple(dict.fromkeys(b.path for b in recipe.evaluate.benchmarks))


def describe_inputs(recipe: Recipe) -> dict[str, str]:
    """Hashes of all that the rows depend on."""
    template = recipe.data.prompt_template
    text = hashlib.sha256(TEMPLATES[template].encode()).hexdigest()[:16]
    sets = (*recipe.solutions.mix, *list_against(recipe))
    return {
        "recipe": recipe_hash(recipe, "seed", "solutions"),
        "model": f"{recipe.model.id}@{recipe.model.revision}",
        "template": f"{template} {text}",
        "max_length": str(recipe.sft.max_length),
        **{f"set {name}": hash_problems(name) for name in sets},
    }


def write_rows(
    recipe: Recipe, tokenizer: Any, mix: Mix, mark: str, run_name: str
) -> Worked:
    """Problems of a mix as training rows; what is left out is counted."""
    out = Worked()
    for name, report in mix.reports.items():
        out.reports[name] = LoadReport(
            name,
            asked=(report.asked or 0) - report.dropped["cap"].total(),
            steps=dict.fromkeys(STEPS, 0),
            dropped={step: Counter() for step in STEPS},
        )
    kept: list[tuple[Problem, str]] = []
    for problem in mix.problems:
        report = out.reports[problem.source]
        report.steps["mixed"] += 1
        try:
            text = write_worked(problem, mark)
        except BadSolution as error:
            report.drop("worked", str(error), problem.id)
            continue
        report.steps["worked"] += 1
        kept.append((problem, text))
    kept = keep_right(kept, out.reports)
    rows = [
        SftRow(
            prompt=write_prompt(recipe, tokenizer, problem),
            completion=text,
            problem_id=problem.id,
            sample=0,
            run=run_name,
            source=problem.source,
        )
        for problem, text in kept
    ]
    out.rows = keep_short(rows, tokenizer, recipe.sft.max_length, out.reports)
    return out


def write_prompt(recipe: Recipe, tokenizer: Any, problem: Problem) -> str:
    """What the model is asked, as sampling asks it (``solutions.chat``)."""
    name = recipe.data.prompt_template
    if recipe.solutions.chat:
        return render_prompt(tokenizer, problem.problem, name)
    return TEMPLATES[name].replace("{problem}", problem.problem) + "\n"


def keep_right(
    kept: Sequence[tuple[Problem, str]], reports: dict[str, LoadReport]
) -> list[tuple[Problem, str]]:
    """Those whose text the grader finds right, as it judges responses."""
    grades = grade_many([t for _, t in kept], [p.answer for p, _ in kept])
    right = []
    for (problem, text), grade in zip(kept, grades, strict=True):
        report = reports[problem.source]
        if grade.correct:
            report.steps["graded"] += 1
            right.append((problem, text))
        else:
            report.drop("graded", "wrong for the grader", problem.id)
    return right


def keep_short(
    rows: Sequence[SftRow],
    tokenizer: Any,
    max_length: int,
    reports: dict[str, LoadReport],
) -> list[SftRow]:
    """Rows that the trainer would not cut, end token included."""
    kept = []
    for row, size in zip(rows, count_tokens(tokenizer, rows), strict=True):
        report = reports[row.source]
        if size <= max_length:
            report.steps["length"] += 1
            kept.append(row)
        else:
            reason = f"over sft.max_length={max_length} tokens"
            report.drop("length", reason, row.problem_id)
    return kept


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


def summarise(
    worked: Worked, mix: Mix, mark: str, tokenizer: Any
) -> dict[str, Any]:
    """What the stage measured."""
    sizes = count_tokens(tokenizer, worked.rows)
    return {
        "rows": len(worked.rows),
        "tokens": sum(sizes),
        "longest": max(sizes),
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
