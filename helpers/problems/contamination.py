"""Training problems that occur in an evaluation set.

Three tests; of each evaluation set the first that fits is reported:

- ``same text``: equal but for layout, see :func:`text_key`
- ``shared words``: 8 words in a row (open-r1), 13 where the evaluation
  problem is long (GPT-3): in a long text 8 common words prove little
- ``same but for the numbers``: 13 words in a row with every number masked,
  or a whole shorter text so; it finds gsm-hard in GSM8K

The index holds one entry per run of words of the evaluation sets, with the
first problem of each set that has it; training problems pass one at a time,
so memory does not grow with them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from helpers.base import LabError, Problem

SHORT_RUN = 8
LONG_RUN = 13
LONG_WORDS = 80  # an evaluation problem from here on is a long text
SAME_TEXT = "same text"
SHARED_WORDS = "shared words"
NEW_NUMBERS = "same but for the numbers"
KINDS = (SAME_TEXT, SHARED_WORDS, NEW_NUMBERS)
MAX_EXAMPLES = 5

Places = tuple[int, ...]  # numbers of evaluation problems, one a set


@dataclass(frozen=True)
class Hit:
    """A training problem, the evaluation problem it meets, and how."""

    problem_id: str
    kind: str
    reference_set: str
    reference_id: str
    words: str


class ContaminationIndex:
    """Evaluation sets, ready to be searched for training problems.

    Args:
        references: name of each evaluation set and its problems.
        masked: also look for problems whose numbers were changed.
        words: also look for shared runs of words. Turn both off for
            problems made from templates, which are all alike otherwise.

    Raises:
        LabError: an evaluation set is empty.
    """

    def __init__(
        self,
        references: Mapping[str, Iterable[Problem]],
        masked: bool = True,
        words: bool = True,
    ):
        self.masked, self.words = masked, words
        self.sizes: dict[str, int] = {}
        self._owners: list[tuple[str, str]] = []
        self._keys: dict[int, Places] = {}
        self._runs: dict[int, dict[int, Places]] = {
            SHORT_RUN: {},
            LONG_RUN: {},
        }
        self._masked: dict[int, Places] = {}
        for name, problems in references.items():
            before = len(self._owners)
            for problem in problems:
                self._add(name, problem)
            self.sizes[name] = len(self._owners) - before
            if not self.sizes[name]:
                raise LabError(
                    f"The evaluation set '{name}' is empty.",
                    why="nothing can be compared with it",
                    fix="check its file with: mathslm problems " + name,
                )

    def _add(self, name: str, problem: Problem) -> None:
        # one tuple for all entries of a problem: it costs no more than a
        # number, and few entries occur in a second set
        place = (len(self._owners),)
        self._owners.append((name, problem.id))
        key = hash(text_key(problem.problem))
        self._put(self._keys, [key], place)
        if not (self.words or self.masked):
            return
        words = split_words(problem.problem)
        n = LONG_RUN if len(words) >= LONG_WORDS else SHORT_RUN
        if self.words:
            self._put(self._runs[n], hash_runs(words, n), place)
        if self.masked:
            masked = hash_masked(mask_numbers(words))
            self._put(self._masked, masked, place)

    def _put(
        self, index: dict[int, Places], keys: Iterable[int], place: Places
    ) -> None:
        """Note a problem under each key unless its set is there already.

        Sets are added one after another, so the last one there decides.
        """
        own = self._owners[place[0]][0]
        for key in keys:
            there = index.setdefault(key, place)
            if there is not place and self._owners[there[-1]][0] != own:
                index[key] = there + place

    def find(self, problem: Problem) -> Hit | None:
        """The first overlap of a training problem, or None."""
        return next(self._iter_hits(problem), None)

    def find_all(self, problem: Problem) -> list[Hit]:
        """The first overlap with each evaluation set that has any."""
        return list(self._iter_hits(problem))

    def _iter_hits(self, problem: Problem) -> Iterator[Hit]:
        """One hit a set; stops when every set has its own."""
        left = set(self.sizes)
        for kind, places, words in self._iter_matches(problem):
            for place in places:
                name, reference = self._owners[place]
                if name in left:
                    left.remove(name)
                    yield Hit(problem.id, kind, name, reference, words)
            if not left:
                return

    def _iter_matches(
        self, problem: Problem
    ) -> Iterator[tuple[str, Places, str]]:
        """Everything shared: its kind, with whom, and the words."""
        key = hash(text_key(problem.problem))
        if key in self._keys:
            yield SAME_TEXT, self._keys[key], ""
        words = split_words(problem.problem)
        for n, index in self._runs.items():
            for i, run in enumerate(hash_runs(words, n)):
                if run in index:
                    yield SHARED_WORDS, index[run], " ".join(words[i : i + n])
        if not self._masked:
            return
        for run in hash_masked(mask_numbers(words)):
            if run in self._masked:
                yield NEW_NUMBERS, self._masked[run], ""


def hash_runs(words: Sequence[str], n: int) -> list[int]:
    """Hashes (64 bits) of all runs of ``n`` words; none in shorter texts."""
    return [
        hash(run) for run in zip(*(words[i:] for i in range(n)), strict=False)
    ]


def hash_masked(words: Sequence[str]) -> list[int]:
    """Runs of 13 masked words, or a text of 8 to 12 as one run.

    Runs that are mostly numbers are left out: a row of numbers is alike in
    unrelated problems.
    """
    if len(words) < SHORT_RUN:
        return []
    n = min(LONG_RUN, len(words))
    plain = [0 if MASK in word else 1 for word in words]
    return [
        run
        for i, run in enumerate(hash_runs(words, n))
        if 2 * sum(plain[i : i + n]) >= n
    ]


@dataclass
class ContaminationReport:
    """How many problems overlap with which evaluation set, and how.

    ``hits`` counts problems that overlap with some set. One that overlaps
    with two sets is counted for both in ``counts``, so these may add up to
    more. ``touched`` are the problems of each set that are met.
    """

    rows: int = 0
    hits: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    touched: dict[str, set[str]] = field(default_factory=dict)
    examples: list[Hit] = field(default_factory=list)

    def add(self, hits: Sequence[Hit]) -> None:
        """Count one problem by its overlaps, one a set."""
        self.hits += 1
        for hit in hits:
            self.counts[hit.reference_set, hit.kind] += 1
            touched = self.touched.setdefault(hit.reference_set, set())
            touched.add(hit.reference_id)
        self.examples += hits[: MAX_EXAMPLES - len(self.examples)]

    def __str__(self) -> str:
        lines = [f"{self.hits:,} of {self.rows:,} problems overlap"]
        for name, size in self.sizes.items():
            parts = [
                f"{self.counts[name, kind]:,} {kind}"
                for kind in KINDS
                if self.counts[name, kind]
            ]
            touched = len(self.touched.get(name, ()))
            lines.append(
                f"  {name}: {', '.join(parts) or 'none'}"
                f" ({touched:,} of its {size:,} problems are met)"
            )
        lines += [
            f"  e.g. {hit.problem_id} and {hit.reference_id}: {hit.kind}"
            + (f" '{hit.words}'" if hit.words else "")
            for hit in self.examples
        ]
        return "\n".join(lines)


def decontaminate(
    problems: Iterable[Problem], index: ContaminationIndex
) -> tuple[list[Problem], ContaminationReport]:
    """Split off the problems that overlap with an evaluation set.

    Returns:
        The clean problems in their order, and the report on the others.
    """
    report = ContaminationReport(sizes=index.sizes)
    clean = []
    for problem in tqdm(problems, "decontaminate", leave=False, delay=2):
        report.rows += 1
        if hits := index.find_all(problem):
            report.add(hits)
        else:
            clean.append(problem)
    return clean, report


_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_LETTER = r"[^\W\d_]"
_NOT_KEY = re.compile(
    # what is never kept
    r"(?:[^\w+\-*/^=<>%|!.±¬√∂∆∇\u2200-\u22ff\u2a00-\u2aff]|_"
    # a dot that ends a sentence, or is one of several
    rf"|\.(?!\d)|(?<={_LETTER})\.|(?<=\.)\."
    # an exclamation mark; that of 5!, n!, (n - 1)! and != stays
    r"|(?<![\d)}!])(?<!(?<![^\W\d_]|['’])[^\W\d_])!+(?!=)|(?<=\\[)}])!+)+"
)
_GAP = re.compile(r"(?<!\d) | (?![\d.])")  # says nothing: not after a digit
_LOOSE = re.compile(r"(?<!\s)\s+(?=!)")
_THOUSANDS = re.compile(r"(?<=\d)(?:,\\!|\{,\}|\\,|,)(?=\d{3}(?!\d))")
_SHORT_FRAC = re.compile(r"frac\s*(\d)\s*(\d)")  # \frac12 is \frac{1}{2}
_RAISED = re.compile(r"[⁰¹²³⁴-⁹⁺⁻]+")
_LOWERED = re.compile(r"[₀-₉]+|[¼-¾⅐-⅞]")
_SIGNS = str.maketrans(
    {
        "≤": "<=",
        "≦": "<=",
        "⩽": "<=",
        "≥": ">=",
        "≧": ">=",
        "⩾": ">=",
        "−": "-",
        "–": "-",
        "×": "*",
        "·": "*",
        "⋅": "*",
        "∙": "*",
        "÷": "/",
        "⁄": "/",
        "∕": "/",
        "∣": "|",
    }
)
_EDGES = ".,;:!?\"'()[]{}$“”‘’«»…*`"
MASK = "#"


def normalize_text(text: str) -> str:
    """Compatibility forms (NFKC) and case folded away."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text).casefold()


