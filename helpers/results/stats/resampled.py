"""Means over problems, and means over benchmarks, by resampling problems.

Samples of one problem are alike, so the *problem* is what is drawn again,
never the single sample. scipy does the resampling; the imports are inside
the functions, so that importing this module costs milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from helpers.base import LabError
from helpers.results.stats.paired import Comparison
from helpers.results.stats.scores import (
    ALPHA,
    LEVEL,
    NOISE,
    Difference,
    Proportion,
    format_p,
)

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 2000
MACRO_RESAMPLES = 5000
EXCHANGES = 9999
EXACT_SUM = 30_000  # places of the exact distribution, at most
BATCH = 500  # resamples in memory at a time
SEED = 0


@dataclass(frozen=True)
class Interval:
    """An estimate with a 95 % interval; all are fractions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{100 * self.value:.1f} % (95 % CI {100 * self.low:.1f}–"
            f"{100 * self.high:.1f})"
        )


@dataclass(frozen=True)
class MacroComparison:
    """The mean change over benchmarks, each of the same weight.

    ``difference`` is a fraction with its paired bootstrap interval;
    ``p_value`` is that of the exchange test: were the two models equally
    good, each flip could as well have gone the other way. Without one flip
    there is neither, and ``difference.no_interval`` says so. ``least_p`` is
    the smallest p that the test could give: 0 where it is exact.
    """

    benchmarks: int
    difference: Difference
    p_value: float
    least_p: float = 0.0

    @property
    def verdict(self) -> Literal["helps", "hurts", "undecided"]:
        """Decided only when interval and test both say so."""
        _, low, high, *_ = self.difference
        if not self.p_value < ALPHA or low <= 0 <= high:
            return "undecided"
        return "helps" if self.difference.diff > 0 else "hurts"

    def sentence(self, before: str = "before", after: str = "after") -> str:
        """The mean change in words, with its numbers."""
        told = f"mean over {self.benchmarks} benchmarks"
        if self.verdict == "undecided":
            head = f"{after} against {before}, {told}"
        else:
            head = f"{after} {self.verdict} against {before}, {told}"
        if self.difference.no_interval:
            return f"{head}: {self.difference}."
        told = format_p(self.p_value)
        if 0 < self.p_value <= self.least_p:
            told = told.replace("=", "≤")
        text = f"{head}: {self.difference}, {told}."
        return text if self.verdict != "undecided" else text + NOISE


def bootstrap_mean(values: Sequence[float], seed: int = SEED) -> Interval:
    """The mean over problems with its percentile bootstrap interval.

    Args:
        values: one value from 0 to 1 a problem, e.g. its share of right
            samples.
        seed: of the resampling.

    Where all problems have the value 0, or all 1, resampling would give an
    interval without width; Wilson's interval over the problems is given then.

    Raises:
        LabError: fewer than two problems, or a value that is not from 0 to 1.

    Source: ``scipy.stats.bootstrap``.
    """
    import numpy as np
    from scipy.stats import bootstrap

    data = np.asarray(values, dtype=float)
    _require_shares(data)
    mean = float(data.mean())
    if mean in (0.0, 1.0):
        score = Proportion(round(mean) * len(data), len(data))
        return Interval(mean, score.low, score.high)
    drawn = bootstrap(
        (data,),
        np.mean,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=LEVEL,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(drawn.low), float(drawn.high))


def _require_shares(data: np.ndarray) -> None:
    import numpy as np

    if data.ndim != 1 or len(data) < 2:
        raise LabError(
            f"A mean over {data.size} problem{'s' * (data.size != 1)} has no "
            "interval.",
            why="how far problems differ is not seen on fewer than two",
            fix="evaluate on a benchmark with more problems",
        )
    if not np.all((data >= 0) & (data <= 1)):  # nan too
        place = int(np.flatnonzero(~((data >= 0) & (data <= 1)))[0])
        raise LabError(
            f"Value {place} of {len(data)} is {data[place]}, not a share.",
            why="a mean over it would be a wrong number",
            fix="look at that problem's line",
        )


