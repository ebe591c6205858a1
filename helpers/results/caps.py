"""Any token cap from one evaluation: cut what is stored, grade it again.

A greedy response under a smaller cap is the beginning of the one under a
larger cap, and so is a sampled one with the same seed. So a cap below the one
that was sampled with needs no model: a response is cut at ``cap`` tokens and
graded again by the one grader. No torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from helpers.base import (
    Completion,
    LabError,
    RunDir,
    hash_file,
    read_json,
    write_json,
)
from helpers.grading import GRADER_VERSION
from helpers.models import decode_response
from helpers.results import stats
from helpers.results.outcomes import OUTCOMES, classify_outcome, count_outcomes
from helpers.results.sampled import Samples
from helpers.results.scores import load_results, result_name
from helpers.results.verdicts import find_golds, regrade_rows

STEPS = 8  # caps of a curve, evenly spaced up to the one sampled with


@dataclass(frozen=True)
class CapPoint:
    """One benchmark under one cap; the four outcomes add up to ``n``.

    ``inexact`` responses were cut by tokens that are not surely those that
    were sampled: their text, tokenized again, has another length.
    """

    cap: int
    n: int
    right: int
    finished_wrong: int
    truncated_wrong: int
    no_answer: int
    mean_tokens: float
    inexact: int

    @property
    def score(self) -> stats.Proportion:
        """The accuracy with its interval."""
        return stats.proportion(self.right, self.n)


@dataclass(frozen=True)
class CutSplit:
    """How much of a paired change could be a matter of the cap.

    Of the ``lost`` problems ``lost_cut`` were cut at the cap in the later
    model. ``change`` is the change as it is; ``at_most`` what it would be
    had every cut response of the later model been right.
    """

    change: stats.Comparison
    at_most: stats.Comparison
    lost_cut: int
    mean_before: float
    mean_after: float

    def sentence(self, before: str, after: str, on: str = "") -> str:
        """In words: whether cutting can explain a loss."""
        where = f" on {on}" if on else ""
        lengths = (
            f"mean length {self.mean_before:.0f} → {self.mean_after:.0f} "
            "tokens"
        )
        lost = self.change.only_before
        head = (
            f"{after} against {before}{where}: {lengths}; of {lost} lost "
            f"problems {self.lost_cut} were cut at the cap."
        )
        if self.change.diff >= 0:
            return f"{head} There is no drop to explain."
        return (
            f"{head}{self._doubt()} Had every cut response been right, the "
            f"change would be {self.at_most.difference}: {self._conclude()}"
        )

    def _doubt(self) -> str:
        """A drop that a paired test does not see may be none at all."""
        if self.change.verdict != "undecided":
            return ""
        found = self.change
        # the exact test may doubt what the interval does not
        inside = found.low <= 0 <= found.high
        word = "within noise" if inside else "undecided"
        return (
            f" The change ({found.difference}, exact McNemar "
            f"{stats.format_p(found.p_value)}) is {word} at n = {found.n}: "
            "there may be no drop to explain."
        )

    def _conclude(self) -> str:
        """What cutting can explain; of an undecided drop only an if."""
        start = "if it is a drop, " if self._doubt() else ""
        left = self.at_most
        none_cut = left.diff == self.change.diff
        if left.diff >= 0:
            rest = ""
        elif none_cut or left.verdict != "undecided":
            return f"{start}cutting alone cannot explain the drop."
        else:
            rest = "what would be left is within noise, so "
        return (
            f"{start}{rest}cutting may explain the drop, and a larger cap "
            "would tell."
        )


def cut_row(
    row: Completion, cap: int, tokenizer: Any
) -> tuple[Completion, bool]:
    """A response as it would stand under a smaller cap, not yet graded.

    Cut by ``token_ids`` where the row has them, else by tokenizing its text
    again. The mean log-probability of a part is not known: it is nan.

    Returns:
        the row, and whether the tokens are surely those sampled. A row
        within the cap comes back as it is.
    """
    if row.tokens <= cap or row.finish_reason == "too_long":
        return row, True
    ids = (row.model_extra or {}).get("token_ids")
    if ids is not None:
        text, exact = decode_response(tokenizer, ids[:cap]), True
    else:
        text, exact = _cut_text(row, cap, tokenizer)
    changes = {
        "response": text,
        "tokens": cap,
        "finish_reason": "length",
        "mean_logprob": float("nan"),
    }
    return row.model_copy(update=changes), exact


def _cut_text(row: Completion, cap: int, tokenizer: Any) -> tuple[str, bool]:
    """The text of the first ``cap`` tokens, and whether they must be them."""
    found = tokenizer(
        row.response, add_special_tokens=False, return_offsets_mapping=True
    )
    ends = [end for _, end in found["offset_mapping"]]
    # The end token is counted, but is not in the text.
    sampled = row.tokens - (row.finish_reason == "stop")
    text = row.response[: ends[cap - 1]] if cap <= len(ends) else row.response
    return text, len(ends) == sampled


def cut_rows(
    rows: Sequence[Completion], cap: int, tokenizer: Any, golds: Any = None
) -> tuple[list[Completion], int]:
    """All responses under a smaller cap, graded by the installed grader.

    What lost nothing but its end token, or nothing at all, keeps its verdict;
    one of another version of the grader is given again.

    Args:
        golds: gives the reference answer of a row; None for its ``gold``.

    Returns:
        the rows in the same order, and how many cuts are inexact.

    Raises:
        LabError: a cap below 1, or larger than the one sampled with.
    """
    _require_cap(rows, cap)
    done = [cut_row(row, cap, tokenizer) for row in rows]
    out = [new for new, _ in done]
    again = [
        i
        for i, (old, new) in enumerate(zip(rows, out, strict=True))
        if new.response != old.response or old.grader != GRADER_VERSION
    ]
    graded = regrade_rows([out[i] for i in again], golds or _own_gold)
    for place, row in zip(again, graded, strict=True):
        out[place] = row
    return out, sum(not exact for _, exact in done)


def _require_cap(rows: Sequence[Completion], cap: int) -> None:
    if not rows:
        raise LabError("There is no response to cut: the benchmark is empty.")
    if cap != int(cap) or cap < 1:
        raise LabError(
            f"A cap of {cap} tokens cuts nothing that could be graded.",
            fix="choose a whole number of at least 1",
        )
    reached = [row.tokens for row in rows if row.finish_reason == "length"]
    if reached and cap > max(reached):
        raise LabError(
            f"The responses were cut at {max(reached)} tokens when they were "
            f"sampled; a cap of {cap} is above that.",
            why="what the model would have written next is not stored",
            fix="evaluate with a larger evaluate.max_new_tokens in another "
            "--run-dir; every smaller cap then comes from it",
        )


def _require_single(rows: Sequence[Completion]) -> None:
    if len({row.problem_id for row in rows}) < len(rows):
        raise LabError(
            "There are several responses of one problem.",
            why="samples of a problem are alike, so an interval over all "
            "responses would be too narrow",
            fix="use cut_groups, then helpers.results.sampled.average_at_k",
        )


def _own_gold(row: Completion) -> str:
    gold = (row.model_extra or {}).get("gold")
    if gold is None:
        raise LabError(f"'{row.problem_id}' carries no 'gold' answer.")
    return str(gold)


def measure_cap(
    rows: Sequence[Completion], cap: int, tokenizer: Any, golds: Any = None
) -> CapPoint:
    """Accuracy and the kinds of wrong under one cap, one row a problem.

    Raises:
        LabError: several rows of a problem, or no cap; see :func:`cut_rows`.
    """
    _require_single(rows)
    cut, inexact = cut_rows(rows, cap, tokenizer, golds)
    return CapPoint(
        cap=cap,
        n=len(cut),
        mean_tokens=statistics.fmean(row.tokens for row in cut),
        inexact=inexact,
        **count_outcomes(cut),
    )


def cut_groups(
    groups: Samples, cap: int, tokenizer: Any, golds: Any = None
) -> dict[str, list[Completion]]:
    """Several samples a problem under a smaller cap.

    For :mod:`helpers.results.sampled`; best-of-n is refused there, since the
    log-probability of a part of a response is not known.
    """
    flat = [row for rows in groups.values() for row in rows]
    cut = iter(cut_rows(flat, cap, tokenizer, golds)[0])
    return {name: [next(cut) for _ in rows] for name, rows in groups.items()}


def choose_caps(cap: int) -> list[int]:
    """Evenly spaced caps, the last one is ``cap``."""
    return sorted({max(1, cap * i // STEPS) for i in range(1, STEPS + 1)})


def measure_caps(
    run: RunDir,
    tag: str,
    benchmark: str,
    tokenizer: Any,
    caps: Sequence[int] | None = None,
) -> list[CapPoint]:
    """The curve of one model on one benchmark; kept beside its results.

    It is computed again when the results, the grader or the caps are other
    ones than those of the file ``<benchmark>.caps.json``.

    Args:
        tokenizer: the model's, or a function without arguments that loads
            it, called only when there is something to compute.
        caps: None for :func:`choose_caps`.

    Raises:
        LabError: no such results, or a cap above the one sampled with.
    """
    name = result_name(tag, benchmark)
    rows = load_results(run, tag, benchmark)
    chosen = list(caps or choose_caps(run.recipe.evaluate.max_new_tokens))
    path = run.file(name).with_suffix(".caps.json")
    made_from = {"results": hash_file(run.file(name)), "caps": chosen}
    made_from["grader"] = GRADER_VERSION
    stored = read_json(path) if path.is_file() else {}
    if stored.get("made_from") == made_from:
        return [CapPoint(**point) for point in stored["points"]]
    if not hasattr(tokenizer, "decode"):
        tokenizer = tokenizer()
    golds = find_golds(run, name)
    points = [measure_cap(rows, cap, tokenizer, golds) for cap in chosen]
    write_json(
        path, {"made_from": made_from, "points": [asdict(p) for p in points]}
    )
    return points


def split_change(
    before: Sequence[Completion], after: Sequence[Completion]
) -> CutSplit:
    """Whether a change between two models could be a matter of the cap.

    Raises:
        LabError: the two are not about the same problems, or there is none.
    """
    old = {row.problem_id: row for row in before}
    new = {row.problem_id: row for row in after}
    marks = {key: row.correct for key, row in old.items()}
    change = stats.compare(marks, {k: r.correct for k, r in new.items()})
    outcomes = {key: classify_outcome(row) for key, row in new.items()}
    whole = {k: o in ("right", "truncated_wrong") for k, o in outcomes.items()}
    lost = [k for k in old if marks[k] and not new[k].correct]
    return CutSplit(
        change=change,
        at_most=stats.compare(marks, whole),
        lost_cut=sum(outcomes[k] == "truncated_wrong" for k in lost),
        mean_before=statistics.fmean(row.tokens for row in before),
        mean_after=statistics.fmean(row.tokens for row in after),
    )


def tabulate_caps(
    curves: Mapping[str, Sequence[CapPoint]],
) -> list[dict[str, Any]]:
    """One row a model and cap, for a table."""
    return [
        {"model": tag, "cap": p.cap, "accuracy": str(p.score)}
        | {key: getattr(p, key) for key in OUTCOMES}
        for tag, points in curves.items()
        for p in points
    ]
