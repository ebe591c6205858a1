"""The command line: ``mathslm doctor | plan | grade | distill | sft | … ``.

Options, recipe and run folder are checked before torch is imported, so a
wrong one fails in well under a second: one message, exit code 2. The same
commands run as ``python -m helpers sft``, which is what a launcher of several
processes needs: ``accelerate launch -m helpers sft``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from helpers.base import LabError, RunDir, load_recipe, ranks
from helpers.cli.data import grade, problems
from helpers.cli.stages import make_command
from helpers.experiments import EXPERIMENTS
from helpers.experiments.options import (
    Force,
    RunFolder,
    Sets,
    Tier,
    load_setup,
    out,
)
from helpers.stages import STAGES

err = Console(stderr=True, highlight=False)


class LabGroup(TyperGroup):
    """Print a LabError as one message instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; LabError ends with 2, Ctrl-C with 130.

        Of several processes one tells what happened.
        """
        ranks.mute_others()
        try:
            return super().invoke(ctx)
        except LabError as error:
            if ranks.may_report():
                err.print("Error:", style="bold red", end=" ")
                err.print(str(error), markup=False, soft_wrap=True)
            raise typer.Exit(getattr(error, "exit_code", 2)) from None
        except KeyboardInterrupt:
            if ranks.may_report():
                err.print(
                    "Stopped. What was finished is kept; the same command "
                    "carries on from there."
                )
            raise typer.Exit(130) from None
        except typer.Exit:
            raise
        except Exception:
            if ranks.may_report():
                raise
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=LabGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Math-SLM Lab: distill, train, merge, evaluate, report.",
)


@app.command()
def doctor(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    force: Force = False,
) -> None:
    """Say what this machine has and which tiers it can run.

    With --tier, --run-dir or --set: check one recipe, by every guard that
    needs no model in memory, and end with 1 where one fails.
    """
    from helpers.doctor import check_tier, list_later, run_doctor

    if tier is None and run_dir is None and not sets:
        report, later = run_doctor(), {}
    else:
        recipe, folder = load_setup(tier, run_dir, sets)
        report, later = check_tier(recipe, folder, force=force), list_later()
    lines = [str(report)]
    if later:
        lines.append("The stages themselves check:")
    for when, titles in later.items():
        lines.append(f"  {when}: {'; '.join(titles)}")
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def plan(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    card: Annotated[
        str | None,
        typer.Option(help="Another card than the recipe's, e.g. T4 or H100."),
    ] = None,
    cards: Annotated[
        int | None, typer.Option(min=1, help="How many of them.")
    ] = None,
) -> None:
    """Say whether a run fits, how long it takes and what it costs."""
    from helpers.planner import show_plan_command

    recipe, _ = load_setup(tier, run_dir, sets)
    show_plan_command(recipe, card=card, cards=cards, out=out)


app.command()(grade)
app.command()(problems)
for info in STAGES.values():
    app.command(info.name)(make_command(info))
for experiment in EXPERIMENTS.values():
    app.command(experiment.name)(experiment.command)


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
def record(
    run_dir: Annotated[Path, typer.Argument(help="A finished run folder.")],
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", help="Default: data/measured/<tier>/run."),
    ] = None,
) -> None:
    """Pack a finished run, so that RUN_MODE=replay can show it."""
    require_run(run_dir)
    recipe, _ = load_setup(None, run_dir, None)
    from helpers.replay import record_run
    from helpers.session import list_stages

    run = RunDir.open(run_dir, recipe)
    target = record_run(run, list_stages(recipe), out_dir)
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    out.print(f"Recorded in {target}: {size / 2**20:.1f} MiB")


def require_run(folder: Path) -> None:
    """LabError when the folder holds no run."""
    if not (folder / "recipe.yaml").is_file():
        raise LabError(
            f"There is no run in {folder}.",
            fix="make one first: mathslm course, or name another --run-dir",
        )


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