def macro_compare(
    comparisons: Sequence[Comparison], seed: int = SEED
) -> MacroComparison:
    """Mean change over benchmarks from *paired* comparisons.

    The interval is a paired bootstrap: within each benchmark problems are
    drawn again, with both models' results on each. The p is a permutation
    test that exchanges the two models' results problem by problem. It is
    exact, as McNemar's is on one benchmark; where the numbers of problems
    have no handy common multiple, it is from 9,999 random exchanges.

    Raises:
        LabError: no benchmark, or one with a single problem.

    Source: ``scipy.stats.bootstrap``; ``scipy.stats.binom`` and
    ``scipy.signal.convolve``, or ``scipy.stats.permutation_test``.
    """
    if not comparisons:
        raise LabError("There is no benchmark to average over.")
    for place, one in enumerate(comparisons, 1):
        if one.n < 2:
            raise LabError(
                f"Benchmark {place} of {len(comparisons)} has one problem.",
                why="a single problem would weigh as much as a whole set",
                fix="leave that benchmark out of the mean",
            )
    mean = sum(c.diff for c in comparisons) / len(comparisons)
    flips = sum(c.only_before + c.only_after for c in comparisons)
    if not flips or all(abs(c.diff) == 1 for c in comparisons):
        why = "every problem flipped the same way" if flips else "no flips"
        nothing = Difference(mean, math.nan, math.nan, "none", why)
        return MacroComparison(len(comparisons), nothing, math.nan)
    low, high = _bootstrap_macro(comparisons, seed)
    found = Difference(mean, low, high, "macro mean, paired bootstrap")
    weights = _weigh_flips(comparisons)
    flips = [c.only_before + c.only_after for c in comparisons]
    if sum(w * d for w, d in zip(weights, flips, strict=True)) <= EXACT_SUM:
        p_value, least = _exact_p(comparisons, weights), 0.0
    else:
        p_value = _exchange_p(comparisons, weights, seed)
        least = 2 / (EXCHANGES + 1)
    return MacroComparison(len(comparisons), found, p_value, least)


def _weigh_flips(comparisons: Sequence[Comparison]) -> list[int]:
    """What a flip of each benchmark moves the mean, in one whole unit.

    A flip weighs 1/n of its benchmark; whole numbers make ties exact.
    """
    whole = math.lcm(*(c.n for c in comparisons))
    return [whole // c.n for c in comparisons]


def _exact_p(
    comparisons: Sequence[Comparison], weights: Sequence[int]
) -> float:
    """Two-sided p from the exact distribution of all exchanges.

    On a benchmark with d flips the number won is binomial(d, 1/2); the
    benchmarks are independent, so their distributions are convolved.
    """
    import numpy as np
    from scipy.signal import convolve
    from scipy.stats import binom

    total = np.ones(1)
    for one, weight in zip(comparisons, weights, strict=True):
        flips = one.only_before + one.only_after
        chances = np.zeros(weight * flips + 1)
        chances[::weight] = binom.pmf(np.arange(flips + 1), flips, 0.5)
        total = convolve(total, chances, method="direct")
    # Place i stands for a net change of 2 i - (len - 1) units.
    net = 2 * np.arange(len(total)) - (len(total) - 1)
    seen = sum(
        weight * (one.only_after - one.only_before)
        for one, weight in zip(comparisons, weights, strict=True)
    )
    return float(min(1.0, total[np.abs(net) >= abs(seen)].sum()))


def _bootstrap_macro(
    comparisons: Sequence[Comparison], seed: int
) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import bootstrap

    changes = [
        np.repeat([1, -1, 0], [c.only_after, c.only_before, _count_same(c)])
        for c in comparisons
    ]

    def mean_change(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
        means = [part.mean(axis=axis) for part in parts]
        return sum(means) / len(means)

    drawn = bootstrap(
        changes,
        mean_change,
        method="percentile",
        n_resamples=MACRO_RESAMPLES,
        batch=BATCH,
        confidence_level=LEVEL,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(drawn.low), float(drawn.high)


def _count_same(one: Comparison) -> int:
    return one.both + one.neither


def _exchange_p(
    comparisons: Sequence[Comparison], weights: Sequence[int], seed: int
) -> float:
    """The same p from random exchanges; only flips matter."""
    import numpy as np
    from scipy.stats import permutation_test

    pairs = list(zip(comparisons, weights, strict=True))
    won = [w for c, w in pairs for _ in range(c.only_after)]
    lost = [w for c, w in pairs for _ in range(c.only_before)]
    won.append(0)  # scipy wants two observations
    after = np.array(won + [0] * len(lost), dtype=float)
    before = np.array([0] * len(won) + lost, dtype=float)

    def change(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return (x - y).sum(axis=axis)

    return float(
        permutation_test(
            (after, before),
            change,
            permutation_type="samples",
            n_resamples=EXCHANGES,
            batch=BATCH,
            rng=np.random.default_rng(seed),
        ).pvalue
    )
