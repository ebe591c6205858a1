"""From graded samples to SFT rows, preference pairs and their measures.

Pure functions over records; no files, no torch.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from helpers import stats
from helpers.engines.base import derive_seed
from helpers.records import Completion, PairRow, SftRow

Pick = Literal["first", "shortest", "random"]
Samples = Mapping[str, Sequence[Completion]]
QUANTILES = (5, 25, 50, 75, 95)


@dataclass
class Harvest:
    """What is kept; ``kept`` are the completions behind the SFT rows.

    ``repeated`` problems were left out because an earlier one has the same
    prompt. ``rows_cut`` and ``pairs_cut`` count what would be there if
    responses cut at the token cap were kept too.
    """

    sft: list[SftRow] = field(default_factory=list)
    pairs: list[PairRow] = field(default_factory=list)
    kept: list[Completion] = field(default_factory=list)
    repeated: int = 0
    rows_cut: int = 0
    pairs_cut: int = 0


def harvest_pairs(
    samples: Samples, *, pick: Pick, seed: int, run_name: str
) -> Harvest:
    """One right response a problem, and a wrong one beside it if there is.

    Only responses that the model ended itself are kept: training puts the
    end token behind each, which would be untrue of one cut at the cap. A
    prompt is used once, however many problems have it.

    Args:
        samples: ``{problem id: its graded samples in order}``.
        pick: which of several: the first, the shortest (in tokens, then the
            first), or a random one (seeded by problem).
        seed: of the random choice.
        run_name: provenance written into every row.
    """
    out, seen = Harvest(), set()
    for rows in samples.values():
        if not rows:
            continue
        if rows[0].prompt in seen:
            out.repeated += 1
            continue
        seen.add(rows[0].prompt)
        ended = [row for row in rows if row.finish_reason == "stop"]
        right = _choose([r for r in ended if r.correct], pick, seed)
        wrong = _choose([r for r in ended if not r.correct], pick, seed)
        marks = {row.correct for row in rows}
        out.rows_cut += True in marks and right is None
        out.pairs_cut += len(marks) == 2 and None in (right, wrong)
        if right is None:
            continue
        out.kept.append(right)
        out.sft.append(_make_sft_row(right, run_name))
        if wrong is not None and wrong.response != right.response:
            out.pairs.append(_make_pair(right, wrong, run_name))
    return out


def _choose(
    rows: Sequence[Completion], pick: Pick, seed: int
) -> Completion | None:
    if not rows:
        return None
    if pick == "shortest":
        return min(rows, key=lambda row: (row.tokens, row.sample))
    if pick == "random":
        draw = random.Random(derive_seed(seed, rows[0].problem_id, -1))
        return draw.choice(list(rows))
    return rows[0]


def _make_sft_row(row: Completion, run_name: str) -> SftRow:
    return SftRow(
        prompt=row.prompt,
        completion=row.response,
        problem_id=row.problem_id,
        sample=row.sample,
        run=run_name,
    )


def _make_pair(right: Completion, wrong: Completion, run_name: str) -> PairRow:
    return PairRow(
        prompt=right.prompt,
        chosen=right.response,
        rejected=wrong.response,
        problem_id=right.problem_id,
        run=run_name,
        chosen_sample=right.sample,
        rejected_sample=wrong.sample,
    )


def distinct_fraction(samples: Samples) -> float:
    """Distinct responses / responses, counted within each problem."""
    total = sum(len(rows) for rows in samples.values())
    distinct = sum(
        len({row.response for row in rows}) for rows in samples.values()
    )
    return distinct / total if total else 1.0


def measure_samples(samples: Samples, harvest: Harvest) -> dict[str, Any]:
    """All that distillation reports.

    ``pass@1`` is the share of problems whose first sample is right,
    ``pass@n`` of those with any right one, ``mixed`` of those with right and
    wrong ones: independent trials, with a Wilson interval. ``solve_rate``
    counts samples; those of one problem are alike, so it has no interval.
    ``sft_mean_logprob`` is per token over the kept rows, in nats.
    """
    groups = [rows for rows in samples.values() if rows]
    rows = [row for group in groups for row in group]
    most = max((len(group) for group in groups), default=0)
    lengths = [row.tokens for row in rows]
    right = [sum(row.correct for row in group) for group in groups]
    sizes = [len(group) for group in groups]
    return {
        "problems": len(groups),
        "samples": len(rows),
        "solve_rate": _share(sum(right), len(rows)),
        "pass@1": _score([group[0].correct for group in groups]),
        f"pass@{most}" if most > 1 else "pass@n": _score(
            [k > 0 for k in right]
        ),
        "mixed": _score(
            [0 < k < n for k, n in zip(right, sizes, strict=True)]
        ),
        "distinct_fraction": distinct_fraction(samples),
        "truncated": _share(_count_cut(rows), len(rows)),
        "no_answer": _share(
            sum(row.extracted is None for row in rows), len(rows)
        ),
        "tokens": sum(lengths),
        "length": _quantiles(lengths),
        "sft_rows": len(harvest.sft),
        "pairs": len(harvest.pairs),
        "repeated_prompts": harvest.repeated,
        "sft_rows_cut": harvest.rows_cut,
        "pairs_cut": harvest.pairs_cut,
        "sft_mean_logprob": _mean_logprob(harvest.kept),
    }


def _count_cut(rows: Sequence[Completion]) -> int:
    return sum(row.finish_reason == "length" for row in rows)


def _share(k: int, n: int) -> dict[str, Any]:
    return {"k": k, "n": n, "p": k / n if n else None}


def _score(marks: Sequence[bool]) -> dict[str, Any]:
    score = stats.proportion(sum(marks), len(marks))
    return {"k": score.k, "n": score.n, "text": str(score)}


def _quantiles(lengths: Sequence[int]) -> dict[str, float]:
    """``{"p5": …, "p95": …, "mean": …}`` in tokens."""
    if len(lengths) < 2:
        return {}
    cuts = statistics.quantiles(lengths, n=100, method="inclusive")
    out = {f"p{q}": cuts[q - 1] for q in QUANTILES}
    return out | {"mean": statistics.fmean(lengths)}


def _mean_logprob(rows: Sequence[Completion]) -> float | None:
    tokens = sum(row.tokens for row in rows)
    total = sum(row.mean_logprob * row.tokens for row in rows)
    return total / tokens if tokens else None
