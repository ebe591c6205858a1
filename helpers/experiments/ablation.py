"""What each choice of multi-source SFT is worth: one change at a time.

arm ─ solutions ─ SFT ─ merge ─ evaluate ─ compare with the first arm

Every arm trains on worked solutions like the first one, changes one thing,
and is asked the same problems in the same way. An arm is a run folder of its
own, so the experiment goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from helpers.base import (
    LabError,
    Recipe,
    RunDir,
    describe_machine,
    load_recipe,
    read_json,
    write_json,
)
from helpers.experiments.options import RunFolder, Sets, out
from helpers.results import compare, load_results, proportion
from helpers.stages import run_evaluate, run_merge, run_sft, run_solutions

OUTPUT = "ablation.json"
REFERENCE = "all sources"
SECTIONS = ("model", "data", "solutions", "sft", "evaluate")


@dataclass(frozen=True)
class Arm:
    """One way to train: its name and what differs from the first arm."""

    name: str
    sets: tuple[str, ...] = ()


def list_arms(recipe: Recipe) -> list[Arm]:
    """The first arm has all sources, the chat format and masked prompts.

    Raises:
        LabError: the recipe has no solutions of two sources or more.
    """
    mix = recipe.solutions.mix if recipe.solutions else {}
    if len(mix) < 2:
        raise LabError(
            f"Recipe '{recipe.name}' names {len(mix)} sources of worked "
            "solutions.",
            why="one source can only be compared with several",
            fix="use tier smol-mix, or --set 'solutions.mix={…: 300, …: 300}'",
        )
    first = next(iter(mix))
    alone = {name: 0 for name in mix} | {first: sum(mix.values())}
    return [
        Arm(REFERENCE),
        Arm("one source", (f"solutions.mix={json.dumps(alone)}",)),
        Arm("no chat format in training", ("solutions.chat=false",)),
        Arm("prompts are learnt too", ("sft.prompt_loss=true",)),
    ]


def run_ablation(
    tier: str,
    folder: Path,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Train and score every arm with every seed; finished ones are loaded.

    Args:
        tier: recipe name or path.
        folder: holds one run folder for each arm and seed.
        overrides: ``("sft.epochs=1", …)`` for all arms.
        names: only these arms and the first; all when empty.

    Returns:
        What ``ablation.json`` holds: the settings, and per seed and arm the
        scores and the paired comparison with the first arm.

    Raises:
        LabError: no such arm, or the table there has rows of other settings.
    """
    recipe = load_recipe(tier, overrides)
    arms = list_arms(recipe)
    _check_names(arms, names)
    path, record = folder / OUTPUT, describe_table(recipe, arms)
    table = _take_up(path, record) if path.is_file() else {}
    for seed in seeds:
        row = table.setdefault(str(seed), {})
        first = None
        for arm in arms:
            if names and arm.name not in names and arm.name != REFERENCE:
                continue
            sets = [*overrides, f"seed={seed}", *arm.sets]
            run = run_arm(load_recipe(tier, sets), folder, arm, seed)
            first = first or run
            row[arm.name] = measure_arm(run, first)
            write_json(path, record | {"seeds": _sort_rows(arms, table)})
    return record | {"seeds": _sort_rows(arms, table)}


def _check_names(arms: Sequence[Arm], names: Sequence[str]) -> None:
    known = [arm.name for arm in arms]
    for name in names:
        if name not in known:
            raise LabError(
                f"There is no arm '{name}'.",
                fix="choose from: " + ", ".join(known),
            )


