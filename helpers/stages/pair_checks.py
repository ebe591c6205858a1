"""Preference pairs, looked at with the tokenizer before DPO trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helpers.base import DpoConfig, PairRow, Recipe
from helpers.stages.guards import (
    PairCheck,
    check_cut_pairs,
    check_length_ratio,
    check_pairs,
)


def select_pairs(
    recipe: Recipe,
    config: DpoConfig,
    tokenizer: Any,
    pairs: Sequence[PairRow],
) -> PairCheck:
    """Check the prompts' template; sort out pairs that cannot be used.

    Prints a warning where the long pairs are missing, or where length alone
    tells the two sides apart.

    Raises:
        LabError: a prompt of another template, two prompts for one problem,
            or no pair that can be used.
    """
    from helpers.stages.trainer import check_rendered

    check_rendered(
        tokenizer, (p.prompt for p in pairs), recipe.data.prompt_template
    )
    sides = measure_pairs(tokenizer, pairs)
    lengths = [max(both) + 1 for both in zip(*sides, strict=True)]
    check = check_pairs(pairs, lengths, config.max_length)
    found = [check_cut_pairs(check, config.max_length)]
    kept = [[side[i] for i in check.kept] for side in sides]
    prompts = count_tokens(tokenizer, [pairs[i].prompt for i in check.kept])
    answers = [
        [a - p for a, p in zip(side, prompts, strict=True)] for side in kept
    ]
    found.append(check_length_ratio(*answers))
    for warning in filter(None, found):
        print(f"Warning: {warning}")
    return check


def count_tokens(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each text, without special ones added."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [len(one) for one in ids]


def measure_pairs(
    tokenizer: Any, pairs: Sequence[PairRow]
) -> tuple[list[int], list[int]]:
    """Tokens of prompt + chosen and of prompt + rejected, per pair."""
    return (
        count_tokens(tokenizer, [p.prompt + p.chosen for p in pairs]),
        count_tokens(tokenizer, [p.prompt + p.rejected for p in pairs]),
    )
