"""Measure the pocket tier: settings on dev, spread over seeds, the record.

    python -m helpers.pocket.measure tune sft sft.learning_rate=1e-3,2e-3
    python -m helpers.pocket.measure seeds 1 2 3
    python -m helpers.pocket.measure record runs/pocket

``tune`` looks at the dev set only. ``seeds`` runs the whole pipeline once a
seed. ``record`` copies a finished run into ``data/measured/pocket/run``, from
which notebooks replay. Every result carries a manifest of the machine.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm

from helpers.errors import LabError
from helpers.recipes import Recipe, load_recipe
from helpers.records import read_json, write_json
from helpers.runs import DATA_DIR, RunDir, describe_machine
from helpers.session import NEEDS, compute_stage

MEASURED = DATA_DIR / "measured" / "pocket"
DEV_ONLY = (
    "evaluate.benchmarks=[{name: dev, path: pocket/dev.jsonl, n: 400}]",
    "evaluate.main=dev",
)
PIPELINE = ("distill", "sft", "merge/sft", "dpo", "merge/dpo")
TAGS = ("base", "sft", "dpo")
# Kept of a run for replay: the merged models are made again in seconds.
RECORDED = ("distill", "seeding", "sft", "dpo", "dpo-published") + tuple(
    s for s in NEEDS if s.startswith("evaluate/")
)

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


@app.command()
def record(source: Path, out: Path = MEASURED / "run") -> None:
    """Copy a finished run's artefacts for replay."""
    target = out.with_name(out.name + ".partial")
    shutil.rmtree(target, ignore_errors=True)
    for name in ("recipe.yaml", "manifest.json", "metrics.json"):
        _copy(source / name, target / name)
    _copy(source / "ledger.json", target / "ledger.json")
    for stage in RECORDED:
        file = source / "stages" / f"{stage.replace('/', '-')}.json"
        if not file.is_file():
            raise LabError(
                f"{source} has not finished '{stage}'.",
                fix="run the course into that folder first",
            )
        _copy(file, target / "stages" / file.name)
        for name in read_json(file)["outputs"]:
            _copy(source / name, target / name)
    shutil.rmtree(out, ignore_errors=True)
    target.rename(out)
    timings = source / "notebooks" / "timings.json"
    if timings.is_file():
        _copy(timings, out.parent / "timings.json")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


if __name__ == "__main__":
    try:
        app()
    except LabError as error:
        raise SystemExit(f"{error}") from None
