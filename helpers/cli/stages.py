"""A command for every stage of :data:`helpers.stages.STAGES`.

Tier, run folder, ``--set`` and ``--force`` are options of all of them; what
else a stage takes stands in :data:`EXTRAS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from helpers.base import LabError, Recipe, RunDir, Tag, did_you_mean, ranks
from helpers.experiments.options import (
    Force,
    RunFolder,
    Sets,
    Tier,
    load_setup,
    open_run,
    out,
)
from helpers.stages import STAGES, StageInfo

SmokeSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Stop after this many steps: a trial run."),
]
Variant = Annotated[
    str | None, typer.Option(help="A name under dpo_variants of the recipe.")
]
Adapter = Annotated[
    Literal["sft", "dpo"] | None,
    typer.Option(help="Default: sft; with --variant: dpo."),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        help="base, sft, dpo or dpo-<variant>. Repeatable; default: base, "
        "sft and dpo."
    ),
]
Benchmarks = Annotated[
    list[str] | None,
    typer.Option(help="A benchmark of the recipe. Repeatable."),
]
# name of the option: (its type, its default)
COMMON = {
    "tier": (Tier, None),
    "run_dir": (RunFolder, None),
    "sets": (Sets, None),
    "force": (Force, False),
}
EXTRAS: dict[str, dict[str, Any]] = {
    "distill": {"smoke_steps": SmokeSteps},
    "sft": {"smoke_steps": SmokeSteps},
    "merge": {"model": Adapter, "variant": Variant},
    "dpo": {"variant": Variant, "smoke_steps": SmokeSteps},
    "evaluate": {"model": Models, "benchmark": Benchmarks},
}


def make_command(info: StageInfo) -> Callable[..., None]:
    """The stage as a function whose signature typer reads the options of."""
    read = READERS.get(info.name, read_plain)

    def command(
        tier: str | None,
        run_dir: Path | None,
        sets: list[str] | None,
        **options: Any,
    ) -> None:
        with open_for(info, tier, run_dir, sets) as (recipe, run):
            title, given, named = read(info.name, recipe, options)
            done = STAGES[info.name].run(recipe, run, *given, **named)
            if info.name == "evaluate":
                show_scores(run, given[0], recipe)
            else:
                show_metrics(title, done, run)

    extras = EXTRAS.get(info.name, {})
    offered = COMMON | {name: (kind, None) for name, kind in extras.items()}
    command.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=kind,
            )
            for name, (kind, default) in offered.items()
        ]
    )
    command.__annotations__ = {n: kind for n, (kind, _) in offered.items()}
    command.__name__, command.__doc__ = info.name, info.summary
    return command


@contextmanager
def open_for(
    info: StageInfo,
    tier: str | None,
    run_dir: Path | None,
    sets: list[str] | None,
) -> Iterator[tuple[Recipe, RunDir]]:
    """Recipe and run folder, also where several processes share the stage."""
    if not info.several_processes:
        yield open_run(tier, run_dir, sets)
        return
    recipe, folder = load_setup(tier, run_dir, sets)
    from helpers.models import pick_device

    ranks.connect(recipe, info.name, pick_device)
    yield recipe, ranks.run_first(lambda: RunDir.open(folder, recipe))
    ranks.leave()


# --- what a stage is called with: its title, arguments, named arguments ----


def read_plain(
    name: str, recipe: Recipe, options: dict[str, Any]
) -> tuple[str, tuple, dict[str, Any]]:
    """The options as they are."""
    return name, (), options


def read_dpo(
    name: str, recipe: Recipe, options: dict[str, Any]
) -> tuple[str, tuple, dict[str, Any]]:
    """A variant must be one of the recipe's."""
    recipe.dpo_variant(options["variant"])
    return str(Tag(name, options["variant"])), (), options


def read_merge(
    name: str, recipe: Recipe, options: dict[str, Any]
) -> tuple[str, tuple, dict[str, Any]]:
    """Which adapter is merged."""
    model, variant = options.pop("model"), options.pop("variant")
    if model == "sft" and variant:
        fix = "leave out --variant, or choose --model dpo"
        raise LabError("Variants are of DPO, not of --model sft.", fix=fix)
    recipe.dpo_variant(variant)
    tag = str(Tag("dpo", variant)) if variant else model or "sft"
    return f"{name} {tag}", (tag,), options


def read_evaluate(
    name: str, recipe: Recipe, options: dict[str, Any]
) -> tuple[str, tuple, dict[str, Any]]:
    """Which models are scored, on which benchmarks."""
    tags = tuple(options.pop("model") or ("base", "sft", "dpo"))
    variants = [str(Tag("dpo", name)) for name in recipe.dpo_variants]
    require_known("model", tags, ["base", "sft", "dpo", *variants])
    chosen = options.pop("benchmark")
    known = [b.name for b in recipe.evaluate.benchmarks]
    require_known("benchmark", chosen or (), known)
    return name, (tags,), options | {"benchmarks": chosen}


READERS = {"dpo": read_dpo, "merge": read_merge, "evaluate": read_evaluate}


def require_known(kind: str, words: Iterable[str], known: list[str]) -> None:
    """LabError for the first word that is not a known one."""
    for word in words:
        if word not in known:
            raise LabError(
                f"There is no {kind} '{word}'.{did_you_mean(word, known)}",
                fix="choose from: " + ", ".join(known),
            )


# --- what is shown ----------------------------------------------------------


def show_scores(run: RunDir, tags: Iterable[str], recipe: Recipe) -> None:
    """Print the scores with their intervals, one model after another."""
    from helpers.results import score_table

    table = Table("model", "benchmark", "score")
    for row in score_table(run, tags, recipe):
        table.add_row(*row)
    out.print(table)
    out.print(f"Run folder: {run.path}", soft_wrap=True)


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
) -> Iterator[tuple[str, str]]:
    """Yield ``("a.b", "text")`` for every plain value in nested dicts."""
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, float):
            yield name, f"{value:.4g}"
        elif isinstance(value, str | int) or value is None:
            yield name, str(value)
