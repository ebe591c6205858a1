"""The command line: ``mathslm doctor | plan | grade | distill | sft | … ``.

Options, recipe and run folder are checked before torch is imported, so a
wrong one fails in well under a second: one message, exit code 2. Each stage
also runs as ``python -m helpers.<stage>`` (:func:`main_stage`), which is what
``accelerate launch -m helpers sft`` needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from helpers.base import LabError, Recipe, RunDir, did_you_mean, load_recipe
from helpers.cli.base import (
    LabGroup,
    SmokeSteps,
    Variant,
    open_shared,
    require_run,
    show_metrics,
)
from helpers.cli.checks import doctor
from helpers.cli.grading import grade
from helpers.cli.planning import plan
from helpers.cli.problems import problems
from helpers.cli.recording import record
from helpers.cli.solutions import solutions
from helpers.experiments import EXPERIMENTS
from helpers.experiments.options import (
    Force,
    RunFolder,
    Sets,
    Tier,
    load_setup,
    open_run,
    out,
)

app = typer.Typer(
    cls=LabGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Math-SLM Lab: distill, train, merge, evaluate, report.",
)
app.command()(doctor)
app.command()(grade)
app.command()(plan)
app.command()(problems)
app.command()(record)
app.command()(solutions)
for experiment in EXPERIMENTS.values():
    app.command(experiment.name)(experiment.command)


def dpo_tag(recipe: Recipe, variant: str | None) -> str:
    """``dpo`` or ``dpo-<variant>``; LabError for an unknown variant."""
    recipe.dpo_variant(variant)
    return f"dpo-{variant}" if variant else "dpo"


def call_stage(module: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Import ``helpers.<module>`` (heavy) and call its ``run_<module>``."""
    stage = import_module(f"helpers.stages.{module}")
    return getattr(stage, f"run_{module}")(*args, **kwargs)


@app.command()
def distill(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    force: Force = False,
    smoke_steps: SmokeSteps = None,
) -> None:
    """Sample and grade completions; keep the right ones and the pairs."""
    recipe, run = open_run(tier, run_dir, sets)
    options = {"force": force, "smoke_steps": smoke_steps}
    done = call_stage("distill", recipe, run, **options)
    show_metrics("distill", done, run)


@app.command()
def sft(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    force: Force = False,
    smoke_steps: SmokeSteps = None,
) -> None:
    """Train a LoRA adapter on the kept completions."""
    options = {"force": force, "smoke_steps": smoke_steps}
    with open_shared("sft", tier, run_dir, sets) as (recipe, run):
        done = call_stage("sft", recipe, run, **options)
        show_metrics("sft", done, run)


@app.command()
def merge(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    model: Annotated[
        Literal["sft", "dpo"] | None,
        typer.Option(help="Default: sft; with --variant: dpo."),
    ] = None,
    variant: Variant = None,
    force: Force = False,
) -> None:
    """Add an adapter to its base weights and prove that nothing was lost."""
    if model == "sft" and variant:
        fix = "leave out --variant, or choose --model dpo"
        raise LabError("Variants are of DPO, not of --model sft.", fix=fix)
    recipe, run = open_run(tier, run_dir, sets)
    tag = dpo_tag(recipe, variant) if variant else model or "sft"
    done = call_stage("merge", recipe, run, tag, force=force)
    show_metrics(f"merge {tag}", done, run)


@app.command()
def dpo(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    variant: Variant = None,
    force: Force = False,
    smoke_steps: SmokeSteps = None,
) -> None:
    """Train on the preference pairs, from the merged SFT model."""
    options = {"force": force, "smoke_steps": smoke_steps}
    with open_shared("dpo", tier, run_dir, sets) as (recipe, run):
        tag = dpo_tag(recipe, variant)
        done = call_stage("dpo", recipe, run, variant=variant, **options)
        show_metrics(tag, done, run)


