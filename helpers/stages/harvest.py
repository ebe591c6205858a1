"""From graded samples to SFT rows, preference pairs and their measures.

Functions over graded samples; no torch. They take whole completions or, for
files of any size, :class:`helpers.sampling.sample_file.Sample`: texts are read only of
those that are kept.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from helpers.base import Completion, LabError, PairRow, Problem, SftRow
from helpers.problems import load_up_to
from helpers.results import stats
from helpers.sampling import Sample, derive_seed, load_completion, make_sample

if TYPE_CHECKING:
    from helpers.base import Recipe

Pick = Literal["first", "shortest", "random"]
Row = Sample | Completion
Samples = Mapping[str, Sequence[Row]]
QUANTILES = (5, 25, 50, 75, 95)
MORE = 4  # times data.n_problems may be read of a streamed set


@dataclass
class Harvest:
    """What is kept: the right samples, and the (right, wrong) pairs.

    ``repeated`` problems were left out because an earlier one has the same
    prompt. ``rows_cut`` and ``pairs_cut`` count what would be there if
    responses cut at the token cap were kept too.
    """

    run_name: str = ""
    kept: list[Sample] = field(default_factory=list)
    matched: list[tuple[Sample, Sample]] = field(default_factory=list)
    repeated: int = 0
    rows_cut: int = 0
    pairs_cut: int = 0

    def iter_sft(self) -> Iterator[SftRow]:
        """One SFT row for each right sample."""
        for right in self.kept:
            yield _make_sft_row(load_completion(right), self.run_name)

    def iter_pairs(self) -> Iterator[PairRow]:
        """One preference pair for each pair of samples."""
        for right, wrong in self.matched:
            yield _make_pair(
                load_completion(right), load_completion(wrong), self.run_name
            )

    @property
    def sft(self) -> list[SftRow]:
        """All SFT rows with their texts."""
        return list(self.iter_sft())

    @property
    def pairs(self) -> list[PairRow]:
        """All pairs with their texts."""
        return list(self.iter_pairs())


def harvest_pairs(
    samples: Samples, *, pick: Pick, seed: int, run_name: str
) -> Harvest:
    """One right response a problem, and a wrong one beside it if there is.

    Only responses that the model ended itself are kept: training puts the
    end token behind each, which would be untrue of one cut at the cap. What
    was not drawn (prompt too long) or is empty is never chosen or rejected.
    A prompt is used once, however many problems have it.

    Args:
        samples: ``{problem id: its graded samples in order}``.
        pick: which of several: the first, the shortest (in tokens, then the
            first), or a random one (seeded by problem).
        seed: of the random choice.
        run_name: provenance written into every row.
    """
    out, seen = Harvest(run_name), set()
    for rows in _iter_groups(samples):
        if rows[0].prompt_key in seen:
            out.repeated += 1
            continue
        seen.add(rows[0].prompt_key)
        ended = [
            row
            for row in rows
            if row.finish_reason == "stop" and not row.empty
        ]
        right = _choose([r for r in ended if r.correct], pick, seed)
        wrong = _choose([r for r in ended if not r.correct], pick, seed)
        marks = {row.correct for row in rows if _was_drawn(row)}
        out.rows_cut += True in marks and right is None
        out.pairs_cut += len(marks) == 2 and None in (right, wrong)
        if right is None:
            continue
        out.kept.append(right)
        if wrong is not None and wrong.response_key != right.response_key:
            out.matched.append((right, wrong))
    return out


def _iter_groups(samples: Samples) -> Iterator[list[Sample]]:
    """The samples of each problem that has any, in their small form."""
    for rows in samples.values():
        if rows:
            yield [
                row if isinstance(row, Sample) else make_sample(row)
                for row in rows
            ]


def _was_drawn(row: Sample) -> bool:
    return row.finish_reason != "too_long"


def _choose(rows: Sequence[Sample], pick: Pick, seed: int) -> Sample | None:
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
    total = distinct = 0
    for group in _iter_groups(samples):
        keys = [row.response_key for row in group if _was_drawn(row)]
        total += len(keys)
        distinct += len(set(keys))
    return distinct / total if total else 1.0


def measure_samples(samples: Samples, harvest: Harvest) -> dict[str, Any]:
    """All that distillation reports.

    ``pass@1`` is the share of problems whose first sample is right,
    ``pass@n`` of those with any right one, ``mixed`` of those with right and
    wrong ones: independent trials, with a Wilson interval. ``solve_rate``
    counts samples; those of one problem are alike, so it has no interval.
    ``too_long`` samples were not drawn and count as wrong; ``empty`` ones
    hold no text. ``sft_mean_logprob`` is per token over the kept rows, in
    nats.
    """
    groups = list(_iter_groups(samples))
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
        "truncated": _share(_count(rows, "length"), len(rows)),
        "no_answer": _share(sum(not row.answered for row in rows), len(rows)),
        "too_long": _share(_count(rows, "too_long"), len(rows)),
        "empty": _share(sum(row.empty for row in rows), len(rows)),
        "tokens": sum(lengths),
        "length": _quantiles(lengths),
        **measure_harvest(harvest),
    }


def load_training(recipe: Recipe) -> list[Problem]:
    """The problems of ``data.train``, of a streamed set as many as a run
    can come to need for ``harvest.min_pairs``."""
    most = recipe.data.n_problems * (MORE if recipe.harvest.min_pairs else 1)
    return load_up_to(recipe.data.train, most)


def require_kept(metrics: dict[str, Any]) -> None:
    """Refuse to go on from a harvest without a single training row.

    Args:
        metrics: what :func:`measure_samples` found.

    Raises:
        LabError: says what the samples came to, and what to try.
    """
    if metrics["sft_rows"]:
        return
    counts = [
        f"{metrics[key]['k']} {words}"
        for key, words in (
            ("solve_rate", "right"),
            ("truncated", "cut off at the cap"),
            ("no_answer", "without an answer"),
        )
    ]
    raise LabError(
        f"Of {metrics['samples']} samples none can be kept: there is nothing "
        "to train on.",
        why=", ".join(counts),
        fix="read a few samples first; then a larger sampling.max_new_tokens "
        "where they are cut, easier problems (data.train), a stronger model, "
        "or SFT on worked solutions before (solutions.mix)",
    )


def measure_harvest(harvest: Harvest) -> dict[str, Any]:
    """The part of the measures that is about the files of training rows."""
    return {
        "sft_rows": len(harvest.kept),
        "pairs": len(harvest.matched),
        "repeated_prompts": harvest.repeated,
        "sft_rows_cut": harvest.rows_cut,
        "pairs_cut": harvest.pairs_cut,
        "sft_mean_logprob": _mean_logprob(harvest.kept),
    }


def _count(rows: Sequence[Sample], reason: str) -> int:
    return sum(row.finish_reason == reason for row in rows)


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


def _mean_logprob(rows: Sequence[Sample]) -> float | None:
    tokens = sum(row.tokens for row in rows)
    total = sum(row.mean_logprob * row.tokens for row in rows)
    return total / tokens if tokens else None
