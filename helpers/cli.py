"""The command line: ``mathslm doctor | distill | sft | … | course``.

Options, recipe and run folder are checked before torch is imported, so a
wrong one fails in well under a second: one message, exit code 2. Each stage
also runs as ``python -m helpers.<stage>`` (:func:`main_stage`), which is what
``accelerate launch -m helpers.sft`` needs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from helpers.errors import LabError, did_you_mean
from helpers.recipes import Recipe, list_recipes, load_recipe
from helpers.runs import RunDir

DEFAULT_TIER = "pocket"
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class LabGroup(TyperGroup):
    """Print a LabError as one message instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; LabError ends with 2, Ctrl-C with 130."""
        try:
            return super().invoke(ctx)
        except LabError as error:
            err.print("Error:", style="bold red", end=" ")
            err.print(str(error), markup=False, soft_wrap=True)
            raise typer.Exit(getattr(error, "exit_code", 2)) from None
        except KeyboardInterrupt:
            err.print(
                "Stopped. What was finished is kept; the same command "
                "carries on from there."
            )
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=LabGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Math-SLM Lab: distill, train, merge, evaluate, report.",
)

Tier = Annotated[
    str | None,
    typer.Option(
        help="Recipe: a shipped name or a .yaml file. Default: the run "
        "folder's own recipe, else pocket."
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Run folder. Default: runs/<tier>."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value of the recipe, e.g. sft.epochs=1. Repeatable.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Compute again; the old output is set aside."
    ),
]
SmokeSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Stop after this many steps: a trial run."),
]
Variant = Annotated[
    str | None, typer.Option(help="A name under dpo_variants of the recipe.")
]


def load_setup(
    tier: str | None, run_dir: Path | None, sets: list[str] | None
) -> tuple[Recipe, Path]:
    """The recipe and the folder that the options name; creates nothing.

    Without ``tier`` a run folder's own recipe is used, else ``pocket``.
    """
    stored = run_dir / "recipe.yaml" if run_dir else None
    if tier is None and stored and stored.is_file():
        recipe = load_recipe(stored, sets or ())
    else:
        recipe = load_recipe(tier or DEFAULT_TIER, sets or ())
    return recipe, run_dir or Path("runs") / recipe.name


def open_run(
    tier: str | None, run_dir: Path | None, sets: list[str] | None
) -> tuple[Recipe, RunDir]:
    """Check recipe and run folder; the folder is created when new."""
    recipe, folder = load_setup(tier, run_dir, sets)
    return recipe, RunDir.open(folder, recipe)


def dpo_tag(recipe: Recipe, variant: str | None) -> str:
    """``dpo`` or ``dpo-<variant>``; LabError for an unknown variant."""
    recipe.dpo_variant(variant)
    return f"dpo-{variant}" if variant else "dpo"


def call_stage(module: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Import ``helpers.<module>`` (heavy) and call its ``run_<module>``."""
    stage = import_module(f"helpers.{module}")
    return getattr(stage, f"run_{module}")(*args, **kwargs)


def show_metrics(title: str, metrics: Mapping[str, Any], run: RunDir) -> None:
    """Print what a stage measured as a small table."""
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in flatten(metrics):
        table.add_row(name, value)
    if table.row_count:
        out.print(table)
    out.print(f"Run folder: {run.path}", soft_wrap=True)


def flatten(
    metrics: Mapping[str, Any], prefix: str = ""
) -> Iterable[tuple[str, str]]:
    """Yield ``("a.b", "text")`` for every plain value in nested dicts."""
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, float):
            yield name, f"{value:.4g}"
        elif isinstance(value, str | int) or value is None:
            yield name, str(value)


@app.command()
def doctor() -> None:
    """Say what this machine has and which tiers it can run."""
    from helpers.doctor import run_doctor

    report = run_doctor()
    out.print(str(report), markup=False, soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)


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
    recipe, run = open_run(tier, run_dir, sets)
    done = call_stage("sft", recipe, run, force=force, smoke_steps=smoke_steps)
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
    recipe, run = open_run(tier, run_dir, sets)
    tag = dpo_tag(recipe, variant)
    options = {"force": force, "smoke_steps": smoke_steps}
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
    show_scores(run, tags)


def check_words(kind: str, words: Iterable[str], known: list[str]) -> None:
    """LabError for the first word that is not a known one."""
    for word in words:
        if word not in known:
            raise LabError(
                f"There is no {kind} '{word}'.{did_you_mean(word, known)}",
                fix="choose from: " + ", ".join(known),
            )


def show_scores(run: RunDir, tags: Iterable[str]) -> None:
    """Print ``k/n (p %, 95 % CI a–b)`` per model and benchmark."""
    from helpers.stats import proportion

    table = Table("model", "benchmark", "score")
    metrics = run.metrics()
    for tag in tags:
        for name, row in metrics.get(f"evaluate/{tag}", {}).items():
            table.add_row(tag, name, str(proportion(row["k"], row["n"])))
    out.print(table)
    out.print(f"Run folder: {run.path}", soft_wrap=True)


@app.command()
def report(
    tier: Tier = None, run_dir: RunFolder = None, sets: Sets = None
) -> None:
    """Write report.html from what the run folder holds."""
    recipe, folder = load_setup(tier, run_dir, sets)
    if not (folder / "recipe.yaml").is_file():
        raise LabError(
            f"There is no run in {folder}.",
            fix="make one first: mathslm course, or name another --run-dir",
        )
    if not tier and not sets:
        recipe = load_recipe(folder / "recipe.yaml")
    run = RunDir.open(folder, recipe)
    from helpers.report import write_report

    out.print(f"Report: {write_report(run)}", soft_wrap=True)


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
    ] = "05",
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="NAME=VALUE",
            help="A notebook parameter, e.g. RUN_MODE=replay. Repeatable.",
        ),
    ] = None,
) -> None:
    """Run the notebooks in order; finished stages are loaded."""
    from helpers.course import read_parameters, run_course

    recipe, folder = load_setup(tier, run_dir, sets)
    parameters = read_parameters(parameter or ())
    if tier is None and recipe.name not in list_recipes():
        tier = str(folder / "recipe.yaml")  # a recipe of the user's own
    page = run_course(
        tier or recipe.name,
        folder,
        first=first,
        last=last,
        parameters=parameters,
        overrides=tuple(sets or ()),
    )
    out.print(f"Report: {page}", soft_wrap=True)


def main_stage(name: str) -> None:
    """Entry of ``python -m helpers.<name>``: the command of that name."""
    app([name, *sys.argv[1:]], prog_name="mathslm")


if __name__ == "__main__":
    app()
