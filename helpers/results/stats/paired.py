"""Two models on the same problems: the paired 2×2 table and what it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from helpers.base import LabError
from helpers.results.stats.scores import (
    ALPHA,
    NOISE,
    Difference,
    Proportion,
    format_p,
)

Marks = Sequence[bool] | Mapping[str, bool]


class PairedBound(NamedTuple):
    """What any paired result with a given net change could show at most.

    ``smallest_p``: smallest exact McNemar p that any paired table with this
    difference in totals can have.
    ``max_flips``: the most problems that can have flipped.
    ``significant_up_to``: p stays below 0.05 for up to that many flips;
    None when it never is.
    """

    smallest_p: float
    max_flips: int
    significant_up_to: int | None


@dataclass(frozen=True)
class Comparison:
    """Two models on the same ``n`` problems, as a paired 2×2 table.

    ``both`` and ``neither`` are the problems on which they agree,
    ``only_before`` what was lost, ``only_after`` what was won. ``diff``,
    ``low`` and ``high`` are fractions (after − before); the interval is
    Tango's score interval for paired proportions. ``p_value`` is McNemar's
    exact p. ``smallest_p`` is the smallest p that any paired table with this
    difference in totals can have.
    """

    n: int
    both: int
    only_before: int
    only_after: int
    neither: int
    diff: float
    low: float
    high: float
    p_value: float
    smallest_p: float

    @property
    def before(self) -> Proportion:
        return Proportion(self.both + self.only_before, self.n)

    @property
    def after(self) -> Proportion:
        return Proportion(self.both + self.only_after, self.n)

    @property
    def difference(self) -> Difference:
        """The change with its interval; prints in percentage points."""
        return Difference(self.diff, self.low, self.high, "Tango, paired")

    @property
    def verdict(self) -> Literal["helps", "hurts", "undecided"]:
        """Decided only when interval and exact test both say so."""
        if self.p_value >= ALPHA or self.low <= 0 <= self.high:
            return "undecided"
        return "helps" if self.diff > 0 else "hurts"

    def sentence(
        self, before: str = "before", after: str = "after", on: str = ""
    ) -> str:
        """The comparison in words, with all its numbers.

        Args:
            before, after: names of the two models.
            on: name of the benchmark, if any.
        """
        where = f" on {on}" if on else ""
        if self.verdict == "undecided":
            head = f"{after} against {before}{where}"
        else:
            head = f"{after} {self.verdict}{where} against {before}"
        text = (
            f"{head}: {self.difference}, exact McNemar "
            f"{format_p(self.p_value)}, won {self.only_after}, "
            f"lost {self.only_before} of {self.n}."
        )
        return text + self._caveat()

    def _caveat(self) -> str:
        if self.verdict != "undecided":
            return ""
        if not self.only_before + self.only_after:
            return " Not one problem changed between right and wrong."
        if not self.low <= 0 <= self.high:
            return (
                " The interval excludes zero but the exact test does not "
                "reject: undecided at this n."
            )
        text = NOISE
        if self.smallest_p >= ALPHA and self.diff:
            text += (
                " No paired table with this difference in totals could be: "
                f"the smallest possible p is {format_p(self.smallest_p)[4:]}."
            )
        return text


def compare(before: Marks, after: Marks) -> Comparison:
    """Compare two models on the same problems, paired by problem id.

    Args:
        before, after: right or wrong per problem: two mappings from problem
            id, or two sequences in the same order.

    Raises:
        LabError: the problem ids (or the lengths) differ, or no problem.
    """
    left, right = _align(before, after)
    pairs = list(zip(left, right, strict=True))
    both = sum(a and b for a, b in pairs)
    lost = sum(a and not b for a, b in pairs)
    won = sum(b and not a for a, b in pairs)
    return compare_counts(both, lost, won, len(pairs) - both - lost - won)


def compare_counts(
    both: int, only_before: int, only_after: int, neither: int
) -> Comparison:
    """The same from the four counts of the paired table."""
    n = both + only_before + only_after + neither
    low, high = tango_interval(only_before, only_after, n)
    net = only_after - only_before
    return Comparison(
        n=n,
        both=both,
        only_before=only_before,
        only_after=only_after,
        neither=neither,
        diff=net / n,
        low=low,
        high=high,
        p_value=mcnemar_p(only_before, only_after),
        smallest_p=mcnemar_p(0, abs(net)),
    )


def _align(before: Marks, after: Marks) -> tuple[list[bool], list[bool]]:
    """Both results as lists in the same order of problems."""
    keyed = isinstance(before, Mapping)
    if keyed != isinstance(after, Mapping):
        raise TypeError("give two mappings by problem id, or two sequences")
    if not keyed:
        if len(before) != len(after):
            raise LabError(
                f"{len(before)} results against {len(after)}.",
                why="a paired comparison needs the same problems",
                fix="give mappings from problem id, or the same length",
            )
        before, after = dict(enumerate(before)), dict(enumerate(after))
    if before.keys() != after.keys():
        raise LabError(
            "The two results are not about the same problems"
            + _name_ids("only before", before.keys() - after.keys())
            + _name_ids("only after", after.keys() - before.keys())
            + ".",
            why="a paired comparison needs the same problem ids",
            fix="evaluate both models on the same benchmark file",
        )
    if not before:
        raise LabError("There is no problem to compare.")
    return (
        [_read_mark(key, before[key]) for key in before],
        [_read_mark(key, after[key]) for key in before],
    )


def _read_mark(key: object, value: object) -> bool:
    """Right or wrong; bool(nan) would be right."""
    if value not in (0, 1):
        raise LabError(
            f"The result of problem {key} is {value!r}, not right or wrong.",
            why="anything else would be counted as right",
            fix="grade that response, or give True or False",
        )
    return bool(value)


def _name_ids(label: str, ids: set[str], limit: int = 5) -> str:
    if not ids:
        return ""
    shown = sorted(map(str, ids))
    more = f" … ({len(shown)} in all)" if len(shown) > limit else ""
    return f"; {label}: " + ", ".join(shown[:limit]) + more


def mcnemar_p(only_before: int, only_after: int) -> float:
    """Exact two-sided McNemar p from the two discordant counts.

    Source: ``statsmodels.stats.contingency_tables.mcnemar(exact=True)``, the
    binomial test that a flip is as likely to be won as lost.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    table = [[0, only_before], [only_after, 0]]
    return float(min(1.0, mcnemar(table, exact=True).pvalue))


