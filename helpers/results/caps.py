"""Any token cap from one evaluation: cut what is stored, grade it again.

A greedy response under a smaller cap is the beginning of the one under a
larger cap, and so is a sampled one with the same seed. So a cap below the one
that was sampled with needs no model: a response is cut at ``cap`` tokens and
graded again by the one grader. No torch: the caller hands in a tokenizer.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
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
from helpers.grading import (
    GRADER_VERSION,
    GradedCompletion,
    grade_completions,
)
from helpers.results import stats
from helpers.results.scores import (
    classify_outcome,
    count_outcomes,
    load_results,
    read_responses,
    result_name,
)

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
    read_responses(run, tag, benchmark)  # LabError unless all are there
    name = result_name(tag, benchmark)
    chosen = list(caps or choose_caps(run.recipe.evaluate.max_new_tokens))
    path = run.file(name).with_suffix(".caps.json")
    made_from = {"results": hash_file(run.file(name)), "caps": chosen}
    made_from["grader"] = GRADER_VERSION
    stored = read_json(path) if path.is_file() else {}
    if stored.get("made_from") == made_from:
        return [CapPoint(**point) for point in stored["points"]]
    if not hasattr(tokenizer, "decode"):
        tokenizer = tokenizer()
    rows = load_results(run, tag, benchmark)
    points = [measure_cap(rows, cap, tokenizer) for cap in chosen]
    write_json(
        path, {"made_from": made_from, "points": [asdict(p) for p in points]}
    )
    return points


def choose_caps(cap: int) -> list[int]:
    """Evenly spaced caps, the last one is ``cap``."""
    return sorted({max(1, cap * i // STEPS) for i in range(1, STEPS + 1)})


def measure_cap(
    rows: Sequence[GradedCompletion], cap: int, tokenizer: Any
) -> CapPoint:
    """Accuracy and the kinds of wrong under one cap, one row a problem.

    Raises:
        LabError: several rows of a problem, or no cap; see :func:`cut_rows`.
    """
    if len({row.problem_id for row in rows}) < len(rows):
        raise LabError(
            "There are several responses of one problem.",
            why="samples of a problem are alike, so an interval over all "
            "responses would be too narrow",
            fix="give one response a problem",
        )
    cut, inexact = cut_rows(rows, cap, tokenizer)
    return CapPoint(
        cap=cap,
        n=len(cut),
        mean_tokens=statistics.fmean(row.tokens for row in cut),
        inexact=inexact,
        **count_outcomes(cut),
    )


def cut_rows(
    rows: Sequence[GradedCompletion], cap: int, tokenizer: Any
) -> tuple[list[GradedCompletion], int]:
    """All responses under a smaller cap, graded.

    What lost nothing but its end token, or nothing at all, keeps its verdict.

    Returns:
        the rows in the same order, and how many cuts are inexact.

    Raises:
        LabError: a cap below 1, or larger than the one sampled with.
    """
    _check_cap(rows, cap)
    done = [cut_row(row, cap, tokenizer) for row in rows]
    changed = [
        new
        for old, (new, _) in zip(rows, done, strict=True)
        if new.response != old.response
    ]
    graded = grade_completions(changed)
    out = [
        next(graded) if new.response != old.response else new
        for old, (new, _) in zip(rows, done, strict=True)
    ]
    return out, sum(not exact for _, exact in done)


def _check_cap(rows: Sequence[Completion], cap: int) -> None:
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


def cut_row(
    row: GradedCompletion, cap: int, tokenizer: Any
) -> tuple[GradedCompletion, bool]:
    """A response as it would stand under a smaller cap, not graded again.

    Its text is tokenized again. The mean log-probability of a part is not
    known: it is nan.

    Returns:
        the row, and whether the tokens are surely those sampled. A row
        within the cap comes back as it is.
    """
    if row.tokens <= cap or row.finish_reason == "too_long":
        return row, True
    found = tokenizer(
        row.response, add_special_tokens=False, return_offsets_mapping=True
    )
    ends = [end for _, end in found["offset_mapping"]]
    # The end token is counted, but is not in the text.
    sampled = row.tokens - (row.finish_reason == "stop")
    changes = {
        "response": row.response[: ends[cap - 1]]
        if cap <= len(ends)
        else row.response,
        "tokens": cap,
        "finish_reason": "length",
        "mean_logprob": float("nan"),
    }
    return row.model_copy(update=changes), len(ends) == sampled


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

    @property
    def may_explain(self) -> bool:
        """Whether a drop could come from cutting alone.

        Not when no response of the later model was cut, nor when it is
        worse even with all of them right.
        """
        left = self.at_most
        gained = left.diff > self.change.diff
        return gained and (left.diff >= 0 or left.verdict == "undecided")

    def sentence(self, before: str, after: str, on: str = "") -> str:
        """In words: whether cutting can explain a loss."""
        change, where = self.change, f" on {on}" if on else ""
        text = (
            f"{after} against {before}{where}: mean length "
            f"{self.mean_before:.0f} → {self.mean_after:.0f} tokens; of "
            f"{change.only_before} lost problems {self.lost_cut} were cut at "
            "the cap."
        )
        if change.diff >= 0:
            return f"{text} There is no drop to explain."
        doubt = change.verdict == "undecided"
        told = "cutting may" if self.may_explain else "cutting alone cannot"
        return (
            f"{text} The change is {change.difference}, exact McNemar "
            f"{stats.format_p(change.p_value)}"
            + (f", undecided at n = {change.n}" if doubt else "")
            + ". Had every cut response been right, it would be "
            f"{self.at_most.difference}: "
            + (f"if it is a drop, {told}" if doubt else told)
            + " explain the drop"
            + (", and a larger cap would tell." if self.may_explain else ".")
        )


def split_change(
    before: Sequence[GradedCompletion], after: Sequence[GradedCompletion]
) -> CutSplit:
    """Whether a change between two models could be a matter of the cap.

    Raises:
        LabError: the two are not about the same problems, or there is none.
    """
    marks = {row.problem_id: row.correct for row in before}
    new = {row.problem_id: row.correct for row in after}
    change = stats.compare(marks, new)
    cut = {
        row.problem_id
        for row in after
        if classify_outcome(row) == "truncated_wrong"
    }
    return CutSplit(
        change=change,
        at_most=stats.compare(
            marks, {key: right or key in cut for key, right in new.items()}
        ),
        lost_cut=sum(marks[key] for key in cut),
        mean_before=statistics.fmean(row.tokens for row in before),
        mean_after=statistics.fmean(row.tokens for row in after),
    )
