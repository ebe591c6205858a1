"""One score with its interval, two scores unpaired, and how many are needed.

Everything is computed by statsmodels or scipy; the imports are inside the
functions, so that importing this module costs milliseconds. Only the score
itself does without them, because a command that prints one should not wait a
second for an import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from helpers.base import LabError

LEVEL = 0.95
ALPHA = 1 - LEVEL
NOISE = " Not distinguishable from noise at this n."


@dataclass(frozen=True)
class Proportion:
    """``k`` right of ``n``, with its Wilson 95 % interval.

    ``p``, ``low`` and ``high`` are fractions. Source: Wilson, Journal of the
    American Statistical Association 22 (1927) 209–212; a test compares it
    with ``scipy.stats.binomtest``.
    """

    k: int
    n: int

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.k <= self.n:
            raise LabError(
                f"{self.k} right of {self.n} is not a score.",
                why="a score needs n of at least 1 and k from 0 to n",
                fix="check that the evaluation wrote any problem at all",
            )

    @property
    def p(self) -> float:
        return self.k / self.n

    @property
    def low(self) -> float:
        return self.interval[0]

    @property
    def high(self) -> float:
        return self.interval[1]

    @property
    def interval(self) -> tuple[float, float]:
        z = NormalDist().inv_cdf(1 - ALPHA / 2)
        spread = self.p * (1 - self.p) / self.n + (z / self.n) ** 2 / 4
        middle = self.p + z**2 / (2 * self.n)
        scale = 1 + z**2 / self.n
        low = (middle - z * math.sqrt(spread)) / scale
        high = (middle + z * math.sqrt(spread)) / scale
        # rounding leaves 1e-17 where the limit is exactly 0 or 1
        return min(max(low, 0.0), self.p), max(min(high, 1.0), self.p)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.k}/{self.n} ({100 * self.p:.1f} %, "
            f"95 % CI {100 * low:.1f}–{100 * high:.1f})"
        )


class Difference(NamedTuple):
    """A difference of two shares (after − before) as fractions.

    ``no_interval`` says why there is none; ``low`` and ``high`` are nan then.
    """

    diff: float
    low: float
    high: float
    method: str
    no_interval: str = ""

    def __str__(self) -> str:
        if self.no_interval:
            return (
                f"{format_points(self.diff)} points ({self.no_interval}: "
                "the interval cannot be estimated)"
            )
        return (
            f"{format_points(self.diff)} points (95 % CI "
            f"{format_points(self.low)} to {format_points(self.high)})"
        )


def proportion(k: int, n: int) -> Proportion:
    """``k`` right of ``n``; raises LabError when that is no score."""
    return Proportion(k, n)


def newcombe_difference(before: Proportion, after: Proportion) -> Difference:
    """Difference of two *unpaired* shares with its 95 % interval.

    Source: Newcombe, Statistics in Medicine 17 (1998) 873–890, method 10,
    through statsmodels' ``confint_proportions_2indep``.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep

    low, high = confint_proportions_2indep(
        after.k, after.n, before.k, before.n, method="newcomb", alpha=ALPHA
    )
    return Difference(
        after.p - before.p, float(low), float(high), "Newcombe, unpaired"
    )


def z_test_p(before: Proportion, after: Proportion) -> float:
    """Two-sided p of the unpaired pooled z-test (statsmodels)."""
    from statsmodels.stats.proportion import proportions_ztest

    if before.p == after.p:
        return 1.0
    counts, sizes = [after.k, before.k], [after.n, before.n]
    return float(proportions_ztest(counts, sizes)[1])


def fisher_p(before: Proportion, after: Proportion) -> float:
    """Two-sided p of Fisher's exact test on two unpaired shares (scipy)."""
    from scipy.stats import fisher_exact

    table = [[after.k, after.n - after.k], [before.k, before.n - before.k]]
    return float(fisher_exact(table).pvalue)


def n_needed(p_before: float, p_after: float, power: float = 0.8) -> int:
    """Problems per model to see this change *unpaired*, two-sided 5 %.

    Source: statsmodels' ``samplesize_proportions_2indep_onetail``.
    """
    from statsmodels.stats.proportion import (
        samplesize_proportions_2indep_onetail as samplesize,
    )

    _require_share(p_before, p_after)
    _refuse_no_change(p_after - p_before)
    needed = samplesize(p_after - p_before, p_before, power, alpha=ALPHA)
    return math.ceil(needed)


