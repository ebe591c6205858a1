"""What two published scores can carry, and what picking the best adds.

A publication gives totals, not results per problem. So each claim is tested
unpaired, and bounded: the totals say how small the paired p could be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from helpers.base import LabError
from helpers.results.stats.paired import PairedBound, paired_bound
from helpers.results.stats.scores import (
    ALPHA,
    NOISE,
    Difference,
    Proportion,
    best_of,
    fisher_p,
    format_p,
    n_needed,
    newcombe_difference,
    z_test_p,
)

WORDS = {
    "real": "carried by the counts, even unpaired",
    "open": "needs the results per problem",
    "noise": "cannot be shown with this set",
}


@dataclass(frozen=True)
class Claim:
    """Two published scores on one benchmark, and what they can carry.

    ``change`` has Newcombe's interval; ``z_p`` and ``fisher_p`` are the
    unpaired tests; ``bound`` says what any paired result could have shown.
    """

    before: Proportion
    after: Proportion
    change: Difference
    z_p: float
    fisher_p: float
    bound: PairedBound

    @property
    def verdict(self) -> Literal["real", "open", "noise"]:
        """A key of WORDS.

        "real": the unpaired tests reject. "noise": no paired result with
        these totals could. "open": the results per problem would decide.
        """
        if max(self.z_p, self.fisher_p) < ALPHA:
            return "real"
        return "open" if self.bound.smallest_p < ALPHA else "noise"

    @property
    def flips(self) -> str:
        """Up to how many flips a paired result would be significant."""
        most = self.bound.significant_up_to
        if most is None:
            return "never"
        if most == self.bound.max_flips:
            return "any"
        return f"{most} of at most {self.bound.max_flips}"

    @property
    def needed(self) -> int | None:
        """Problems per model for 80 % power, unpaired; None for no change."""
        if self.before.p == self.after.p:
            return None
        return n_needed(self.before.p, self.after.p)

    def sentence(
        self, before: str = "before", after: str = "after", on: str = ""
    ) -> str:
        """The claim in words, with all its numbers."""
        where = f" on {on}" if on else ""
        text = (
            f"{after} against {before}{where}: {self.change}, unpaired "
            f"{format_p(self.z_p)}, smallest possible paired "
            f"{format_p(self.bound.smallest_p)}."
        )
        if self.verdict == "real":
            return f"{text} A real change of the scores."
        if self.verdict == "noise":
            return text + NOISE + _describe_needed(self)
        return (
            f"{text} Undecided: a paired test would reject with "
            f"{self.flips} flips, so the results per problem are needed."
        )


def _describe_needed(claim: Claim) -> str:
    if claim.needed is None:
        return ""
    return (
        f" To see such a change four times in five takes {claim.needed:,} "
        f"problems, here were {claim.after.n}."
    )


def judge_claim(before: Proportion, after: Proportion) -> Claim:
    """What two published scores on the same problems can carry.

    Raises:
        LabError: the scores are over different numbers of problems.
    """
    if before.n != after.n:
        raise LabError(
            f"One score is over {before.n} problems, the other over "
            f"{after.n}.",
            why="they cannot be of the same problems",
            fix="compare scores of one benchmark",
        )
    return Claim(
        before=before,
        after=after,
        change=newcombe_difference(before, after),
        z_p=z_test_p(before, after),
        fisher_p=fisher_p(before, after),
        bound=paired_bound(before.k, after.k, before.n),
    )


def say_selection(tried: int, best: Proportion, start: float) -> str:
    """In words, what picking the best of several checkpoints gives by luck.

    Args:
        tried: how many checkpoints were scored on the same test set.
        best: the score of the one that was picked.
        start: the share that the model had before training, a fraction.
    """
    reach, expected = best_of(tried, best.k, best.n, start)
    text = (
        f"The best of {tried} checkpoints has {best}. Had nothing been "
        f"learned ({100 * start:.1f} %), the best of {tried} would reach "
        f"{100 * expected:.0f} % on average, and {best.k}/{best.n} or more "
        f"with a chance of {100 * reach:.0f} %."
    )
    return text + NOISE if reach >= ALPHA else text
