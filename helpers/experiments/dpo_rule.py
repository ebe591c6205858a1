"""An early-stop rule for DPO, derived from measured runs and tested on others.

A run is a **no-op** when so few dev verdicts change that no outcome could be
significant: with five or fewer changed verdicts the smallest p that an exact
McNemar test can give is 2 × 0.5⁵ = 0.0625. The rule looks at the reward
margin early and projects it to the end of the run: divided by β it is in
nats, and it grows about as fast as the steps, so one threshold serves every
β and every length.

Rows are those of :mod:`helpers.experiments.dpo_sweep`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from helpers.base import LabError
from helpers.results import mcnemar_p

WINDOW = 5  # logged steps that are averaged, as the monitor does
LEVEL = 0.05
CANDIDATES = (5, 10, 15, 20, 30, 40)
WIDE = 2.0  # nearest runs on both sides of a threshold differ by this factor

Row = Mapping[str, Any]


@dataclass(frozen=True)
class StopRule:
    """Stop at ``step`` when the projected margin is below ``nats``."""

    step: int
    nats: float

    def stops(self, row: Row) -> bool:
        """Whether the rule would have ended this run."""
        return project_nats(row, self.step) < self.nats


@dataclass(frozen=True)
class RuleCheck:
    """What a rule did on runs: counts, and steps not trained."""

    runs: int
    right: int
    stopped: int
    stopped_wrongly: int
    missed: int
    steps: int
    steps_saved: int

    def summary(self) -> dict[str, int]:
        """The counts as a dictionary."""
        return asdict(self)


def largest_silent(level: float = LEVEL) -> int:
    """Most changed verdicts with which no exact McNemar p is below level."""
    count = 0
    while mcnemar_p(0, count + 1) >= level:
        count += 1
    return count


def is_noop(row: Row, model: str = "unmerged") -> bool:
    """Whether this run's evaluation could not have shown an effect.

    Args:
        model: "unmerged" or "merged_bf16".
    """
    return row[model]["won"] + row[model]["lost"] <= largest_silent()


def project_nats(row: Row, step: int) -> float:
    """The margin at the end of the run, in nats, as seen at ``step``.

    Mean |margin| / β over the last logged steps up to there, times planned
    steps over ``step``.

    Raises:
        LabError: the run logged nothing up to there.
    """
    seen = [margin for at, margin in row["margins"] if at <= step][-WINDOW:]
    if not seen:
        raise LabError(f"{row['name']} logged no margin up to step {step}.")
    nats = abs(math.fsum(seen) / len(seen)) / row["beta"]
    return nats * row["steps"] / step


def derive_rule(
    rows: Sequence[Row], candidates: Iterable[int] = CANDIDATES
) -> StopRule:
    """The earliest step at which one threshold tells the runs apart best.

    The threshold lies between two neighbouring runs, at their geometric
    mean; of several that are as often right the one with the widest gap (as
    a ratio) is taken. Of several steps the earliest whose gap is at least
    :data:`WIDE`, else the one with the widest.

    Raises:
        LabError: the rows are all no-ops, or none is.
    """
    if len({is_noop(row) for row in rows}) < 2:
        raise LabError(
            "No rule can be derived: the runs are all no-ops, or none is.",
            fix="sweep lower and higher learning rates",
        )
    found = [(step, *max(_split(rows, step))) for step in sorted(candidates)]
    most = max(right for _, right, _, _ in found)
    best = [entry for entry in found if entry[1] == most]
    wide = [entry for entry in best if entry[2] >= WIDE]
    step, _, _, nats = (wide or [max(best, key=lambda entry: entry[2])])[0]
    return StopRule(step, nats)


def _split(
    rows: Sequence[Row], step: int
) -> Iterable[tuple[int, float, float]]:
    """(runs judged right, ratio of the gap, threshold) of every split."""
    values = sorted({project_nats(row, step) for row in rows})
    for low, high in pairwise(values):
        nats = math.sqrt(max(low, 1e-12) * high)
        rule = StopRule(step, nats)
        right = sum(rule.stops(row) == is_noop(row) for row in rows)
        yield right, high / max(low, 1e-12), nats


def check_rule(rule: StopRule, rows: Sequence[Row]) -> RuleCheck:
    """How often the rule is right on runs, and what it saves."""
    stopped = [row for row in rows if rule.stops(row)]
    wrongly = sum(not is_noop(row) for row in stopped)
    missed = sum(is_noop(row) for row in rows if not rule.stops(row))
    return RuleCheck(
        runs=len(rows),
        right=len(rows) - wrongly - missed,
        stopped=len(stopped),
        stopped_wrongly=wrongly,
        missed=missed,
        steps=sum(row["steps"] for row in rows),
        steps_saved=sum(row["steps"] - rule.step for row in stopped),
    )
