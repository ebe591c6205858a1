"""Run the numbered notebooks in order, each in a fresh kernel.

``run_course("pocket", "runs/pocket")`` executes notebooks 00 to 07 through
papermill. Executed copies and ``timings.json`` land in ``<run>/notebooks``.
Resuming is the stages' business: a finished one is loaded, so running the
course again is cheap. The kernel is always this very Python, whatever
kernels a user has installed.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from helpers.base import (
    REPO_ROOT,
    LabError,
    Recipe,
    RunDir,
    did_you_mean,
    is_file_name,
    load_recipe,
    name_folder,
    read_json,
    write_json,
)
from helpers.course_progress import CellProgress
from helpers.session import BATCH_VARIABLE

NOTEBOOK_DIR = REPO_ROOT / "notebooks"
START_TIMEOUT = 300  # seconds; a busy classroom machine starts slowly
OWN_PARAMETERS = {"TIER": "--tier", "RUN_DIR": "--run-dir"}


class NotebookError(LabError):
    """A notebook stopped; the command line ends with 1, not 2."""

    exit_code = 1


def run_course(
    tier: str,
    run_dir: str | Path,
    *,
    first: str = "00",
    last: str = "07",
    parameters: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    folder: Path = NOTEBOOK_DIR,
) -> Path:
    """Execute the notebooks numbered ``first`` to ``last``.

    Args:
        tier: recipe name or path, the notebooks' ``TIER``.
        run_dir: run folder, the notebooks' ``RUN_DIR``.
        first, last: two-digit numbers, both included.
        parameters: further notebook parameters, e.g. ``{"SEED": 7}``.
        overrides: ``("sft.epochs=1", …)``, the notebooks' ``OVERRIDES``;
            those in ``parameters`` are added.
        console: where progress goes (default: standard output).
        folder: where the notebooks are.

    Returns:
        The path of ``report.html``, written from what the run folder
        holds at the end.

    Raises:
        LabError: unknown number, parameter or tier, foreign run folder;
            before anything runs.
        NotebookError: a cell failed or a kernel died.
    """
    console = console or Console(highlight=False)
    notebooks = find_notebooks(first, last, folder)
    given = dict(parameters or {})
    known = {path: read_known_parameters(path) for path in notebooks}
    check_parameters(given, known.values())
    overrides = [*overrides, *read_overrides(given.pop("OVERRIDES", []))]
    seed = [f"seed={given['SEED']}"] if "SEED" in given else []
    run = RunDir.open(run_dir, load_recipe(tier, [*overrides, *seed]))
    given |= {
        # A kernel starts in the clone's root, not where this was called.
        "TIER": name_folder(tier) if is_file_name(tier) else tier,
        "RUN_DIR": name_folder(run.path),
        "OVERRIDES": overrides,
    }
    for path in notebooks:
        chosen = choose_parameters(given, known[path])
        target = run.file("notebooks", path.name)
        seconds = run_notebook(path, target, chosen, console)
        save_timing(run, path.stem, seconds)
    return write_run_report(run)


def write_run_report(run: RunDir, *, markdown: bool = False) -> Path:
    """The report of a run; its tokenizer is loaded only where it is needed."""
    from helpers.results import write_report

    def load() -> Any:
        from helpers.models import find_base, load_tokenizer

        model = run.recipe.model
        return load_tokenizer(find_base(run.recipe), model.revision)

    return write_report(run, load, markdown=markdown)


def choose_quick(recipe: Recipe, overrides: Sequence[str] | None) -> list[str]:
    """The recipe's own short form as overrides, then those that are given.

    Prints what is smaller than in the full course.

    Raises:
        LabError: the recipe has no short form.
    """
    if not recipe.quick:
        raise LabError(
            f"Tier '{recipe.name}' has no quick form.",
            why="its recipe has no section 'quick'",
            fix="leave out --quick, or shorten it with --set, e.g. "
            "--set data.n_problems=100",
        )
    short = [f"{k}={json.dumps(v)}" for k, v in recipe.quick.items()]
    print("Quick: smaller than the full course, so wider intervals.")
    for text in short:
        print(f"  {text}")
    return [*short, *(overrides or ())]


def find_notebooks(first: str, last: str, folder: Path) -> list[Path]:
    """The notebooks ``NN_*.ipynb`` from ``first`` to ``last``, in order."""
    found = {p.name[:2]: p for p in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise LabError(
            f"There are no notebooks in {folder}.",
            why="they are not part of the installed package",
            fix="run from a clone installed with: pip install -e .",
        )
    for number in (first, last):
        if number.zfill(2) not in found:
            raise LabError(
                f"There is no notebook numbered '{number}'.",
                fix="choose from: "
                + ", ".join(p.stem for p in found.values()),
            )
    first, last = first.zfill(2), last.zfill(2)
    if first > last:
        raise LabError(
            f"--from {first} comes after --to {last}.",
            fix="swap the two numbers",
        )
    return [p for number, p in found.items() if first <= number <= last]


def read_parameters(pairs: Iterable[str]) -> dict[str, Any]:
    """``["SEED=7"]`` as ``{"SEED": 7}``; values are read as YAML."""
    out = {}
    for text in pairs:
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign or not name.isidentifier():
            raise LabError(
                f"Cannot read the parameter '{text}'.",
                why="a parameter is NAME=VALUE",
                fix="for example -p RUN_MODE=replay",
            )
        try:
            out[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            out[name] = value
    return out


def read_overrides(value: Any) -> list[str]:
    """The parameter OVERRIDES, which must be a list of ``key=value``."""
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return value
    raise LabError(
        f"OVERRIDES is {value!r}, not a list of texts.",
        fix="use --set sft.epochs=1 instead, once per value",
    )


def read_known_parameters(path: Path) -> dict[str, Any]:
    """Names and details of a notebook's ``parameters`` cell."""
    with quiet_papermill() as papermill:
        known = papermill.inspect_notebook(path)
    if not known:
        raise LabError(
            f"{path} has no cell tagged 'parameters'.",
            fix="tag its parameter cell, see CONTRIBUTING.md",
        )
    return known


