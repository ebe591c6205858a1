"""Every data set this kit knows: where it lies and how a row is read.

A revision is pinned where a commit of the hub repository is known to exist
(it is used by public code); None means the hub's newest one at the first use,
kept from then on (:mod:`helpers.problems.revisions`). Row counts and licences
are those of the data sets' pages; a licence of "" means that the page states
none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from helpers.base import LabError, did_you_mean

GYM_PREFIX = "reasoning-gym:"
GYM_FAMILIES = (
    "basic_arithmetic",
    "chain_sum",
    "gcd",
    "gsm_symbolic",
    "lcm",
    "leg_counting",
    "products",
    "simple_equations",
)
"""Families whose answer is one number, so that our grader can judge it."""


@dataclass(frozen=True)
class Source:
    """One data set and how its rows become problems.

    ``golds`` are (field, rule) pairs, see :mod:`helpers.problems.golds`; the
    first field that a row fills decides. ``keep`` names a row filter of
    :mod:`helpers.problems.filters`. ``numeric`` golds must be numbers.
    ``rows`` is the size of the split, None where it is not known exactly.
    ``copies`` are further names under which a local copy may lie.
    """

    name: str
    hub_id: str = ""
    role: Literal["train", "evaluation"] = "train"
    split: str = "train"
    configs: tuple[str, ...] = ()
    revision: str | None = None
    problem: str = "problem"
    golds: tuple[tuple[str, str], ...] = (("answer", "text"),)
    solution: str = ""
    id_field: str = ""
    keep: str = ""
    uses: tuple[str, ...] = ()
    numeric: bool = False
    stream: bool = False
    rows: int | None = None
    size: str = ""
    licence: str = ""
    copies: tuple[str, ...] = ()
    file: str = ""
    note: str = ""

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns without which a row cannot be read."""
        return (self.problem, *self.uses)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        optional = (self.solution, self.id_field)
        gold = tuple(field for field, _ in self.golds)
        names = (*self.needed, *gold, *(name for name in optional if name))
        return tuple(dict.fromkeys(names))


BOXED = (("solution", "boxed"),)
EITHER = (("answer", "text"), ("solution", "boxed"))

