"""Keep notebooks/*.ipynb in step with their text in notebooks/source.

    python notebooks/pair.py check      say which pairs differ (exit 1)
    python notebooks/pair.py sync       text into .ipynb, outputs kept
    python notebooks/pair.py execute    sync, run on tier pocket, write .ipynb

Numbers choose notebooks: ``execute 03`` runs one, ``execute 01 05`` those
from 01 to 05. ``execute`` of all puts an earlier runs/pocket aside and starts
from an empty folder, so that every stage shows its bars and losses; with
numbers it goes on in runs/pocket and loads what is finished there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from helpers.base import REPO_ROOT, write_text
from helpers.course import run_course

FOLDER = Path(__file__).resolve().parent
TIER, RUN_DIR = "pocket", REPO_ROOT / "runs" / "pocket"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def list_sources(numbers: list[str]) -> list[Path]:
    """The py:percent files, all or those of the given numbers."""
    paths = sorted((FOLDER / "source").glob("[0-9][0-9]_*.py"))
    return [p for p in paths if not numbers or p.name[:2] in numbers]


def read_source(path: Path) -> Any:
    """A py:percent file as an unexecuted notebook for kernel python3."""
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{path.name[:2]}-{number:03d}"
    return notebook


def cells_of(notebook: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    """What must agree in a pair: kind, text and tags of each cell."""
    return [
        (c.cell_type, c.source.strip(), tuple(c.metadata.get("tags", ())))
        for c in notebook.cells
    ]


def is_in_step(path: Path) -> bool:
    """True when the .ipynb of this source exists and has its cells."""
    target = FOLDER / f"{path.stem}.ipynb"
    if not target.is_file():
        return False
    stored = nbformat.read(target, as_version=4)
    return cells_of(stored) == cells_of(read_source(path))


def sync(path: Path) -> None:
    """Write the text into the .ipynb; outputs of equal cells stay."""
    target = FOLDER / f"{path.stem}.ipynb"
    notebook = read_source(path)
    if target.is_file():
        old = nbformat.read(target, as_version=4)
        by_text = {c.source.strip(): c for c in old.cells}
        for cell in notebook.cells:
            kept = by_text.get(cell.source.strip())
            if cell.cell_type == "code" and kept is not None:
                cell.outputs = kept.get("outputs", [])
                cell.execution_count = kept.get("execution_count")
    save(notebook, target)


def execute(numbers: list[str]) -> None:
    """Run the course and keep its executed notebooks as the .ipynb here."""
    paths = list_sources([])
    for path in paths:
        sync(path)
    if not numbers:
        put_aside(RUN_DIR)
    chosen = numbers or [paths[0].name, paths[-1].name]
    first, last = chosen[0][:2], chosen[-1][:2]
    run_course(TIER, RUN_DIR, first=first, last=last)
    for path in paths:
        done = RUN_DIR / "notebooks" / f"{path.stem}.ipynb"
        if first <= path.name[:2] <= last:
            publish(done, FOLDER / done.name)


def put_aside(folder: Path) -> None:
    """Rename a run folder: what it has finished would only be loaded."""
    if not folder.exists():
        return
    number = 1
    while (to := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(to)
    print(f"{folder.name} is now {to.name}")


def publish(done: Path, target: Path) -> None:
    """Copy an executed notebook without what only this machine knows."""
    notebook = nbformat.read(done, as_version=4)
    for key in ("input_path", "output_path", "environment_variables"):
        notebook.metadata.papermill.pop(key, None)
    notebook.metadata["kernelspec"] = KERNEL
    save(notebook, target)


def save(notebook: Any, path: Path) -> None:
    """Validate and write in one step."""
    nbformat.validate(notebook)
    write_text(path, nbformat.writes(notebook) + "\n")


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code."""
    what, *numbers = arguments or ["help"]
    if what not in ("check", "sync", "execute"):
        print(__doc__)
        return 2
    paths = list_sources(numbers)
    if what == "check":
        bad = [p.name for p in paths if not is_in_step(p)]
        for name in bad:
            print(f"{name}: differs from its .ipynb; run pair.py sync")
        return 1 if bad else 0
    if what == "execute":
        execute(numbers)
    else:
        for path in paths:
            sync(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