def tango_interval(
    only_before: int, only_after: int, n: int
) -> tuple[float, float]:
    """95 % score interval for a difference of paired proportions.

    Source: T. Tango, "Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design", Statistics in
    Medicine 17 (1998) 891–908; neither statsmodels nor scipy has it. It
    inverts McNemar's asymptotic test, so it excludes zero exactly when that
    test (without continuity correction) rejects.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if n < 1:
        raise LabError("There is no problem to compare.")
    z = float(norm.ppf(1 - ALPHA / 2))
    score = _tango_score(only_before, only_after, n)
    edge = 1 - 1e-12

    def solve(target: float, limit: float) -> float:
        # The score falls from +inf to -inf; with every problem flipped the
        # same way it never reaches the target, and the limit is the answer.
        if (score(limit * edge) - target) * limit > 0:
            return limit
        return float(brentq(lambda d: score(d) - target, -edge, edge))

    return solve(z, -1.0), solve(-z, 1.0)


def _tango_score(
    only_before: int, only_after: int, n: int
) -> Callable[[float], float]:
    """Tango's statistic as a function of the assumed difference."""
    net = only_after - only_before

    def score(delta: float) -> float:
        # q: maximum likelihood share of `only_before` under this difference
        linear = (2 * n - net) * delta - only_before - only_after
        constant = -only_before * delta * (1 - delta)
        root = math.sqrt(max(linear**2 - 8 * n * constant, 0.0))
        q = (root - linear) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        distance = net - n * delta
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    return score


def paired_bound(k_before: int, k_after: int, n: int) -> PairedBound:
    """Bound the paired test when only the two totals are published.

    With a net change of d problems the best p is 2^(1−d): fewer than six net
    flips can never be significant at 0.05.
    """
    before, after = Proportion(k_before, n), Proportion(k_after, n)
    net = abs(after.k - before.k)
    spare = min(before.k, after.k, n - before.k, n - after.k)
    allowed = None
    for extra in range(spare + 1):
        if mcnemar_p(extra, net + extra) >= ALPHA:
            break
        allowed = net + 2 * extra
    return PairedBound(mcnemar_p(0, net), net + 2 * spare, allowed)