def check_parameters(
    given: Mapping[str, Any], known: Iterable[Mapping[str, Any]]
) -> None:
    """LabError for a parameter that no chosen notebook has.

    papermill itself only warns and then runs with the default.
    """
    names = sorted({name for one in known for name in one})
    for name in given:
        if name in OWN_PARAMETERS:
            raise LabError(
                f"{name} is not set with -p.",
                fix=f"use the option {OWN_PARAMETERS[name]}",
            )
        if name not in names:
            raise LabError(
                f"No notebook has a parameter '{name}'."
                f"{did_you_mean(name, names)}",
                fix="choose from: " + ", ".join(names),
            )


def choose_parameters(
    given: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Those that this notebook has and that differ from its defaults.

    So a default run has no injected cell and looks like the notebook.
    """
    chosen = {}
    for name in given.keys() & known.keys():
        try:
            default = ast.literal_eval(known[name]["default"])
        except (ValueError, SyntaxError):
            chosen[name] = given[name]
            continue
        if default != given[name]:
            chosen[name] = given[name]
    return chosen


def run_notebook(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    console: Console,
) -> float:
    """Execute one notebook into ``target``; returns its wall seconds.

    Raises:
        NotebookError: a cell failed or the kernel died; ``target`` holds
            the notebook up to there.
    """
    import nbformat
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(source, as_version=4)
    log = target.with_suffix(".log")
    try:
        with CellProgress(source.stem, notebook, console) as progress:
            done = execute(source, target, parameters, progress.advance, log)
    except PapermillExecutionError as error:
        raise explain_failure(source, target, error) from None
    except DeadKernelError:
        raise NotebookError(
            f"{source.stem}: its Python process died.\n{read_tail(log)}",
            why="mostly the machine ran out of memory",
            fix="close other programs or choose a smaller tier (mathslm "
            f"doctor lists them), then start again; see {target}",
        ) from None
    log.unlink()
    return float(done.metadata.papermill["duration"])


def execute(
    source: Path, target: Path, parameters: Mapping, hook: Any, log: Path
) -> Any:
    """papermill's ``execute_notebook`` with this Python as the kernel."""
    with quiet_papermill() as papermill, open(log, "wb") as stderr:
        return papermill.execute_notebook(
            source,
            target,
            parameters=dict(parameters),
            kernel_name="python3",
            kernel_manager_class=make_kernel_class(stderr),
            on_cell_complete=hook,
            progress_bar=False,
            start_timeout=START_TIMEOUT,
            cwd=REPO_ROOT,
        )


def make_kernel_class(stderr: Any) -> type:
    """A kernel manager that starts ``sys.executable`` and nothing else.

    jupyter_client would prefer a kernel called python3 in the user's or the
    system's folders, which may be another environment. Without folders to
    search it falls back to ipykernel's own, which runs this Python. What
    the process itself writes to its error stream goes to ``stderr``.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from traitlets import default

    class ThisPython(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _own_kernel_only(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[], parent=self)

        async def start_kernel(self, **options: Any) -> None:
            env = {**options.pop("env", os.environ), BATCH_VARIABLE: "1"}
            await super().start_kernel(stderr=stderr, env=env, **options)

    return ThisPython


def read_tail(log: Path, lines: int = 3) -> str:
    """The last lines that a process wrote before it died."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.strip().splitlines()[-lines:])


def explain_failure(source: Path, target: Path, error: Any) -> NotebookError:
    """Message of a failed cell; a LabError in it is repeated as it is."""
    where = f"{source.stem} stopped in cell [{error.exec_count}]"
    said = error.evalue if error.ename == "LabError" else ""
    said = said or f"{error.ename}: {error.evalue}"
    said = re.sub(r"\x1b\[[0-9;]*m", "", said)
    return NotebookError(
        f"{where}:\n{said}\nExecuted so far: {target}",
        fix="mend the cause and run the same command again; what is "
        "finished is kept",
    )


def save_timing(run: RunDir, name: str, seconds: float) -> None:
    """Add one notebook's wall time to ``notebooks/timings.json``."""
    path = run.file("notebooks", "timings.json")
    timings = read_json(path) if path.is_file() else {}
    timings[name] = round(seconds, 2)
    write_json(path, dict(sorted(timings.items())))


class quiet_papermill:
    """papermill without its log lines and its import cost at start-up."""

    def __enter__(self) -> Any:
        import logging

        import papermill

        self.logger = logging.getLogger("papermill")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)
        return papermill

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)