_SOURCES = (
    Source(
        "numina-tir",
        "AI-MO/NuminaMath-TIR",
        revision="77a91d7b7a1a98ac4b1beb7d86c09d156b935dcd",
        golds=BOXED,
        solution="solution",
        rows=72_441,
        licence="Apache-2.0",
        note="no answer field: the gold is the last box of the solution; "
        "an early commit was cc-by-nc-4.0",
    ),
    Source(
        "numina-cot",
        "AI-MO/NuminaMath-CoT",
        revision="9d8d210c9f6a36c8f3cd84045668c9b7800ef517",
        golds=BOXED,
        solution="solution",
        stream=True,
        size="859 k",
        licence="Apache-2.0",
        note="proofs have no box and are counted out; earlier cc-by-nc-4.0",
    ),
    Source(
        "numina-qwq",
        "PrimeIntellect/NuminaMath-QwQ-CoT-5M",
        problem="prompt",
        golds=(("ground_truth", "text"),),
        solution="response",
        keep="correct",
        uses=("correct",),
        stream=True,
        rows=5_138_102,
        licence="MIT",
        note="18 GB, so streamed; rows not marked correct are counted out",
    ),
    Source(
        "gsm8k",
        "openai/gsm8k",
        role="evaluation",
        split="test",
        configs=("main",),
        revision="740312add88f781978c0658806c59bc2815b9866",
        problem="question",
        golds=(("answer", "hash"),),
        solution="answer",
        numeric=True,
        rows=1_319,
        licence="MIT",
        copies=("gsm8k_test",),
    ),
    Source(
        "gsm8k-train",
        "openai/gsm8k",
        configs=("main",),
        revision="740312add88f781978c0658806c59bc2815b9866",
        problem="question",
        golds=(("answer", "hash"),),
        solution="answer",
        numeric=True,
        rows=7_473,
        licence="MIT",
        copies=("gsm8k_train",),
    ),
    Source(
        "gsm-hard",
        "reasoning-machines/gsm-hard",
        problem="input",
        golds=(("target", "number"),),
        numeric=True,
        rows=1_319,
        licence="MIT",
        copies=("gsmhardv2", "gsmhard"),
        note="GSM8K test with larger numbers: never train on it and report "
        "GSM8K; `code` is Python, not a solution; some targets are wrong",
    ),
    Source(
        "math-500",
        "HuggingFaceH4/MATH-500",
        role="evaluation",
        split="test",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        solution="solution",
        id_field="unique_id",
        rows=500,
        copies=("math500_test", "math500", "MATH-500"),
    ),
    Source(
        "aime-2024",
        "Maxwell-Jia/AIME_2024",
        role="evaluation",
        revision="8d88b2876a82a080e2f172cc9b25d0d9d2cb4792",
        problem="Problem",
        golds=(("Answer", "text"),),
        solution="Solution",
        id_field="ID",
        numeric=True,
        rows=30,
        licence="MIT",
        copies=("aime_2024_problems",),
        note="capitalised field names",
    ),
    Source(
        "aime-2024-h4",
        "HuggingFaceH4/aime_2024",
        role="evaluation",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        solution="solution",
        id_field="id",
        numeric=True,
        rows=30,
        note="the copy that open-rs scores on",
    ),
    Source(
        "aime-2025",
        "opencompass/AIME2025",
        role="evaluation",
        split="test",
        configs=("AIME2025-I", "AIME2025-II"),
        revision="a6ad95f611d72cf628a80b58bd0432ef6638f958",
        problem="question",
        numeric=True,
        rows=30,
        licence="MIT",
        note="two configs of 15, joined",
    ),
    Source(
        "amc23",
        "knoveleng/AMC-23",
        role="evaluation",
        golds=(("answer", "number"),),
        id_field="id",
        numeric=True,
        rows=40,
    ),
    Source(
        "mathnet",
        "ShadenA/MathNet",
        role="evaluation",
        configs=("all",),
        revision="33e6b3bc254e6f0f0c1479b4252f5e9dd551d56c",
        problem="problem_markdown",
        golds=(("final_answer", "text"),),
        id_field="id",
        keep="text-only",
        stream=True,
        size="10–100 k",
        licence="cc-by-4.0",
        note="rows with an image or without a final answer (proofs) are "
        "counted out; columns as of that revision; first commit apache-2.0",
    ),
    Source(
        "minerva",
        "knoveleng/Minerva-Math",
        role="evaluation",
        golds=BOXED,
        solution="solution",
        rows=272,
    ),
    Source(
        "olympiadbench",
        "knoveleng/OlympiadBench",
        role="evaluation",
        problem="question",
        id_field="id",
        rows=675,
    ),
    Source(
        "orca-math",
        "microsoft/orca-math-word-problems-200k",
        revision="29255d1770cc4eac66e5e7fa378cba542c026350",
        problem="question",
        golds=(("answer", "prose"),),
        solution="answer",
        rows=200_035,
        licence="MIT",
        note="answers are prose without a mark: the gold is guessed, good "
        "for training only",
    ),
    Source(
        "math-step-dpo",
        "xinlai/Math-Step-DPO-10K",
        problem="prompt",
        solution="full_chosen",
        rows=10_795,
        note="several pairs a problem: further ones count as duplicates",
    ),
    Source(
        "open-s1",
        "knoveleng/open-s1",
        golds=EITHER,
        solution="solution",
        rows=18_615,
        licence="MIT",
    ),
    Source(
        "open-deepscaler",
        "knoveleng/open-deepscaler",
        golds=EITHER,
        solution="solution",
        rows=21_044,
        licence="MIT",
    ),
    Source(
        "open-rs",
        "knoveleng/open-rs",
        revision="8de2b2d11162d97b45c7606902eae2bb1ff629b4",
        golds=EITHER,
        solution="solution",
        rows=7_000,
        licence="MIT",
    ),
)


def _pocket(part: str, rows: int, note: str) -> Source:
    """A problem set that is shipped with the kit."""
    return Source(
        f"pocket-{part}",
        role="train" if part == "train" else "evaluation",
        split=part,
        solution="solution",
        id_field="id",
        rows=rows,
        licence="Apache-2.0",
        file=f"pocket/{part}.jsonl",
        note=note,
    )


_POCKET = (
    _pocket("train", 3000, "for self-distillation"),
    _pocket("dev", 400, "for choosing settings"),
    _pocket("easy", 200, "one and two steps"),
    _pocket("main", 500, "two to four steps"),
    _pocket("hard", 60, "five and six steps"),
    _pocket("shifted", 500, "wordings that pretraining never contains"),
)


def _gym(family: str) -> Source:
    """A family of reasoning-gym: problems are made, not loaded."""
    return Source(
        GYM_PREFIX + family,
        problem="question",
        numeric=True,
        solution="solution",
        size="made",
        licence="Apache-2.0",
        note="made from a seed; needs the extra `build`",
    )


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (*_SOURCES, *_POCKET, *map(_gym, GYM_FAMILIES))
}


def find_source(name: str) -> Source:
    """The source of that name.

    Raises:
        LabError: there is none; the message names the closest ones.
    """
    if name in SOURCES:
        return SOURCES[name]
    raise LabError(
        f"There is no problem set '{name}'.{did_you_mean(name, SOURCES)}",
        fix="choose from: " + ", ".join(SOURCES) + "; or give a .jsonl file",
    )