@app.command()
def evaluate(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="base, sft, dpo or dpo-<variant>. Repeatable; default: "
            "base, sft and dpo."
        ),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="A benchmark of the recipe. Repeatable."),
    ] = None,
    force: Force = False,
) -> None:
    """Measure the models on the recipe's benchmarks."""
    recipe, run = open_run(tier, run_dir, sets)
    tags = tuple(model or ("base", "sft", "dpo"))
    variants = [f"dpo-{name}" for name in recipe.dpo_variants]
    check_words("model", tags, ["base", "sft", "dpo", *variants])
    known = [b.name for b in recipe.evaluate.benchmarks]
    check_words("benchmark", benchmark or (), known)
    options = {"benchmarks": benchmark, "force": force}
    call_stage("evaluate", recipe, run, tags, **options)
    show_scores(run, tags, recipe)


def check_words(kind: str, words: Iterable[str], known: list[str]) -> None:
    """LabError for the first word that is not a known one."""
    for word in words:
        if word not in known:
            raise LabError(
                f"There is no {kind} '{word}'.{did_you_mean(word, known)}",
                fix="choose from: " + ", ".join(known),
            )


def show_scores(run: RunDir, tags: Iterable[str], recipe: Recipe) -> None:
    """Print ``k/n (p %, 95 % CI a–b)`` per model and benchmark."""
    from helpers.results import proportion, stage_name

    asked = recipe.evaluate
    temperature = asked.temperature if asked.n > 1 else None
    table = Table("model", "benchmark", "score")
    metrics = run.metrics()
    for tag in tags:
        scores = metrics.get(stage_name(tag, temperature), {})
        for name, row in scores.items():
            if temperature is None:
                table.add_row(tag, name, str(proportion(row["k"], row["n"])))
            else:
                show_sampled(table, tag, name, row)
    out.print(table)
    out.print(f"Run folder: {run.path}", soft_wrap=True)


def show_sampled(
    table: Table, tag: str, name: str, row: dict[str, Any]
) -> None:
    """Rows of several samples: average, perfect choice, vote, best of n."""
    from helpers.results import Interval, proportion

    n, problems = row["samples"], row["problems"]
    table.add_row(tag, name, f"avg@{n} {Interval(*row['avg'])}")
    reached = Interval(*row["pass"][str(n)])
    table.add_row("", "", f"pass@{n} {reached}")
    table.add_row("", "", f"majority {proportion(row['majority'], problems)}")
    if row["best_of"] is not None:
        chosen = proportion(row["best_of"], problems)
        table.add_row("", "", f"best of {n} {chosen}")


@app.command()
def report(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write report.md as well.")
    ] = False,
) -> None:
    """Write report.html from what the run folder holds."""
    recipe, folder = load_setup(tier, run_dir, sets)
    require_run(folder)
    if not tier and not sets:
        recipe = load_recipe(folder / "recipe.yaml")
    run = RunDir.open(folder, recipe)
    from helpers.course import write_run_report

    page = write_run_report(run, markdown=markdown)
    out.print(f"Report: {page}", soft_wrap=True)
    if markdown:
        out.print(f"Markdown: {page.with_suffix('.md')}", soft_wrap=True)


@app.command()
def course(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    first: Annotated[
        str, typer.Option("--from", help="Number of the first notebook.")
    ] = "00",
    last: Annotated[
        str, typer.Option("--to", help="Number of the last notebook.")
    ] = "07",
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="NAME=VALUE",
            help="A notebook parameter, e.g. RUN_MODE=replay. Repeatable.",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Fewer problems and rows, as the recipe says."
        ),
    ] = False,
) -> None:
    """Run the notebooks in order; finished stages are loaded."""
    from helpers.course import choose_quick, read_parameters, run_course

    recipe, folder = load_setup(tier, run_dir, sets)
    if quick:
        sets = choose_quick(recipe, sets)
        run_dir = run_dir or Path("runs") / f"{recipe.name}-quick"
        recipe, folder = load_setup(tier, run_dir, sets)
    parameters = read_parameters(parameter or ())
    stored = folder / "recipe.yaml"
    if tier is None and stored.is_file():
        tier = str(stored)  # with the seed and settings it was begun with
    page = run_course(
        tier or recipe.name,
        folder,
        first=first,
        last=last,
        parameters=parameters,
        overrides=tuple(sets or ()),
    )
    out.print(f"Report: {page}", soft_wrap=True)


if __name__ == "__main__":
    app()