def n_needed_paired(diff: float, discordant: float, power: float = 0.8) -> int:
    """Problems to see a change of ``diff`` *paired*, two-sided 5 %.

    Args:
        diff: the change to be seen, as a fraction.
        discordant: the share of problems that flip either way (≥ |diff|).

    Source: Connor, Biometrics 43 (1987) 207–211, computed by statsmodels'
    ``normal_sample_size_one_tail``.
    """
    from statsmodels.stats.power import normal_sample_size_one_tail

    _require_share(abs(diff), discordant)
    _refuse_no_change(diff)
    if not abs(diff) <= discordant <= 1:
        raise ValueError("discordant must lie between |diff| and 1")
    needed = normal_sample_size_one_tail(
        abs(diff),
        power,
        ALPHA / 2,
        std_null=math.sqrt(discordant),
        std_alternative=math.sqrt(discordant - diff**2),
    )
    return math.ceil(float(needed))


def _require_share(*values: float) -> None:
    for value in values:
        if not 0 <= value <= 1:  # nan too
            raise LabError(
                f"{value} is not a share.",
                why="shares are fractions from 0 to 1, 0.054 and not 5.4",
            )


def _refuse_no_change(diff: float) -> None:
    if diff == 0:
        raise ValueError("no number of problems can show a change of zero")


def best_of(m: int, k: int, n: int, p: float) -> tuple[float, float]:
    """Luck of picking the best of ``m`` equally good checkpoints.

    Returns the chance that the best scores at least ``k`` of ``n`` when every
    one has the true share ``p``, and the expected best share.

    Raises:
        LabError: no checkpoint, or counts and shares that cannot be.
    """
    from scipy.stats import binom

    Proportion(k, n)  # refuses what is no score
    _require_share(p)
    if m < 1:
        raise LabError(f"{m} checkpoints: there is none to pick.")
    below = [float(binom.cdf(j - 1, n, p)) ** m for j in range(1, n + 1)]
    reach = 1 - float(binom.cdf(k - 1, n, p)) ** m
    return reach, sum(1 - b for b in below) / n


def holm(ps: Sequence[float]) -> list[float]:
    """Holm-adjusted p values, in the given order (statsmodels)."""
    from statsmodels.stats.multitest import multipletests

    if not len(ps):
        return []
    _require_share(*ps)
    return [float(p) for p in multipletests(ps, method="holm")[1]]


def estimate_pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of ``k`` samples of a problem is right.

    Unbiased, from ``n`` samples of which ``c`` are right: one minus the
    chance that ``k`` of them, drawn without putting back, are all wrong.
    ``k`` = 1 is the share of right samples.

    Raises:
        LabError: counts that cannot be, or k larger than the samples kept.

    Source: Chen et al., "Evaluating Large Language Models Trained on Code",
    arXiv 2107.03374, equation 1, as scipy's hypergeometric distribution.
    """
    from scipy.stats import hypergeom

    require_k(k, n)
    if not 0 <= c <= n:
        raise LabError(
            f"{c} right of {n} samples cannot be.",
            why="pass@k needs 0 to n right samples",
        )
    return float(1 - hypergeom.pmf(0, n, c, k))


def require_k(k: int, n: int) -> None:
    """Refuse a k that the n samples kept of a problem cannot show.

    Raises:
        LabError: k below 1, no whole number, or larger than n.
    """
    if k != int(k) or k < 1:
        raise LabError(
            f"k = {k} is not a number of samples.",
            fix="choose a whole number of at least 1",
        )
    if k > n:
        raise LabError(
            f"k = {k}, but only {n} samples of each problem are kept.",
            why="what more samples would bring cannot be known from fewer",
            fix=f"choose k of at most {n}, or draw more: mathslm evaluate "
            f"--set evaluate.n={k} --set evaluate.temperature=1",
        )


def format_points(fraction: float) -> str:
    """A fraction as signed percentage points: ``0.054`` → ``+5.4``."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def format_p(p_value: float) -> str:
    """``p = 0.031``; very small ones as ``p < 0.0001``, nan as no p."""
    if math.isnan(p_value):
        return "no p value"
    if p_value < 1e-4:
        return "p < 0.0001"
    return f"p = {p_value:.2g}"
