"""Several stored samples a problem: what they give together.

``avg@k`` is what a user gets from one of k samples, ``pass@k`` what a perfect
chooser could get, a majority vote and best-of-n what two real choosers get.
All of them are counted on graded completions: nothing is sampled here. An
interval is over problems; samples of one problem are alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.base import Completion, LabError
from helpers.grading import is_equivalent
from helpers.results import stats
from helpers.results.outcomes import count_outcomes

Samples = Mapping[str, Sequence[Completion]]
BEST_OF = "most probable sample by the model's own mean log-probability"


@dataclass(frozen=True)
class Vote:
    """What most samples of a problem answer.

    ``answer`` is None when no sample has one; ``votes`` of ``of`` samples
    agree. ``correct`` is the grader's verdict on that answer.
    """

    answer: str | None
    votes: int
    of: int
    correct: bool


def require_samples(groups: Samples, k: int | None = None) -> int:
    """Check that every problem has the same samples, and at least k.

    Returns:
        how many samples every problem has.

    Raises:
        LabError: no problem, a problem without samples, a sample that is
            missing or there twice, or k larger than the samples kept.
    """
    if not groups:
        raise LabError(
            "There is no problem with samples: the benchmark is empty.",
            fix="look at its problem file and at n in the recipe",
        )
    for name, rows in groups.items():
        numbers = [row.sample for row in rows]
        if numbers != list(range(len(rows))):
            raise LabError(
                f"Problem {name} has the samples {numbers}, not 0, 1, 2, ….",
                why="a sample is missing or stands there twice",
                fix="run the same mathslm evaluate again: it draws only "
                "what is missing",
            )
    kept = min(map(len, groups.values()))
    if not kept:
        name = next(name for name, rows in groups.items() if not rows)
        raise LabError(
            f"Problem {name} has no sample.",
            why="a score over a part would depend on which part it is",
            fix="run the same mathslm evaluate again",
        )
    if k is not None:
        stats.require_k(k, kept)
    return kept


def average_at_k(groups: Samples, k: int) -> stats.Interval:
    """avg@k: the share of right ones among the first k samples.

    The mean over problems, with a bootstrap interval over problems.

    Raises:
        LabError: fewer than two problems, or fewer than k samples of one.
    """
    require_samples(groups, k)
    return stats.bootstrap_mean(
        [count_right(rows[:k]) / k for rows in groups.values()]
    )


def pass_at_k(groups: Samples, k: int) -> stats.Interval:
    """pass@k: the chance that one of k samples is right, without bias.

    Estimated from all samples kept, see :func:`helpers.results.stats.pass_at_k`;
    the mean over problems, with a bootstrap interval over problems.

    Raises:
        LabError: fewer than two problems, or fewer than k samples of one.
    """
    require_samples(groups, k)
    return stats.bootstrap_mean(
        [
            stats.pass_at_k(len(rows), count_right(rows), k)
            for rows in groups.values()
        ]
    )


def pass_curve(groups: Samples) -> dict[int, stats.Interval]:
    """pass@k for every k that the samples allow."""
    kept = require_samples(groups)
    return {k: pass_at_k(groups, k) for k in range(1, kept + 1)}


def count_right(rows: Sequence[Completion]) -> int:
    """How many rows are right."""
    return sum(row.correct for row in rows)


def vote(rows: Sequence[Completion]) -> Vote:
    """The answer that most samples agree on.

    Answers that the grader calls equivalent count as one, whatever their
    spelling. A sample without an answer has no vote; of equally many votes
    the answer that came first wins.
    """
    if not rows:
        raise LabError("There is no sample to vote.")
    parties: list[tuple[Completion, int]] = []
    known: dict[str, int] = {}  # spelling: its party
    for row in rows:
        if row.extracted is None:
            continue
        place = known.get(row.extracted)
        if place is None:
            place = _find_party(row.extracted, parties)
            known[row.extracted] = place
        if place == len(parties):
            parties.append((row, 0))
        first, votes = parties[place]
        parties[place] = (first, votes + 1)
    if not parties:
        return Vote(None, 0, len(rows), False)
    # max keeps the first of equals
    first, votes = max(parties, key=lambda party: party[1])
    return Vote(first.extracted, votes, len(rows), first.correct)


def _find_party(answer: str, parties: list[tuple[Completion, int]]) -> int:
    for place, (first, _) in enumerate(parties):
        if is_equivalent(answer, first.extracted or ""):
            return place
    return len(parties)


def majority_at_k(groups: Samples, k: int) -> dict[str, bool]:
    """By problem id, whether the vote of the first k samples is right."""
    require_samples(groups, k)
    return {name: vote(rows[:k]).correct for name, rows in groups.items()}


def best_of_n(groups: Samples, n: int) -> dict[str, bool]:
    """By problem id, whether the most confident of n samples is right.

    Chosen by the model's own mean log-probability a token, which knows
    nothing of the gold answer: usual texts are probable, right or not. A
    sample that was not drawn is never chosen over one that was.

    Raises:
        LabError: fewer than n samples, or a log-probability that is nan.
    """
    require_samples(groups, n)
    return {name: _pick(rows[:n]).correct for name, rows in groups.items()}


def _pick(rows: Sequence[Completion]) -> Completion:
    for row in rows:
        if not math.isfinite(row.mean_logprob):
            raise LabError(
                f"Sample {row.sample} of {row.problem_id} has the mean "
                f"log-probability {row.mean_logprob}.",
                why="the best of several cannot be chosen by it",
                fix="use a majority vote, or sample with an engine that "
                "gives log-probabilities",
            )
    drawn = [row for row in rows if row.tokens] or rows
    return max(drawn, key=lambda row: row.mean_logprob)


def summarize_samples(groups: Samples, n: int) -> dict[str, Any]:
    """The measures of n samples a problem, for ``metrics.json``.

    ``avg`` and every ``pass`` are ``[value, low, high]`` as fractions;
    ``majority`` and ``best_of`` count problems (``best_of`` is None where
    log-probabilities are missing); the four outcomes count samples.
    """
    require_samples(groups, n)
    kept = {name: rows[:n] for name, rows in groups.items()}
    rows = [row for part in kept.values() for row in part]
    counts = count_outcomes(rows)
    scored = all(math.isfinite(row.mean_logprob) for row in rows)
    average = average_at_k(kept, n)
    return {
        "problems": len(kept),
        "samples": n,
        "avg": [average.value, average.low, average.high],
        "pass": {
            str(k): [found.value, found.low, found.high]
            for k, found in pass_curve(kept).items()
        },
        "majority": sum(majority_at_k(kept, n).values()),
        "best_of": sum(best_of_n(kept, n).values()) if scored else None,
        **counts,
        "mean_tokens": statistics.fmean(row.tokens for row in rows),
    }
