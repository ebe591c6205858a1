"""Grade a run again with the installed grader: no sampling, no torch.

Every ``.jsonl`` under ``samples/``, also those of ``mathslm seeding``, and
every ``eval/*/*.jsonl`` gets the verdicts of the installed grader, and the
measures of finished stages follow. What a model was trained on is history:
``sft.jsonl`` and ``pairs.jsonl`` are compared with what the new verdicts
would harvest, and written only when asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.base import (
    LabError,
    PairRow,
    RunDir,
    SftRow,
    choose_aside,
    group_samples,
    hash_file,
    hash_text,
    hold_lock,
    iter_records,
    read_json,
    recipe_hash,
    resolve_data,
    write_json,
    write_records,
)
from helpers.experiments.seeding import STAGE as SEEDING
from helpers.experiments.seeding import Arm, list_arms, measure_arms
from helpers.problems import hash_problems
from helpers.results import (
    FileChange,
    keep_copy,
    measure_benchmark,
    regrade_command,
    regrade_file,
)
from helpers.sampling import iter_samples
from helpers.stages import (
    Harvest,
    harvest_pairs,
    load_training,
    measure_harvest,
    measure_samples,
)
from helpers.stages.distill import SAMPLES, STAGE

HARVESTED = {"sft.jsonl": SftRow, "pairs.jsonl": PairRow}


@dataclass
class HarvestChange:
    """A file of training rows against what the new verdicts would give."""

    name: str
    there: int
    anew: int
    added: int
    dropped: int
    other: int  # the same problem, another response

    def __bool__(self) -> bool:
        return bool(self.added or self.dropped or self.other)


@dataclass
class Regraded:
    """Everything that grading a run again found and changed.

    ``scores`` are ``(model, benchmark, right before, right now, n)`` where
    they differ; ``metrics`` names the stages whose measures changed, also
    those that only got a new measure; ``stale`` what no longer fits, each
    with its command; ``no_harvest`` why the harvest could not be compared;
    ``aside`` where the old files are, if any was replaced.
    """

    files: list[FileChange]
    scores: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    harvest: list[HarvestChange] = field(default_factory=list)
    no_harvest: str = ""
    harvest_written: bool = False
    stale: list[str] = field(default_factory=list)
    aside: Path | None = None


def run_regrade(run: RunDir, *, harvest: bool = False) -> Regraded:
    """Grade every stored response of a run again.

    Each file is replaced in one step and its old version kept in
    ``old/<n>-regrade``; a kill leaves every file whole, and the same command
    goes on. Measures are computed from the files at the end.

    Args:
        harvest: also write ``sft.jsonl`` and ``pairs.jsonl`` anew; what was
            trained on the old ones then no longer fits its inputs.

    Raises:
        LabError: the run holds no graded file, a damaged one, or rows whose
            reference answer is lost; another process works in the run.
    """
    names = list_graded(run)
    if not names:
        raise LabError(
            f"{run.label} holds no graded response.",
            fix="sample some first: mathslm distill or mathslm evaluate "
            f"--run-dir {run.label}",
        )
    with hold_lock(run.path):
        return _regrade_all(run, names, harvest)


def _regrade_all(run: RunDir, names: list[str], harvest: bool) -> Regraded:
    aside = choose_aside(run.path, "regrade")
    out = Regraded([regrade_file(run, name, aside) for name in names])
    metrics = run.metrics()
    fresh = metrics | _measure_evaluations(run, metrics)
    if STAGE in metrics and run.file(SAMPLES).is_file():
        fresh[STAGE] = _renew_distill(run, metrics[STAGE], harvest, aside, out)
    if SEEDING in metrics:
        fresh[SEEDING] = _renew_seeding(run, metrics[SEEDING], out)
    out.scores = _list_changed_scores(metrics, fresh)
    out.metrics = [name for name in fresh if fresh[name] != metrics.get(name)]
    if out.metrics:
        keep_copy(run, "metrics.json", aside)
        write_json(run.file("metrics.json"), fresh)
    out.aside = aside if aside.exists() else None
    if out.metrics and run.file("report.html").is_file():
        out.stale.append(f"report.html: mathslm report --run-dir {run.label}")
    return out


def list_graded(run: RunDir) -> list[str]:
    """The graded files of a run, as paths in it."""
    paths = [
        *run.path.glob("samples/**/*.jsonl"),
        *run.path.glob("eval/*/*.jsonl"),
    ]
    return sorted(p.relative_to(run.path).as_posix() for p in paths)


def _measure_evaluations(
    run: RunDir, metrics: dict[str, Any]
) -> dict[str, Any]:
    """The scores of every finished evaluation, from its file."""
    out: dict[str, Any] = {}
    for stage, scores in metrics.items():
        if not stage.startswith("evaluate"):
            continue
        out[stage] = dict(scores)
        for benchmark, old in scores.items():
            samples = old.get("samples", 1)
            new = measure_benchmark(run, stage, benchmark, samples)
            out[stage][benchmark] = new or old
    return out


def _list_changed_scores(
    old: dict[str, Any], new: dict[str, Any]
) -> list[tuple[str, str, int, int, int]]:
    return [
        (stage.partition("/")[2], name, old[stage][name]["k"], row["k"], n)
        for stage, scores in new.items()
        if stage.startswith("evaluate/")
        for name, row in scores.items()
        for n in [row["n"]]
        if old[stage][name]["k"] != row["k"]
    ]


def _renew_distill(
    run: RunDir,
    old: dict[str, Any],
    write: bool,
    aside: Path,
    out: Regraded,
) -> dict[str, Any]:
    """Measures of the samples; the harvest compared, or written anew.

    The measures of the harvest stay those of the files that lie there.
    """
    out.no_harvest = _refuse_harvest(run)
    if out.no_harvest:
        return old
    problems = load_training(run.recipe)[: old.get("problems")]
    samples = group_samples(iter_samples(run.file(SAMPLES)), problems)
    found = harvest_pairs(
        samples,
        pick=run.recipe.harvest.pick,
        seed=run.recipe.seed,
        run_name=_run_name(run),
    )
    new = {"sft.jsonl": found.iter_sft, "pairs.jsonl": found.iter_pairs}
    out.harvest = [_compare_harvest(run, name, new[name]()) for name in new]
    measured = old | measure_samples(samples, found)
    if write and any(out.harvest):
        out.harvest_written = True
        for name in new:
            keep_copy(run, name, aside)
            write_records(run.file(name), new[name]())
        out.stale += _list_stale(run)
    elif any(out.harvest):
        kept = measure_harvest(Harvest())
        measured |= {key: old[key] for key in kept if key in old}
    return measured


def _renew_seeding(
    run: RunDir, old: dict[str, Any], out: Regraded
) -> dict[str, Any]:
    """Measures of the seed experiment, arm by arm, from its files.

    Its problems are needed for their order, which the interval depends on.
    """
    path = run.file("stages", f"{SEEDING}.json")
    inputs = read_json(path)["inputs"] if path.is_file() else {}
    arms = _find_arms(old)
    reason = _refuse_seeding(run, inputs, arms)
    if not reason:
        problems = load_training(run.recipe)
        chosen = problems[: int(inputs["n_problems"])]
        found = measure_arms(run, arms, chosen)
        return old | {arm.name: one.summary() for arm, one in found.items()}
    files = {arm.file for arm in arms}
    if any(one.changed and one.name in files for one in out.files):
        out.stale.append(
            f"the measures of {SEEDING}, since {reason}: mend that, then "
            + regrade_command(run)
        )
    return old


def _find_arms(measures: Iterable[str]) -> list[Arm]:
    """The arms by the names that their measures have."""
    names = list(measures)
    levels = {float(name.rpartition("= ")[2]) for name in names}
    return [arm for arm in list_arms(sorted(levels)) if arm.name in names]


def _refuse_seeding(
    run: RunDir, inputs: dict[str, str], arms: list[Arm]
) -> str:
    """Why the arms cannot be measured the way they were, or ""."""
    if not inputs:
        return f"{SEEDING} has not finished"
    missing = [arm.file for arm in arms if not run.file(arm.file).is_file()]
    if missing:
        return f"there is no {missing[0]}"
    train = run.recipe.data.train
    try:
        same = hash_problems(train) == inputs["problems"]
    except LabError:
        same = False
    return "" if same else f"{train} is not the file it was made from"


def _refuse_harvest(run: RunDir) -> str:
    """Why the harvest cannot be made again the way it was made, or ""."""
    stage = run.file("stages", f"{STAGE}.json")
    if not stage.is_file():
        return "distill has not finished"
    inputs, recipe = read_json(stage)["inputs"], run.recipe
    if inputs["harvest"] != recipe_hash(recipe, "harvest"):
        return "the recipe's harvest settings are not those it was made with"
    source = resolve_data(recipe.data.train)
    if not source.is_file() or hash_file(source) != inputs["problems"]:
        return f"{recipe.data.train} is not the file it was made from"
    missing = [name for name in HARVESTED if not run.file(name).is_file()]
    return f"there is no {missing[0]}" if missing else ""


def _run_name(run: RunDir) -> str:
    """The provenance of the rows that lie there, else this folder's name."""
    first = next(iter_records(run.file("sft.jsonl"), SftRow), None)
    return first.run if first else run.path.resolve().name


