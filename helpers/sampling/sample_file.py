"""What a samples file holds, known in a few bytes a row.

For going on: a sorted array of hashes says which samples are there, and
whether they were drawn with the prompt and seed that are asked for now. For
the harvest: one small :class:`Sample` a row, without its texts. However long
the responses are, one line is in memory at a time.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.base import (
    Completion,
    LabError,
    Problem,
    append_records,
    hash_text,
    is_empty,
    iter_located,
    iter_records,
    read_record_at,
    write_records,
)
from helpers.sampling.protocol import SampleRequest


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion without its texts.

    Equal prompts have equal ``prompt_key``, equal responses equal
    ``response_key``. ``answered`` says that an answer was found, ``empty``
    that the model wrote nothing. :func:`load_completion` reads the rest.
    """

    problem_id: str
    sample: int
    correct: bool
    answered: bool
    empty: bool
    finish_reason: str
    tokens: int
    mean_logprob: float
    prompt_key: int
    response_key: int
    source: Completion | tuple[Path, int]


def make_sample(
    row: Completion, source: tuple[Path, int] | None = None
) -> Sample:
    """The small form of a row; ``source`` is its file and offset."""
    return Sample(
        problem_id=row.problem_id,
        sample=row.sample,
        correct=row.correct,
        answered=row.extracted is not None,
        empty=is_empty(row),
        finish_reason=row.finish_reason,
        tokens=row.tokens,
        mean_logprob=row.mean_logprob,
        prompt_key=hash_text(row.prompt),
        response_key=hash_text(row.response),
        source=row if source is None else source,
    )


def load_completion(sample: Sample) -> Completion:
    """The whole row behind a sample."""
    if isinstance(sample.source, Completion):
        return sample.source
    return read_record_at(sample.source[0], Completion, sample.source[1])


def iter_samples(path: Path) -> Iterator[Sample]:
    """The small form of every row of a file."""
    words: dict[str, str] = {}  # equal words share one object
    for offset, row in iter_located(path, Completion):
        for name in ("problem_id", "finish_reason"):
            word = getattr(row, name)
            setattr(row, name, words.setdefault(word, word))
        yield make_sample(row, (path, offset))


def hash_key(problem_id: str, sample: int) -> int:
    """What a sample is known by."""
    return hash_text(f"{problem_id}\x00{sample}")


def hash_origin(prompt: str, seed: int | None) -> int:
    """What a sample was drawn from, besides the settings of its file."""
    return hash_text(f"{seed}\x00{prompt}")


class SampleFile:
    """A samples file that is gone on with; 17 bytes of memory a row.

    Attributes:
        path: the file; it need not be there yet.
        rows: how many lines it has.
        engines: how many of them each engine sampled ("" when not stored).
        graders: the versions of the grader that they carry.
        repeated: how many lines repeat a sample of an earlier one.
    """

    def __init__(self, path: Path):
        self.path, self._size = path, -1
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it has grown."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size == self._size:
            return
        self._size, self.engines, self.graders = size, Counter(), set()
        keys, origins, right = array("Q"), array("Q"), array("B")
        for row in iter_records(self.path, Completion) if size else ():
            keys.append(hash_key(row.problem_id, row.sample))
            origins.append(hash_origin(row.prompt, row.seed))
            right.append(row.correct)
            self.engines[row.engine] += 1
            self.graders.add(row.grader)
        self.rows = len(keys)
        # Stable: of two lines of one sample the first comes first.
        order = np.argsort(np.array(keys, np.uint64), kind="stable")
        self._keys = np.array(keys, np.uint64)[order]
        self._origins = np.array(origins, np.uint64)[order]
        self._right = np.array(right, np.uint8)[order]
        self._twice = self._keys[1:][self._keys[1:] == self._keys[:-1]]
        self.repeated = len(self._twice)

    def has(self, problem_id: str, sample: int) -> bool:
        """True when this sample is there."""
        return self._place(hash_key(problem_id, sample)) is not None

    def count_missing(self, problems: Iterable[Problem], n: int) -> int:
        """How many of the first ``n`` samples of each problem lack."""
        return sum(
            not self.has(problem.id, sample)
            for problem in problems
            for sample in range(n)
        )

    def find(self, request: SampleRequest) -> bool | None:
        """Whether the sample there is right; None when it is not there.

        Raises:
            LabError: it was drawn with another prompt or seed.
        """
        place = self._place(hash_key(request.problem_id, request.sample))
        if place is None:
            return None
        origin = hash_origin(request.prompt, request.seed)
        if int(self._origins[place]) != origin:
            raise self._explain_other_origin(request)
        return bool(self._right[place])

    def _place(self, key: int) -> int | None:
        if not self.rows:
            return None
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        found = place < self.rows and int(self._keys[place]) == key
        return place if found else None

    def _explain_other_origin(self, request: SampleRequest) -> LabError:
        sample = (request.problem_id, request.sample)
        differ = "prompt or seed"
        for row in iter_records(self.path, Completion):
            if (row.problem_id, row.sample) == sample:
                names = ("prompt", "seed")
                differ = " and ".join(
                    name
                    for name in names
                    if getattr(row, name) != getattr(request, name)
                )
                break
        return LabError(
            f"{self.path}: sample {request.sample} of "
            f"'{request.problem_id}' was drawn with another {differ} than "
            "is asked for now.",
            why="going on would mix two experiments in one file",
            fix="choose another --run-dir, or add --force to set the begun "
            "file aside",
        )

    def drop_repeated(self, aside: Path) -> int:
        """Keep the first line of each sample; the others go to ``aside``.

        Returns:
            how many lines were moved.
        """
        suspects = {int(key) for key in self._twice}
        seen: set[tuple[str, int]] = set()
        moved: list[int] = []
        for offset, row in iter_located(self.path, Completion):
            sample = (row.problem_id, row.sample)
            if hash_key(*sample) in suspects:
                if sample in seen:
                    moved.append(offset)
                seen.add(sample)
        if not moved:
            return 0
        drop = set(moved)
        append_records(
            aside, (read_record_at(self.path, Completion, o) for o in moved)
        )
        write_records(
            self.path,
            (
                row
                for offset, row in iter_located(self.path, Completion)
                if offset not in drop
            ),
        )
        self.refresh()
        return len(moved)