def text_key(text: str) -> str:
    """What tells one problem from another; layout does not.

    Letters, digits and signs of arithmetic, and a gap where two numbers
    meet: "48, 4" is not "4, 84". Case, other spacing, LaTeX's dollars and
    braces and the marks of sentences are dropped: sets write them
    differently.
    """
    if not text.isascii():
        # 10² is not 102, and 3½ is not 31/2
        text = _RAISED.sub(r"^\g<0> ", text)
        text = _LOWERED.sub(r" \g<0>", text)
    text = normalize_text(text)
    if not text.isascii():
        text = text.translate(_SIGNS)
    if "!" in text:
        text = _LOOSE.sub("", text)
    if "frac" in text:
        text = _SHORT_FRAC.sub(r"frac\1 \2 ", text)
    text = _THOUSANDS.sub("", text)
    return _GAP.sub("", _NOT_KEY.sub(" ", text)).strip()


def text_digest(text: str) -> bytes:
    """16 bytes that stand for the text's key in a set of millions."""
    key = text_key(text).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(key, digest_size=16).digest()


def split_words(text: str) -> list[str]:
    """Words between white space, without the marks at their edges."""
    words = (word.strip(_EDGES) for word in normalize_text(text).split())
    return [word for word in words if word]


def mask_numbers(words: list[str]) -> list[str]:
    """The words with every number replaced by one sign.

    7 and 4,513,269.5 become the same; a word without a digit stays.
    """
    return [_NUMBER.sub(MASK, word) for word in words]
