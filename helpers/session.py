"""What the first code cell of every notebook calls.

``start`` reads the recipe, opens the run folder and makes sure that what the
notebook needs from earlier ones is there: found in the folder, else taken
from the recorded run that ships in ``data/measured/<tier>/run`` (said
aloud), else computed. In mode ``replay`` the notebook's own stages come from
the record too, so the same cells show a recorded run.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from helpers.errors import LabError, did_you_mean
from helpers.recipes import Recipe, load_recipe
from helpers.records import disk_errors, read_json, write_json
from helpers.runs import DATA_DIR, REPO_ROOT, RunDir
from helpers.smol import SMOL_ID

MODES = ("auto", "run", "replay")
BATCH_VARIABLE = "MATHSLM_BATCH"
PLAIN_SECONDS = 15.0
Mode = Literal["auto", "run", "replay"]
# Stage: the stages that it needs.
NEEDS: dict[str, tuple[str, ...]] = {
    "distill": (),
    "seeding": (),
    "sft": ("distill",),
    "merge/sft": ("sft",),
    "dpo": ("distill", "merge/sft"),
    "dpo-published": ("distill", "merge/sft"),
    "merge/dpo": ("dpo",),
    "merge/dpo-published": ("dpo-published",),
    "evaluate/base": (),
    "evaluate/sft": ("merge/sft",),
    "evaluate/dpo": ("merge/dpo",),
    "evaluate/dpo-published": ("merge/dpo-published",),
}


@dataclass
class Session:
    """The recipe and the run folder of a notebook."""

    recipe: Recipe
    run: RunDir
    mode: str

    def provenance(self, *stages: str) -> str:
        """ "live", or where and when the stages were recorded."""
        for stage in stages:
            path = self.run.file("stages", f"{stage.replace('/', '-')}.json")
            if path.is_file() and (note := read_json(path).get("recorded")):
                return f"recorded on {note['date']}, {note['machine']}"
        return "live"


def start(
    tier: str = "pocket",
    run_dir: str | Path = "runs/pocket",
    mode: str = "auto",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    *,
    needs: Sequence[str] = (),
    makes: Sequence[str] = (),
) -> Session:
    """Open a session and provide what the notebook needs.

    Args:
        mode: ``auto`` computes ``makes`` here and takes missing ``needs``
            from the record; ``run`` computes everything; ``replay`` takes
            both from the record.
        needs: stages of earlier notebooks, e.g. ``("distill",)``.
        makes: stages that this notebook computes itself.

    Raises:
        LabError: unknown mode, tier, key or stage; a run folder of another
            recipe; ``replay`` without a record that fits.
    """
    if mode not in MODES:
        raise LabError(
            f"There is no RUN_MODE '{mode}'.{did_you_mean(mode, MODES)}",
            fix="choose one of: " + ", ".join(MODES),
        )
    changes = list(overrides)
    if seed is not None:
        changes.append(f"seed={seed}")
    recipe = load_recipe(tier, changes)
    path = Path(run_dir)
    if not path.is_absolute():
        path = REPO_ROOT / path
    calm_progress(recipe)
    session = Session(recipe, RunDir.open(path, recipe), mode)
    print(f"tier {recipe.name}: {recipe.description}")
    print(f"run folder {run_dir}, mode {mode}, seed {recipe.seed}")
    for stage in needs:
        _provide(session, stage, use_record=mode != "run")
    if mode == "replay":
        for stage in makes:
            # Merged models are not recorded: made again in seconds.
            if stage.startswith("merge/"):
                continue
            if not _take_recorded(session.run, stage):
                raise LabError(
                    f"No recorded '{stage}' fits this recipe.",
                    why="a record is replayed only with the settings, model "
                    "and problems it was made with, and never over work "
                    "that the run folder holds",
                    fix='set RUN_MODE = "run", or drop your overrides',
                )
    return session


def calm_progress(recipe: Recipe) -> None:
    """Bars that stay readable where nobody watches them move.

    A local model loads in a moment, so the libraries' own bars are switched
    off. In a batch run (``BATCH_VARIABLE`` is set) a bar becomes one plain
    line every quarter of a minute and one at the end: a saved notebook
    would show a widget as "0%" for ever.
    """
    local = (REPO_ROOT / recipe.model.id).is_dir()
    if local or recipe.model.id == SMOL_ID:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if os.environ.get(BATCH_VARIABLE):
        import tqdm.auto

        tqdm.auto.tqdm = make_plain_bar()


def make_plain_bar() -> type:
    """A tqdm that prints whole lines to standard output, and few."""
    from tqdm.std import tqdm

    class PlainBar(tqdm):
        """One line every ``PLAIN_SECONDS``, and one at the end."""

        def __init__(self, *args, **options):
            self.shown = time.monotonic()
            super().__init__(*args, **{**options, "file": io.StringIO()})

        def display(self, *args, **options) -> bool:
            """Print the line when it is due or the last one."""
            last = self.total is not None and self.n >= self.total
            if last and self.shown is not None:
                self.shown = None
            elif self.shown is None or (
                time.monotonic() - self.shown < PLAIN_SECONDS
            ):
                return False
            else:
                self.shown = time.monotonic()
            print(str(self), flush=True, file=sys.stdout)
            return True

    return PlainBar


def _provide(session: Session, stage: str, use_record: bool) -> None:
    """Find a stage's output, else copy the record, else compute it.

    Raises:
        LabError: no such stage, or the folder's was made from other inputs.
    """
    if stage not in NEEDS:
        raise LabError(f"There is no stage '{stage}'.")
    if _stage_file(session.run.path, stage).is_file():
        print(f"  {stage}: found in the run folder")
        # What it was made from is compared, so that must be there too.
        for earlier in NEEDS[stage]:
            if not _stage_file(session.run.path, earlier).is_file():
                _provide(session, earlier, use_record)
        compute_stage(session.run, stage)
        return
    if use_record and _take_recorded(session.run, stage):
        print(f"  {stage}: taken from the recorded run")
        return
    for earlier in NEEDS[stage]:
        _provide(session, earlier, use_record)
    print(f"  {stage}: not there yet, computed now")
    compute_stage(session.run, stage)


def compute_stage(run: RunDir, stage: str) -> None:
    """Run one stage by its name; a finished one is loaded instead."""
    recipe = run.recipe
    if stage == "distill":
        from helpers.distill import run_distill

        run_distill(recipe, run)
    elif stage == "seeding":
        from helpers.seeding import run_seeding

        run_seeding(recipe, run)
    elif stage == "sft":
        from helpers.sft import run_sft

        run_sft(recipe, run)
    elif stage.startswith("merge/"):
        from helpers.merge import run_merge

        run_merge(recipe, run, stage.removeprefix("merge/"))
    elif stage.startswith("dpo"):
        from helpers.dpo import run_dpo

        variant = stage.removeprefix("dpo").removeprefix("-") or None
        run_dpo(recipe, run, variant=variant)
    else:
        from helpers.evaluate import run_evaluate

        run_evaluate(recipe, run, (stage.removeprefix("evaluate/"),))


def _take_recorded(run: RunDir, stage: str) -> bool:
    """Copy a stage from the shipped record when its settings are ours.

    Not over work that was begun here: that is gone on with instead.
    """
    source = DATA_DIR / "measured" / run.recipe.name / "run"
    record_file = _stage_file(source, stage)
    if _stage_file(run.path, stage).is_file():
        return True
    if not record_file.is_file() or not _same_recipe(source, run.recipe):
        return False
    record = read_json(record_file)
    if any(run.file(name).exists() for name in record["outputs"]):
        return False
    manifest = read_json(source / "manifest.json")
    with disk_errors(run.path):
        for name in record["outputs"]:
            _copy(source / name, run.file(name))
    metrics = read_json(source / "metrics.json")
    everything = run.metrics() | {stage: metrics[stage]}
    write_json(run.file("metrics.json"), everything)
    record["recorded"] = {
        "date": manifest["created"][:10],
        "machine": f"{manifest['processor']}, {manifest['cores']} cores",
    }
    write_json(_stage_file(run.path, stage), record)
    run.save_recipe()
    return True


def _same_recipe(source: Path, recipe: Recipe) -> bool:
    """A record fits when it was made with exactly this recipe."""
    if not (source / "recipe.yaml").is_file():
        return False
    return load_recipe(source / "recipe.yaml") == recipe


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def _stage_file(folder: Path, stage: str) -> Path:
    return folder / "stages" / f"{stage.replace('/', '-')}.json"
