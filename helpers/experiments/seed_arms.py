"""What a seed does to samples: three schemes, and what each costs.

- ``one seed``: every sample of every problem has the same seed. An engine
  that copies the seed of a request to its n children does this (vLLM before
  0.7.0; its pull request 11898 mended it).
- ``seed + number``: sample j of every problem has seed + j, as vLLM gives
  the children of a request today. Samples of a problem differ, but sample j
  of all problems reads one and the same stream of random numbers.
- ``own seeds``: a seed for each problem and sample; see ``derive_seed``.

Pure functions over graded samples; no files, no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from helpers.base import Completion
from helpers.results import stats
from helpers.sampling import SampleRequest
from helpers.stages import harvest_pairs

SCHEMES = ("one seed", "seed + number", "own seeds")
OPENING_WORDS = 2
Samples = Mapping[str, Sequence[Completion]]


def reseed(
    requests: Iterable[SampleRequest], scheme: str, seed: int
) -> Iterator[SampleRequest]:
    """The requests with the seeds of a scheme; own seeds are theirs.

    Raises:
        ValueError: no such scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"no seed scheme '{scheme}': {', '.join(SCHEMES)}")
    for request in requests:
        if scheme == "one seed":
            yield replace(request, seed=seed)
        elif scheme == "seed + number":
            yield replace(request, seed=seed + request.sample)
        else:
            yield request


@dataclass(frozen=True)
class ArmReport:
    """What one arm gave.

    ``distinct`` is the share of different texts among a problem's samples,
    mean over problems. ``mixed`` counts problems with right and wrong
    samples, ``pairs`` those that give a preference pair. ``alike`` is the
    chance that two problems' samples of the same number begin with the same
    words, ``unlike`` that of different numbers: where they differ, problems
    share random numbers.
    """

    problems: int
    distinct: stats.Interval
    mixed: stats.Proportion
    pairs: stats.Proportion
    right: int
    samples: int
    alike: float
    unlike: float

    def summary(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``."""
        return {
            "problems": self.problems,
            "samples": self.samples,
            "right": self.right,
            "distinct": [
                self.distinct.value,
                self.distinct.low,
                self.distinct.high,
            ],
            "mixed": self.mixed.k,
            "pairs": self.pairs.k,
            "alike": self.alike,
            "unlike": self.unlike,
        }


def measure_arm(samples: Samples, seed: int) -> ArmReport:
    """Measure one arm; ``seed`` is that of the bootstrap.

    Raises:
        ValueError: fewer than two problems.
    """
    groups = [rows for rows in samples.values() if rows]
    if len(groups) < 2:
        raise ValueError("an arm needs two problems or more")
    mixed = sum(is_mixed(rows) for rows in groups)
    kept = harvest_pairs(samples, pick="first", seed=seed, run_name="")
    alike, unlike = share_openings(groups)
    return ArmReport(
        problems=len(groups),
        distinct=stats.bootstrap_mean(
            [_distinct(rows) for rows in groups], seed
        ),
        mixed=stats.proportion(mixed, len(groups)),
        pairs=stats.proportion(len(kept.matched), len(groups)),
        right=sum(row.correct for rows in groups for row in rows),
        samples=sum(map(len, groups)),
        alike=alike,
        unlike=unlike,
    )


def is_mixed(rows: Sequence[Completion]) -> bool:
    """Right and wrong samples of one problem."""
    return len({row.correct for row in rows}) == 2


def _distinct(rows: Sequence[Completion]) -> float:
    return len({row.response for row in rows}) / len(rows)


def open_with(text: str) -> str:
    """The first words of a response: the part before the problem matters."""
    return " ".join(text.split()[:OPENING_WORDS])


def share_openings(
    groups: Sequence[Sequence[Completion]],
) -> tuple[float, float]:
    """Chance that samples of two problems begin alike.

    Returns:
        (for samples of the same number, for samples of different numbers);
        each over all pairs of different problems, as a fraction.
    """
    by_number: dict[int, Counter[str]] = {}
    total, own = Counter(), 0
    for rows in groups:
        words = Counter(open_with(row.response) for row in rows)
        own += sum(math.comb(k, 2) for k in words.values())
        total += words
        for row in rows:
            tally = by_number.setdefault(row.sample, Counter())
            tally[open_with(row.response)] += 1
    same = sum(_count_pairs(c) for c in by_number.values())
    same_all = sum(math.comb(c.total(), 2) for c in by_number.values())
    every = _count_pairs(total) - own
    every_all = math.comb(total.total(), 2) - sum(
        math.comb(len(rows), 2) for rows in groups
    )
    rest = every_all - same_all
    return same / same_all, (every - same) / rest if rest else float("nan")


def _count_pairs(tally: Counter[str]) -> int:
    return sum(math.comb(k, 2) for k in tally.values())


def compare_mixed(before: Samples, after: Samples) -> stats.Comparison:
    """Paired by problem: which became mixed, which stopped being so."""
    return stats.compare(
        {name: is_mixed(rows) for name, rows in before.items()},
        {name: is_mixed(rows) for name, rows in after.items()},
    )
