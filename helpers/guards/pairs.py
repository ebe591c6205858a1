"""Preference pairs that teach nothing, or the wrong thing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from helpers.errors import LabError

MAX_RATIO = 1.5  # of the median lengths, either way
MAX_CUT = 0.2  # of the pairs


@dataclass(frozen=True)
class PairCheck:
    """Which preference pairs can be used (indices), and why others cannot."""

    kept: tuple[int, ...]
    identical: int
    empty: int
    too_long: int

    def __str__(self) -> str:
        return (
            f"{len(self.kept)} pairs to train on; left out: "
            f"{self.identical} with chosen = rejected, {self.empty} empty, "
            f"{self.too_long} over max_length"
        )


def check_pairs(
    pairs: Sequence[Any], lengths: Sequence[int], max_length: int
) -> PairCheck:
    """Sort out pairs that would teach nothing or the wrong thing.

    Story: with copies among its samples (see check_distinct_fraction) a
    harvest can pair an answer with itself: its margin is 0 whatever is
    learned. The published 7B run counted none such; it counted. It also
    harvested the same problems twice: two prompts for one problem make
    "chosen" a matter of the prompt.

    Args:
        pairs: objects with prompt, chosen, rejected and problem_id.
        lengths: tokens of prompt + the longer of the two answers, per pair.
        max_length: longest sequence the trainer keeps whole.

    Raises:
        LabError: one problem appears under two prompts, or no pair is left.
    """
    _check_one_prompt_per_problem(pairs)
    kept, identical, empty, too_long = [], 0, 0, 0
    for index, (pair, length) in enumerate(zip(pairs, lengths, strict=True)):
        if not pair.chosen.strip() or not pair.rejected.strip():
            empty += 1
        elif pair.chosen.strip() == pair.rejected.strip():
            identical += 1
        elif length > max_length:
            too_long += 1
        else:
            kept.append(index)
    check = PairCheck(tuple(kept), identical, empty, too_long)
    if not kept:
        raise LabError(
            f"No preference pair can be used: {check}.",
            fix="sample more problems or raise dpo.max_length",
        )
    return check


def _check_one_prompt_per_problem(pairs: Sequence[Any]) -> None:
    prompts: dict[str, str] = {}
    for pair in pairs:
        first = prompts.setdefault(pair.problem_id, pair.prompt)
        if first != pair.prompt:
            raise LabError(
                f"Problem {pair.problem_id} appears under two prompts.",
                why="chosen and rejected must answer the same text; pairs of "
                "two prompt templates are mixed in one file",
                fix="make the pairs again with one template",
            )


def check_cut_pairs(check: PairCheck, max_length: int) -> str | None:
    """Warn when the longest answers are missing from the pairs.

    Story: TRL cuts a pair at ``max_length``, 1,024 by default, and keeps the
    beginning: reasoning of a few thousand tokens then loses its answer, and
    both sides of the pair become the same unfinished text. Here such pairs
    are left out; where they are many, DPO learns from the easy problems.

    Returns:
        A warning, or None when at most a fifth of the pairs is too long.
    """
    total = len(check.kept) + check.identical + check.empty + check.too_long
    if check.too_long <= MAX_CUT * total:
        return None
    return (
        f"{check.too_long} of {total} pairs are over dpo.max_length="
        f"{max_length} tokens and are left out: the hard problems are the "
        "long ones. Raise dpo.max_length (mathslm plan says what fits)."
    )


def check_length_ratio(
    chosen: Sequence[int], rejected: Sequence[int]
) -> str | None:
    """Warn when length alone tells the two sides of the pairs apart.

    Story: DPO raises what the chosen answers have in common. Where the
    rejected ones ran into the cap, or gave up early, that is their length.
    The published 7B run looked at both lengths before it trained, and found
    them alike; it costs nothing to look.

    Args:
        chosen: tokens of the chosen answers.
        rejected: tokens of the rejected ones.

    Returns:
        A warning, or None when the medians are within a factor of 1.5.
    """
    ours = max(statistics.median(chosen), 1)
    theirs = max(statistics.median(rejected), 1)
    if max(ours, theirs) <= MAX_RATIO * min(ours, theirs):
        return None
    side = "longer" if ours > theirs else "shorter"
    return (
        f"Chosen answers are {side}: a median of {ours:.0f} tokens against "
        f"{theirs:.0f}. DPO may learn the length and nothing else: compare "
        "the lengths of the answers before and after, and sample with a cap "
        "that few answers reach."
    )
