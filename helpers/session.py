"""What the first code cell of every notebook calls.

``start`` reads the recipe, opens the run folder and makes sure that what the
notebook needs from earlier ones is there: found in the folder, else taken
from the recorded run that ships in ``data/measured/<tier>/run`` (said
aloud), else computed. In mode ``replay`` the notebook's own stages and
values come from the record too, so the same cells show a recorded run.
"""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from helpers import stages
from helpers.base import (
    REPO_ROOT,
    Completion,
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
from helpers.grading import grade_completions
from helpers.models import SMOL_ID
from helpers.replay import TOKENIZER, VALUES, take_stage

MODES = ("auto", "run", "replay")
BATCH_VARIABLE = "MATHSLM_BATCH"
PLAIN_SECONDS = 15.0
SEEDING = "seeding"  # an experiment that notebook 02 runs like a stage


def list_stages(recipe: Recipe) -> list[str]:
    """Every stage that the notebooks of the course make with a recipe."""
    return [*stages.list_stages(recipe), SEEDING]


def list_dependencies(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The stages that a stage goes on from; seeding: those of distill."""
    return stages.list_dependencies(
        recipe, "distill" if stage == SEEDING else stage
    )


def run_stage(run: RunDir, stage: str, **options: Any) -> dict[str, Any]:
    """Run a stage or the seeding experiment; a finished one is loaded."""
    if stage == SEEDING:
        from helpers.experiments.seeding import run_seeding

        return run_seeding(run.recipe, run, **options)
    return stages.run_stage(run.recipe, run, stage, **options)


@dataclass
class Session:
    """The recipe and the run folder of a notebook."""

    recipe: Recipe
    run_dir: RunDir
    mode: str
    started: float = field(default_factory=time.perf_counter)

    def run(self, stage: str, **options: Any) -> dict[str, Any]:
        """The metrics of a stage: computed here, or loaded when finished.

        Args:
            stage: its full name, e.g. ``"sft"``, ``"merge/sft"``,
                ``"dpo-published"``, ``"evaluate/base"``, ``"seeding"``.
            options: of the stage's function, e.g. ``smoke_steps=3``.

        Raises:
            LabError: no such stage, or what the stage itself refuses.
        """
        if self.mode == "replay":
            print(f"{stage}: {self.note(stage)}")
            return self._read_recorded(stage)
        from helpers.models import free_memory

        free_memory()  # the stage loads a model of its own
        result = run_stage(self.run_dir, stage, **options)
        return result if options else self.run_dir.metrics()[stage]

    def recorded(
        self, name: str, rows: type[BaseModel] | None = None
    ) -> Callable[[Callable], Callable]:
        """Decorator: a function whose value the run folder keeps.

        A replay gives the value that the recorded run kept and calls
        nothing. Both go through JSON, so that a cell sees the same types.

        Args:
            name: unique in the course; ``{x}`` in it stands for the
                function's argument x.
            rows: the value is a list of these records; completions come
                back graded.

        Raises:
            LabError: (the function) replay, and the record has no such value.
        """

        def decorate(compute: Callable) -> Callable:
            @functools.wraps(compute)
            def call(*args: Any, **options: Any) -> Any:
                given = inspect.signature(compute).bind(*args, **options)
                given.apply_defaults()
                key = name.format_map(given.arguments)
                if self.mode == "replay":
                    value = self._read_recorded(key)
                else:
                    value = self._keep(key, compute(*args, **options))
                return _read_rows(value, rows) if rows else value

            return call

        return decorate

    def _keep(self, name: str, value: Any) -> Any:
        """Write a value into ``values.json``; returns it as JSON has it."""
        text = json.dumps(value, default=_dump_row)
        path = self.run_dir.file(VALUES)
        known = read_json(path) if path.is_file() else {}
        write_json(path, known | {name: json.loads(text)})
        return json.loads(text)

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

    def note(self, *names: str) -> str | None:
        """Where and when stages were recorded; None: they were made here.

        Without names: the same for all that a replay shows.
        """
        for stage in names:
            path = stage_file(self.run_dir.path, stage)
            if path.is_file() and (note := read_json(path).get("recorded")):
                return f"recorded on {note['date']}, {note['machine']}"
        if self.mode != "replay":
            return None
        manifest = record_folder(self.recipe.name) / "manifest.json"
        return describe_record(read_json(manifest))

    def load(self, tag: str = "base") -> tuple[Any, Any]:
        """(model, tokenizer) of "base", "sft", "dpo" or "dpo-<variant>".

        A replay has no model: what stands for it says so when it is used.
        """
        from helpers.models import load_model, model_path

        if self.mode == "replay":
            return NoModel(), self.tokenizer()
        path = model_path(self.recipe, self.run_dir, tag)
        return load_model(self.recipe, path)

    def make_engine(self, model: Any, tokenizer: Any) -> Any:
        """The sampler around a loaded model, see ``helpers.sampling``."""
        from helpers.sampling import make_engine

        if isinstance(model, NoModel):
            return model
        return make_engine(self.recipe, model, tokenizer)

    def tokenizer(self) -> Any:
        """The recipe's tokenizer; in a replay the recorded one."""
        from helpers.models import find_base, load_tokenizer

        if self.mode == "replay":
            return load_tokenizer(record_folder(self.recipe.name) / TOKENIZER)
        model = self.recipe.model
        return load_tokenizer(find_base(self.recipe), model.revision)

    def show_cost(self, *names: str) -> None:
        """Print this notebook's time and memory, and its stages' times."""
        import psutil

        took = time.perf_counter() - self.started
        print(f"wall time of this notebook: {took:.0f} s")
        seconds = {p["phase"]: p["seconds"] for p in self.run_dir.ledger()}
        for stage in names:
            if stage in seconds:
                print(f"{stage}, when it was made: {seconds[stage]:.0f} s")
        held = psutil.Process().memory_info().rss / 2**30
        print(f"memory of this kernel: {held:.1f} GiB")


class NoModel:
    """Stands where a replay has no model."""

    def __getattr__(self, name: str) -> Any:
        raise LabError(
            "A replay has no model.",
            why="it shows what a recorded run computed",
            fix='set RUN_MODE = "auto" and a new RUN_DIR to compute yourself',
        )


def _dump_row(row: BaseModel) -> dict[str, Any]:
    return row.model_dump(mode="json")


def _read_rows(value: list[dict], rows: type[BaseModel]) -> list[Any]:
    """Records of plain values; a recorded verdict is not taken over."""
    found = [rows.model_validate(row) for row in value]
    return list(grade_completions(found)) if rows is Completion else found


# --- start -------------------------------------------------------------------


def start(
    tier: str = "pocket",
    run_dir: str | Path = "runs/pocket",
    mode: str = "auto",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    *,
    notebook: str = "",
    needs: Sequence[str] = (),
    makes: Sequence[str] = (),
) -> Session:
    """Open a session and provide what the notebook needs.

    Args:
        mode: ``auto`` computes ``makes`` here and takes missing ``needs``
            from the record; ``run`` computes everything; ``replay`` takes
            both from the record.
        notebook: its name; what its last run took is printed.
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
    show_calmly(recipe)
    session = Session(recipe, RunDir.open(path, recipe), mode)
    print(f"tier {recipe.name}: {recipe.description}")
    print(f"run folder {run_dir}, mode {mode}, seed {recipe.seed}")
    timings = session.run_dir.file("notebooks", "timings.json")
    if timings.is_file() and notebook in read_json(timings):
        print(f"last run of {notebook}: {read_json(timings)[notebook]:.0f} s")
    if recipe.solutions:
        print(
            "SFT trains on worked solutions here, and the SFT model, not "
            "the base, is what is sampled for pairs."
        )
    before = [s for stage in makes for s in list_dependencies(recipe, stage)]
    wanted = list(dict.fromkeys([*needs, *before]))
    if mode == "replay":
        _replay(session, [*wanted, *makes])
        return session
    for stage in wanted:
        if stage not in makes:
            _provide(session, stage, use_record=mode != "run")
    return session


def _replay(session: Session, names: Sequence[str]) -> None:
    """Take the stages from the record; no model is loaded or made.

    Merged models are not recorded: what they go on from is taken instead,
    and :meth:`Session.run` gives what was measured on them.
    """
    recipe, run = session.recipe, session.run_dir
    wanted: list[str] = []
    for stage in names:
        merge = stage.startswith("merge/")
        wanted += list_dependencies(recipe, stage) if merge else [stage]
    for stage in dict.fromkeys(wanted):
        record = stage_file(run.path, stage)
        if record.is_file() and not read_json(record).get("recorded"):
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


def _provide(session: Session, stage: str, use_record: bool) -> None:
    """Find a stage's output, else copy the record, else compute it.

    Raises:
        LabError: no such stage, or the folder's was made from other inputs.
    """
    earlier_stages = list_dependencies(session.recipe, stage)
    if stage_file(session.run_dir.path, stage).is_file():
        print(f"  {stage}: found in the run folder")
        # What it was made from is compared, so that must be there too.
        for earlier in earlier_stages:
            if not stage_file(session.run_dir.path, earlier).is_file():
                _provide(session, earlier, use_record)
        run_stage(session.run_dir, stage)
        return
    if use_record and take_stage(session.run_dir, stage):
        print(f"  {stage}: taken from the recorded run")
        return
    for earlier in earlier_stages:
        _provide(session, earlier, use_record)
    print(f"  {stage}: not there yet, computed now")
    run_stage(session.run_dir, stage)


# --- bars and tables ---------------------------------------------------------


def show_calmly(recipe: Recipe) -> None:
    """Tables show whole texts; bars stay readable where nobody watches.

    A local model loads in a moment, so the libraries' own bars are switched
    off. In a batch run (``BATCH_VARIABLE`` is set) a bar becomes one plain
    line every quarter of a minute and one at the end: a saved notebook
    would show a widget as "0%" for ever.
    """
    import pandas as pd

    pd.set_option("display.max_colwidth", None)
    pd.set_option("display.html.use_mathjax", False)  # LaTeX as written
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

        def __init__(self, *args: Any, **options: Any):
            self.shown: float | None = time.monotonic()
            super().__init__(*args, **{**options, "file": io.StringIO()})

        def display(self, *args: Any, **options: Any) -> bool:
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
