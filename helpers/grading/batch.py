"""Grade what needs no computer algebra in several processes.

A small batch stays in the caller's process. When it turns out to be long,
what is left is dealt out in chunks to persistent workers that run the same
function; a chunk that kills its worker is done again pair by pair.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from helpers.grading.core import Verdict
from helpers.grading.pool import DIED, get_pool
from helpers.grading.server import serve

MODULE = "helpers.grading.batch"
IN_PROCESS_S = 0.3
MIN_GAIN_S = 0.7
LOOK_EVERY = 32
CHUNK_PAIRS = 64
CHUNK_CHARACTERS = 200_000
PAIR_DEADLINE_S = 5.0

Draft = tuple[str | None, Verdict, str]
Pair = tuple[Any, Any]


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def draft_batch(
    pairs: Sequence[Pair],
    draft: Callable[[Any, Any], Draft],
    workers: int | None,
) -> list[Draft]:
    """Return ``draft(response, gold)`` for every pair, in order.

    Args:
        pairs: (response, gold); anything, also what is no string.
        draft: must be ``helpers.grading.draft``, which the workers run.
        workers: most processes; 1 keeps everything in this one, None uses
            the cores when that saves :data:`MIN_GAIN_S`.
    """
    if workers is None:
        workers = count_cores()
    drafts: list[Draft] = []
    start = time.perf_counter()
    for response, gold in pairs:
        if workers > 1 and drafts and len(drafts) % LOOK_EVERY == 0:
            spent = time.perf_counter() - start
            left = spent / len(drafts) * (len(pairs) - len(drafts))
            if spent > IN_PROCESS_S and left * (1 - 1 / workers) > MIN_GAIN_S:
                break
        drafts.append(draft(response, gold))
    return drafts + _spread(pairs[len(drafts) :], draft, workers)


def _spread(
    pairs: Sequence[Pair], draft: Callable[[Any, Any], Draft], workers: int
) -> list[Draft]:
    """Deal pairs out to workers; odd input is cheap and stays here."""
    drafts: list[Draft | None] = [None] * len(pairs)
    texts = []
    for place, pair in enumerate(pairs):
        if all(isinstance(part, str) for part in pair):
            texts.append(place)
        else:
            drafts[place] = draft(*pair)
    for chunk, result in _ask(list(_chunks(texts, pairs)), pairs, workers):
        if isinstance(result, list):
            for place, row in zip(chunk, result, strict=True):
                drafts[place] = _unpack(row)
    lost = [[place] for place in texts if drafts[place] is None]
    for chunk, result in _ask(lost, pairs, workers):
        why = "the grading worker died" if result == DIED else str(result)
        drafts[chunk[0]] = (
            _unpack(result[0])
            if isinstance(result, list)
            else (None, Verdict(False, why), "")
        )
    return [d for d in drafts if d is not None]


def _chunks(
    places: Sequence[int], pairs: Sequence[Pair]
) -> Iterator[list[int]]:
    chunk: list[int] = []
    size = 0
    for place in places:
        chunk.append(place)
        size += sum(map(len, pairs[place]))
        if len(chunk) >= CHUNK_PAIRS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _ask(
    chunks: list[list[int]], pairs: Sequence[Pair], workers: int
) -> Iterator[tuple[list[int], Any]]:
    tasks = [[pairs[place] for place in chunk] for chunk in chunks]
    results = get_pool(MODULE).run(
        tasks, workers, lambda task: PAIR_DEADLINE_S * (1 + len(task))
    )
    yield from zip(chunks, results, strict=True)


def _unpack(row: list[Any]) -> Draft:
    extracted, (correct, reason, pair), how = row
    return extracted, Verdict(correct, reason, pair and tuple(pair)), how


def main() -> None:
    """Draft the chunks that the parent sends, until it ends."""
    from helpers.grading.grade import draft

    serve(lambda chunk: [draft(response, gold) for response, gold in chunk])
