"""What the first code cell of every notebook calls.

``start`` reads the recipe, opens the run folder and makes sure that what the
notebook needs from earlier ones is there: found in the folder, else taken
from the recorded run that ships in ``data/measured/<tier>/run`` (said
aloud), else computed. In mode ``replay`` the notebook's own stages come from
the record too, so the same cells show a recorded run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from helpers.base import (
    REPO_ROOT,
    LabError,
    Recipe,
    RunDir,
    describe_record,
    did_you_mean,
    load_recipe,
    read_json,
    record_folder,
    stage_file,
    write_json,
)
from helpers.models import SMOL_ID
from helpers.replay import TOKENIZER, VALUES, take_stage
from helpers.stages import NEEDS, list_needs

MODES = ("auto", "run", "replay")
BATCH_VARIABLE = "MATHSLM_BATCH"


def list_stages(recipe: Recipe) -> list[str]:
    """Every stage that the notebooks of the course make with a recipe."""
    left_out = set() if recipe.solutions else {"solutions"}
    if "published" not in recipe.dpo_variants:
        left_out |= {stage for stage in NEEDS if "dpo-published" in stage}
    return [stage for stage in NEEDS if stage not in left_out]


@dataclass
class Session:
    """The recipe and the run folder of a notebook."""

    recipe: Recipe
    run: RunDir
    mode: str

    @property
    def note(self) -> str | None:
        """In a replay: when and where what figures show was recorded."""
        if self.mode != "replay":
            return None
        manifest = read_json(record_folder(self.recipe.name) / "manifest.json")
        return describe_record(manifest)

    def recall(
        self,
        name: str,
        compute: Callable[[], Any],
        rows: type[BaseModel] | None = None,
    ) -> Any:
        """``compute()``; in a replay what the recorded run got from it.

        Both go through JSON, so that a cell sees the same types live and
        replayed. What is computed is kept in the run's ``values.json``.

        Args:
            name: unique in the course; the name of a stage stands for its
                metrics.
            rows: the value is a list of these records.

        Raises:
            LabError: replay, and the record has no such value.
        """
        if self.mode == "replay":
            value = self._read_recorded(name)
        else:
            value = compute()
            if rows:
                value = [row.model_dump(mode="json") for row in value]
            value = self._keep(name, json.loads(json.dumps(value)))
        return [rows.model_validate(row) for row in value] if rows else value

    def _keep(self, name: str, value: Any) -> Any:
        path = self.run.file(VALUES)
        if name not in self.run.metrics():
            known = read_json(path) if path.is_file() else {}
            write_json(path, known | {name: value})
        return value

    def _read_recorded(self, name: str) -> Any:
        source = record_folder(self.recipe.name)
        for file in (VALUES, "metrics.json"):
            if (source / file).is_file():
                known = read_json(source / file)
                if name in known:
                    return known[name]
        raise LabError(
            f"The recorded run has no value '{name}'.",
            why="it was recorded before this cell was written",
            fix='set RUN_MODE = "run", or record the run again',
        )

    def load(self, tag: str = "base") -> tuple[Any, Any]:
        """(model, tokenizer) of a tag; a replay has no model: None.

        Args:
            tag: "base", "sft", "dpo" or "dpo-<variant>".
        """
        from helpers.models import load_model, model_path

        if self.mode == "replay":
            return None, self.tokenizer()
        path = model_path(self.recipe, self.run, tag)
        return load_model(self.recipe, path)

    def release(self) -> None:
        """Give back the memory of models that a notebook has dropped.

        Before a stage, which loads a model of its own; a replay has none.
        """
        if self.mode != "replay":
            from helpers.models import free_memory

            free_memory()

    def tokenizer(self) -> Any:
        """The recipe's tokenizer; in a replay the recorded one."""
        from helpers.models import find_base, load_tokenizer

        if self.mode == "replay":
            return load_tokenizer(record_folder(self.recipe.name) / TOKENIZER)
        model = self.recipe.model
        return load_tokenizer(find_base(self.recipe), model.revision)

    def provenance(self, *stages: str) -> str:
        """ "live", or where and when the stages were recorded."""
        for stage in stages:
            path = stage_file(self.run.path, stage)
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
        makes: stages that this notebook computes itself; what they go on
            from is provided too.

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
    if recipe.solutions:
        print(
            "SFT trains on worked solutions here, and the SFT model, not "
            "the base, is what is sampled for pairs."
        )
    before = [s for stage in makes for s in list_needs(recipe, stage)]
    wanted = list(dict.fromkeys([*needs, *before]))
    if mode == "replay":
        _replay(session, [*wanted, *makes])
        return session
    for stage in wanted:
        if stage not in makes:
            _provide(session, stage, use_record=mode != "run")
    return session


