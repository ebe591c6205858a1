"""Measure the pocket tier: settings on dev, spread over seeds.

    python -m tools.pocket.measure tune sft sft.learning_rate=1e-3,2e-3
    python -m tools.pocket.measure seeds 1 2 3
    python -m tools.pocket.measure sweep runs/pocket build/seeds/1 …

``tune`` looks at the dev set only. ``seeds`` runs the whole pipeline once a
seed. ``sweep`` runs a grid of DPO settings on the first run, derives an
early-stop rule from it and tests the rule on the other runs, of other seeds.
Every result carries a manifest of the machine.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm

from helpers.base import (
    DATA_DIR,
    LabError,
    Recipe,
    RunDir,
    describe_machine,
    load_recipe,
    read_json,
    write_json,
)
from helpers.experiments.dpo_sweep import (
    Setting,
    build_grid,
    check_rule,
    derive_rule,
    run_sweep,
)
from helpers.session import compute_stage

MEASURED = DATA_DIR / "measured" / "pocket"
DEV_ONLY = (
    "evaluate.benchmarks=[{name: dev, path: pocket/dev.jsonl, n: 400}]",
    "evaluate.main=dev",
)
PIPELINE = ("distill", "sft", "merge/sft", "dpo", "merge/dpo")
TAGS = ("base", "sft", "dpo")

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _score(run: RunDir, tag: str) -> dict[str, Any]:
    """The metrics of one model on every benchmark of the run's recipe."""
    compute_stage(run, f"evaluate/{tag}")
    return run.metrics()[f"evaluate/{tag}"]


def _start_from(source: RunDir, target: Path, recipe: Recipe) -> RunDir:
    """A copy of a run folder, so that a changed setting leaves it alone."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source.path, target)
    return RunDir.open(target, recipe)


@app.command()
def tune(
    stage: Annotated[str, typer.Argument(help="sft or dpo")],
    grid: Annotated[list[str], typer.Argument(help="key=v1,v2 …")],
    work: Path = Path("build/tune"),
    out: Path = MEASURED / "tuning.json",
) -> None:
    """Score every combination of settings on the dev set."""
    base_recipe = load_recipe("pocket", DEV_ONLY)
    base = RunDir.open(work / "base", base_recipe)
    upto = PIPELINE[: PIPELINE.index(stage)]
    for name in upto:
        compute_stage(base, name)
    axes = [(k, v.split(",")) for k, v in (g.split("=", 1) for g in grid)]
    rows = read_json(out)["rows"] if out.is_file() else []
    combos = list(itertools.product(*(values for _, values in axes)))
    for combo in tqdm(combos, desc=f"tune {stage}"):
        sets = [f"{key}={v}" for (key, _), v in zip(axes, combo, strict=True)]
        recipe = load_recipe("pocket", (*DEV_ONLY, *sets))
        run = _start_from(base, work / "trial", recipe)
        for name in (stage, f"merge/{stage}"):
            compute_stage(run, name)
        row = {"stage": stage, "set": sets, **_score(run, stage)["dev"]}
        print(row)
        rows.append(row)
        manifest = describe_machine(base_recipe)
        write_json(out, {"manifest": manifest, "rows": rows})


@app.command()
def seeds(
    numbers: list[int],
    work: Path = Path("build/seeds"),
    out: Path = MEASURED / "seeds.json",
) -> None:
    """Run the pipeline once a seed; counts per model and benchmark."""
    results = read_json(out)["seeds"] if out.is_file() else {}
    for number in tqdm(numbers, desc="seeds"):
        recipe = load_recipe("pocket", (f"seed={number}",))
        run = RunDir.open(work / str(number), recipe)
        for name in PIPELINE:
            compute_stage(run, name)
        results[str(number)] = {tag: _score(run, tag) for tag in TAGS}
        manifest = describe_machine(load_recipe("pocket"))
        write_json(out, {"manifest": manifest, "seeds": results})


SWEEP = (
    *build_grid([5e-7, 5e-6, 5e-5, 2e-4, 5e-4], betas=[0.1, 0.3], steps=[60]),
    *build_grid([5e-7, 5e-6, 5e-5, 2e-4, 5e-4], betas=[0.1], steps=[200]),
    *build_grid([5e-6], betas=[0.3], steps=[200]),
    *build_grid([2e-4], betas=[0.03, 0.3, 1.0], steps=[200]),
)
HELD_OUT = build_grid([5e-7, 5e-6, 5e-5, 2e-4], betas=[0.1], steps=[60])


@app.command()
def sweep(
    first: Path,
    others: list[Path],
    out: Path = MEASURED / "dpo_sweep.json",
) -> None:
    """Sweep DPO on one run; test the rule it gives on runs of other seeds."""
    rows = _sweep_run(first, SWEEP)
    held_out = [row for run in others for row in _sweep_run(run, HELD_OUT)]
    rule = derive_rule(rows)
    write_json(
        out,
        {
            "manifest": describe_machine(load_recipe("pocket")),
            "rule": asdict(rule),
            "derived_on": check_rule(rule, rows).summary(),
            "held_out": check_rule(rule, held_out).summary(),
            "rows": rows,
            "held_out_rows": held_out,
        },
    )


def _sweep_run(folder: Path, settings: Sequence[Setting]) -> list[Any]:
    recipe = load_recipe(folder / "recipe.yaml")
    return run_sweep(recipe, RunDir.open(folder, recipe), settings)


@app.command()
def base(n: int = 4, out: Path = MEASURED / "base.json") -> None:
    """The base model on main at T=1: pass@1 and pass@n."""
    change = (
        "data.train=pocket/main.jsonl",
        "data.n_problems=500",
        f"sampling.n={n}",
        "harvest.min_pairs=0",
    )
    recipe = load_recipe("pocket", change)
    run = RunDir.open(Path("build/base"), recipe)
    compute_stage(run, "distill")
    metrics = run.metrics()["distill"]
    kept = {name: metrics[name] for name in ("pass@1", f"pass@{n}", "mixed")}
    write_json(out, {"manifest": describe_machine(recipe), **kept})


if __name__ == "__main__":
    try:
        app()
    except LabError as error:
        raise SystemExit(f"{error}") from None
