"""A progress bar for a notebook that knows how long its cells took before.

papermill counts cells, but one cell may train for minutes and the next print
one line. The executed notebooks carry papermill's seconds per cell; the bar
here weighs cells by them and says what is left on this machine.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text


class CellProgress:
    """A bar over a notebook's cells; use it as a context manager.

    Args:
        name: what stands before the bar.
        notebook: an nbformat notebook, executed before or not.
        console: where it is drawn; without a terminal two lines are printed
            instead.
    """

    def __init__(self, name: str, notebook: Any, console: Console):
        self.name, self.console = name, console
        self.weights = [get_weight(cell) for cell in notebook.cells]
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("cell {task.fields[cell]}/{task.fields[cells]}"),
            TimeLeft(),
            refresh_per_second=2,
            console=console,
        )

    def __enter__(self) -> CellProgress:
        self.start = time.perf_counter()
        self.task = self.bar.add_task(
            self.name,
            total=sum(self.weights) or 1,
            cell=0,
            cells=len(self.weights),
        )
        self.bar.start()
        if not self.console.is_terminal:
            self.console.print(f"{self.name} …")
        return self

    def advance(self, cell: Any, cell_index: int) -> None:
        """papermill's hook after each code cell.

        An injected cell shifts the numbers by one: harmless for a bar.
        """
        done = min(cell_index + 1, len(self.weights))
        self.bar.update(
            self.task, completed=sum(self.weights[:done]), cell=done
        )

    def __exit__(self, kind: Any, *_: object) -> None:
        took = time.perf_counter() - self.start
        if kind is None:
            cells = len(self.weights)
            total = self.bar.tasks[0].total
            self.bar.update(self.task, completed=total, cell=cells)
        self.bar.stop()
        if kind is None:
            self.console.print(f"{self.name} done in {show_time(took)}")


class TimeLeft(ProgressColumn):
    """Elapsed time and the estimate of what is left."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        left = estimate_left(elapsed, task.completed, task.total or 1)
        text = f"{show_time(elapsed)}, about {show_time(left)} left"
        return Text(text)


def estimate_left(elapsed: float, done: float, total: float) -> float:
    """Seconds left when ``done`` of ``total`` expected seconds are over.

    Until a twentieth is done the recorded times are taken as they are; then
    they are scaled by this machine's pace, elapsed / done.
    """
    pace = elapsed / done if done > total / 20 else 1.0
    return max(total * pace - elapsed, 0.0)


def get_weight(cell: Any) -> float:
    """Recorded seconds of a cell (0 for text, 1 when never timed)."""
    if cell.cell_type != "code":
        return 0.0
    seconds = cell.metadata.get("papermill", {}).get("duration")
    return 1.0 if seconds is None else max(float(seconds), 0.01)


def show_time(seconds: float) -> str:
    """``75`` as ``0:01:15``."""
    return str(timedelta(seconds=round(seconds)))