def _compare_harvest(
    run: RunDir, name: str, new: Iterable[SftRow | PairRow]
) -> HarvestChange:
    rows = iter_records(run.file(name), HARVESTED[name])
    before = {row.problem_id: _hash_content(row) for row in rows}
    after = {row.problem_id: _hash_content(row) for row in new}
    both = before.keys() & after.keys()
    return HarvestChange(
        name,
        there=len(before),
        anew=len(after),
        added=len(after.keys() - both),
        dropped=len(before.keys() - both),
        other=sum(before[key] != after[key] for key in both),
    )


def _hash_content(row: SftRow | PairRow) -> int:
    """What a model would be trained on: provenance does not count."""
    return hash_text(row.model_dump_json(exclude={"run"}))


def _list_stale(run: RunDir) -> list[str]:
    """The finished trainings whose rows are no longer those on disk."""
    out = []
    for path in sorted(run.path.glob("stages/*.json")):
        inputs = read_json(path)["inputs"]
        for key, name in (("rows", "sft.jsonl"), ("pairs", "pairs.jsonl")):
            if key in inputs and inputs[key] != hash_file(run.file(name)):
                stage, _, variant = path.stem.partition("-")
                more = f" --variant {variant}" if variant else ""
                out.append(
                    f"{path.stem} and all that was made from it: mathslm "
                    f"{stage}{more} --force --run-dir {run.label}"
                )
    return out