def _take_up(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The rows of the table that lies there, when its settings are ours.

    Rows of two settings side by side would look like a matter of the seed.
    A table without ``recipe`` knows a few settings only; it stays without,
    because nobody can tell what else its rows were made with.
    """
    stored = read_json(path)
    known = "recipe" if "recipe" in stored else "settings"
    if known == "settings":
        del record["recipe"]
    # the arms follow from the rest, and from the order of the sources
    differ = _compare(stored.get(known), record[known], known)
    differ = differ or _compare(stored.get("arms"), record["arms"], "arms")
    if differ:
        raise LabError(
            f"{path} has rows of other settings: {'; '.join(differ)}.",
            why="seeds are only comparable when nothing else differs",
            fix="choose another --run-dir for these settings, or go on with "
            "those of the table",
        )
    return stored["seeds"]


def _compare(there: Any, now: Any, name: str) -> list[str]:
    """Every setting that differs, with both values."""
    if isinstance(there, dict) and isinstance(now, dict):
        keys = [*there, *(key for key in now if key not in there)]
        return [
            line
            for key in keys
            for line in _compare(
                there.get(key), now.get(key), f"{name}: {key}"
            )
        ]
    if there == now:
        return []
    return [f"{name} is {json.dumps(there)} there, {json.dumps(now)} now"]


def run_arm(recipe: Recipe, folder: Path, arm: Arm, seed: int) -> RunDir:
    """Solutions, SFT, merge and evaluation of one arm."""
    print(f"--- {arm.name}, seed {seed}")
    word = arm.name.replace(" ", "-")
    run = RunDir.open(folder / f"{word}-{seed}", recipe)
    run_solutions(recipe, run)
    run_sft(recipe, run)
    run_merge(recipe, run, "sft")
    # The base is the same in every arm and is asked once a seed.
    tags = ("base", "sft") if arm.name == REFERENCE else ("sft",)
    run_evaluate(recipe, run, tags)
    return run


def measure_arm(run: RunDir, first: RunDir) -> dict[str, Any]:
    """Rows, seconds, scores, and what changed problem by problem.

    The first arm is compared with the base model, the others with it.
    """
    metrics, old = run.metrics(), "base" if run is first else "sft"
    sources = metrics["solutions"]["sources"]
    out: dict[str, Any] = {
        "rows": {name: steps["length"] for name, steps in sources.items()},
        "seconds": {p["phase"]: p["seconds"] for p in run.ledger()},
        "first_loss": metrics["sft"]["first_loss"],
        "last_loss": metrics["sft"]["last_loss"],
    }
    for tag in ("base", "sft"):
        for name, counts in metrics.get(f"evaluate/{tag}", {}).items():
            score = proportion(counts["k"], counts["n"])
            out.setdefault(tag, {})[name] = counts | {"score": str(score)}
    out["change"] = {
        name: compare_runs(first, old, run, name) for name in out["sft"]
    }
    return out


def compare_runs(
    first: RunDir, old: str, run: RunDir, benchmark: str
) -> dict[str, Any]:
    """The paired comparison of two models on one benchmark."""
    before, after = (
        {
            row.problem_id: row.correct
            for row in load_results(r, tag, benchmark)
        }
        for r, tag in ((first, old), (run, "sft"))
    )
    found = compare(before, after)
    return {
        "won": found.only_after,
        "lost": found.only_before,
        "difference": str(found.difference),
        "p": found.p_value,
        "verdict": found.verdict,
    }


def describe_table(recipe: Recipe, arms: Sequence[Arm]) -> dict[str, Any]:
    """The record without its rows: where it was measured, the settings.

    ``recipe`` has all that the rows depend on; the seed is theirs.
    """
    whole = recipe.model_dump(mode="json")
    return {
        "manifest": describe_machine(recipe),
        "settings": {
            "mix": recipe.solutions.mix,
            "prompt_template": recipe.data.prompt_template,
            "epochs": recipe.sft.epochs,
            "learning_rate": recipe.sft.learning_rate,
            "max_length": recipe.sft.max_length,
            "max_new_tokens": recipe.evaluate.max_new_tokens,
        },
        "recipe": {name: whole[name] for name in SECTIONS},
        "arms": {arm.name: list(arm.sets) for arm in arms},
    }


def _sort_rows(
    arms: Sequence[Arm], table: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The rows by seed, their arms in order."""
    return {
        seed: {arm.name: row[arm.name] for arm in arms if arm.name in row}
        for seed, row in table.items()
    }


def start_ablation(
    tier: Annotated[
        str, typer.Option(help="A recipe with several sources of solutions.")
    ] = "smol-mix",
    run_dir: RunFolder = None,
    sets: Sets = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Repeatable; default: 42."),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="Only this arm and the first. Repeatable."),
    ] = None,
) -> None:
    """Train on worked solutions with one thing changed at a time."""
    load_recipe(tier, sets or ())
    folder = run_dir or Path("runs") / "ablation"
    done = run_ablation(
        tier, folder, tuple(seed or (42,)), tuple(sets or ()), arm or ()
    )
    out.print(show_table(done["seeds"]))
    out.print(f"Run folder: {folder}", soft_wrap=True)


def show_table(seeds: dict[str, Any]) -> Table:
    """One row an arm, seed and benchmark: score and change."""
    table = Table("seed", "arm", "set", "score", "won", "lost", "change", "p")
    for seed, row in seeds.items():
        for name, found in row.items():
            for benchmark, change in found["change"].items():
                table.add_row(
                    seed,
                    name,
                    benchmark,
                    found["sft"][benchmark]["score"],
                    str(change["won"]),
                    str(change["lost"]),
                    change["difference"],
                    f"{change['p']:.3g}",
                )
    return table
