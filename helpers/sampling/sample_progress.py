"""What a person sees while completions come in.

One bar with done/total and the time left, and beside it: tokens a second,
the share of mixed problems, and how often the first sample of a problem is
right, with its interval. It is a line in a terminal, a widget in a notebook
and plain lines in a batch run (:func:`helpers.session.calm_progress`).
"""

from __future__ import annotations

import time
from typing import Any

import tqdm.auto

from helpers.base import Completion
from helpers.results import proportion

WORDS_EVERY_S = 0.5
FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class SampleProgress:
    """Counts completions and shows them; a context manager.

    The interval counts the first sample of each problem only: those are
    independent, all samples of one problem are not. Memory does not grow:
    only problems that lack samples are remembered.

    Args:
        title: what stands before the bar.
        total: how many samples are asked for.
        n: samples of each problem.
    """

    def __init__(self, title: str, total: int, n: int = 1):
        self.title, self.total, self.n = title, total, n
        self.done = self.there = self.tokens = 0
        self.first_right = self.first = 0
        self.mixed = self.whole = 0
        self._open: dict[str, list[int]] = {}  # problem: [samples, right]
        self._bar: Any = None
        self._start = self._words_at = 0.0

    def __enter__(self) -> SampleProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self.describe(), refresh=False)
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Since the bar was shown; 0 when nothing was missing."""
        return time.perf_counter() - self._start if self._start else 0.0

    def skip(self, problem_id: str, sample: int, correct: bool) -> None:
        """A sample that was there already: it counts, its time does not."""
        self._count(problem_id, sample, correct)
        self.there += 1
        if self._bar is not None:
            self._bar.initial += 1
            self._bar.n += 1
            self._bar.last_print_n += 1

    def start(self) -> None:
        """Show the bar; the clock runs from here."""
        if self._bar is None:
            self._start = time.perf_counter()
            # Looked up now: a batch run puts a bar of its own there.
            self._bar = tqdm.auto.tqdm(
                total=self.total,
                initial=self.there,
                desc=self.title,
                bar_format=FORMAT,
                smoothing=0,  # samples come in bursts: mean rate
                dynamic_ncols=True,
            )

    def add(self, row: Completion) -> None:
        """A new completion."""
        self.start()
        self._count(row.problem_id, row.sample, row.correct)
        self.tokens += row.tokens
        now = time.perf_counter()
        if now - self._words_at > WORDS_EVERY_S or self.done == self.total:
            self._words_at = now
            self._bar.set_postfix_str(self.describe(), refresh=False)
        self._bar.update(1)

    def _count(self, problem_id: str, sample: int, correct: bool) -> None:
        self.done += 1
        if sample == 0:
            self.first += 1
            self.first_right += correct
        if self.n < 2:
            return
        counts = self._open.setdefault(problem_id, [0, 0])
        counts[0] += 1
        counts[1] += correct
        if counts[0] == self.n:
            self.whole += 1
            self.mixed += 0 < counts[1] < self.n
            del self._open[problem_id]

    def describe(self) -> str:
        """``3,210 tokens/s, mixed 28 % of 430, first 203/450 (…)``."""
        parts = []
        if self.tokens and (seconds := self.seconds):
            parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
        if self.whole:
            share = 100 * self.mixed / self.whole
            parts.append(f"mixed {share:.0f} % of {self.whole:,}")
        if self.first:
            word = "right" if self.n < 2 else "first try"
            score = proportion(self.first_right, self.first)
            parts.append(f"{word} {score}")
        return ", ".join(parts)