def _replay(session: Session, stages: Sequence[str]) -> None:
    """Take the stages from the record; no model is loaded or made.

    Merged models are not recorded: what they go on from is taken instead,
    and what notebooks saw of them comes through :meth:`Session.recall`.
    """
    recipe, run = session.recipe, session.run
    wanted: list[str] = []
    for stage in stages:
        merge = stage.startswith("merge/")
        wanted += list_needs(recipe, stage) if merge else [stage]
    for stage in dict.fromkeys(wanted):
        live = session.provenance(stage) == "live"
        if live and stage_file(run.path, stage).is_file():
            raise LabError(
                f"{run.label} holds a '{stage}' of its own.",
                why="a replay shows the recorded run, never a mixture",
                fix="choose another RUN_DIR, such as runs/replay",
            )
        if not take_stage(run, stage, replay=True):
            raise LabError(
                f"No recorded '{stage}' fits this recipe.",
                why="a record is replayed only with the settings, model "
                "and problems it was made with, and never over work "
                "that the run folder holds",
                fix='set RUN_MODE = "run", drop your overrides, or choose an '
                "empty RUN_DIR; a tier that was recorded in its quick form "
                "needs --quick",
            )


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

        from helpers.plain_bar import make_plain_bar

        tqdm.auto.tqdm = make_plain_bar()


def _provide(session: Session, stage: str, use_record: bool) -> None:
    """Find a stage's output, else copy the record, else compute it.

    Raises:
        LabError: no such stage, or the folder's was made from other inputs.
    """
    earlier_stages = list_needs(session.recipe, stage)
    if stage_file(session.run.path, stage).is_file():
        print(f"  {stage}: found in the run folder")
        # What it was made from is compared, so that must be there too.
        for earlier in earlier_stages:
            if not stage_file(session.run.path, earlier).is_file():
                _provide(session, earlier, use_record)
        compute_stage(session.run, stage)
        return
    if use_record and take_stage(session.run, stage):
        print(f"  {stage}: taken from the recorded run")
        return
    for earlier in earlier_stages:
        _provide(session, earlier, use_record)
    print(f"  {stage}: not there yet, computed now")
    compute_stage(session.run, stage)


def compute_stage(run: RunDir, stage: str) -> None:
    """Run one stage by its name; a finished one is loaded instead."""
    recipe = run.recipe
    if stage == "distill":
        from helpers.stages import run_distill

        run_distill(recipe, run)
    elif stage == "solutions":
        from helpers.stages import run_solutions

        run_solutions(recipe, run)
    elif stage == "seeding":
        from helpers.experiments.seeding import run_seeding

        run_seeding(recipe, run)
    elif stage == "sft":
        from helpers.stages import run_sft

        run_sft(recipe, run)
    elif stage.startswith("merge/"):
        from helpers.stages import run_merge

        run_merge(recipe, run, stage.removeprefix("merge/"))
    elif stage.startswith("dpo"):
        from helpers.stages import run_dpo

        variant = stage.removeprefix("dpo").removeprefix("-") or None
        run_dpo(recipe, run, variant=variant)
    else:
        _evaluate(run, stage)


def _evaluate(run: RunDir, stage: str) -> None:
    """One line a problem; ``evaluate-t1``: several samples of the main set."""
    from helpers.stages import run_evaluate

    kind, _, tag = stage.partition("/")
    if kind == "evaluate":
        run_evaluate(run.recipe, run, (tag,))
        return
    run_evaluate(
        run.recipe,
        run,
        (tag,),
        benchmarks=[run.recipe.evaluate.main],
        n=run.recipe.course.samples,
        temperature=float(kind.removeprefix("evaluate-t")),
    )
