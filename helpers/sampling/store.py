"""The samples file: opened so that two experiments never mix, and indexed.

A samples file is append-only JSON lines, one :class:`Completion` each.
Beside it lies ``<name>.inputs.json`` with all that its lines depend on,
written before the first line, so a killed run is taken up only by one that
would have written the same lines. The engine is not among it: another one
draws from the same distribution. No verdict is stored: the file is graded
when it is read, into an index without texts (:class:`Sample`); a text is
read by its offset where it is needed.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.base import (
    TEMPLATES,
    Completion,
    LabError,
    Problem,
    Recipe,
    RecordWriter,
    RunDir,
    append_records,
    choose_aside,
    compare_inputs,
    disk_errors,
    fingerprint_model,
    hash_text,
    is_empty,
    iter_located,
    read_json,
    read_record_at,
    write_json,
    write_records,
)
from helpers.grading import GradedCompletion, grade_completions
from helpers.models import fit_recipe
from helpers.sampling.engine import SampleRequest

SEED_SCHEME = "per problem and sample, 1"  # see engine.derive_seed


def describe_sampling(
    recipe: Recipe,
    model: Path,
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> dict[str, str]:
    """All that a sample's distribution depends on besides its problem.

    The template counts with its text, not only its name; the seed counts
    where something is drawn.
    """
    recipe = fit_recipe(recipe, model)
    name, weights = recipe.data.prompt_template, recipe.model
    text = hashlib.sha256(TEMPLATES[name].encode()).hexdigest()[:16]
    drawn = f"{recipe.seed} {SEED_SCHEME}"
    return {
        "model": fingerprint_model(model, weights.revision),
        "precision": f"{weights.dtype} {weights.quantization or ''}".strip(),
        "template": f"{name} {text}",
        "temperature": str(float(temperature)),
        "top_p": str(float(top_p)),
        "max_new_tokens": str(max_new_tokens),
        "stop": repr(list(stop)),
        "seed": drawn if temperature > 0 else "greedy",
    }


def open_samples(
    run: RunDir,
    name: str,
    inputs: Mapping[str, str],
    force: bool = False,
    golds: Mapping[str, str] | None = None,
) -> SampleFile:
    """What ``name`` (a path in the run) holds already.

    Of two rows of one sample the second is moved to ``old/``.

    Args:
        inputs: all that the rows depend on, see :func:`describe_sampling`.
        force: move rows of other inputs to ``old/`` and begin again.
        golds: reference answers by problem id, for rows without ``gold``.

    Raises:
        LabError: they were sampled from other inputs and ``force`` is off.
    """
    path = run.file(name)
    stamp = path.with_suffix(".inputs.json")
    begun = path.is_file() and path.stat().st_size > 0
    if begun and force:
        _set_aside(run, name)
        begun = False
    have = read_json(stamp) if stamp.is_file() and begun else None
    if have is not None and (differ := compare_inputs(have, inputs)):
        raise LabError(
            f"{path} was begun with other inputs "
            f"(changed: {', '.join(differ)}).",
            why="going on would mix two experiments in one file",
            fix="choose another --run-dir, or add --force to set the begun "
            "file aside",
        )
    if have is None and begun:
        raise LabError(
            f"{path} lies there without {stamp.name}.",
            why="nobody can tell what its lines were sampled from",
            fix="add --force to set it aside",
        )
    if have is None:
        write_json(stamp, dict(inputs))
        return SampleFile(path, golds)
    samples = SampleFile(path, golds)
    _drop_repeated(run, name, samples)
    if samples.rows:
        print(f"{path.name}: {samples.rows} responses are there, going on.")
    return samples


def _set_aside(run: RunDir, name: str) -> None:
    folder, source = choose_aside(run.path, "begun"), run.file(name)
    with disk_errors(folder):
        (folder / name).parent.mkdir(parents=True)
        shutil.move(source, folder / name)


def _drop_repeated(run: RunDir, name: str, samples: SampleFile) -> None:
    if not samples.repeated:
        return
    folder = choose_aside(run.path, "repeated")
    count = samples.drop_repeated(folder / name)
    print(
        f"{name}: {count} lines repeated a sample that was there. The first "
        f"of each is kept, the others are in {folder.relative_to(run.path)}."
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """A graded completion without its texts.

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
    seed: int | None
    source: Completion | tuple[Path, int]


def make_sample(
    row: GradedCompletion, source: tuple[Path, int] | None = None
) -> Sample:
    """The small form of a row; ``source`` is its file and offset."""
    return Sample(
        problem_id=sys.intern(row.problem_id),
        sample=row.sample,
        correct=row.correct,
        answered=row.extracted is not None,
        empty=is_empty(row),
        finish_reason=sys.intern(row.finish_reason),
        tokens=row.tokens,
        mean_logprob=row.mean_logprob,
        prompt_key=hash_text(row.prompt),
        response_key=hash_text(row.response),
        seed=row.seed,
        source=row if source is None else source,
    )


def load_completion(sample: Sample) -> Completion:
    """The whole row behind a sample."""
    if isinstance(sample.source, Completion):
        return sample.source
    return read_record_at(sample.source[0], Completion, sample.source[1])


def _iter_graded(
    located: Iterable[tuple[int, Completion]],
    golds: Mapping[str, str] | None,
) -> Iterator[tuple[int, GradedCompletion]]:
    """Rows with their offsets, graded some at a time."""
    offsets: list[int] = []

    def iter_rows() -> Iterator[Completion]:
        for offset, row in located:
            offsets.append(offset)
            yield row

    offset = iter(offsets)  # a list may grow under its iterator
    for row in grade_completions(iter_rows(), golds):
        yield next(offset), row


class SampleFile:
    """A samples file that is gone on with, and its index.

    Attributes:
        path: the file; it need not be there yet.
        index: ``{(problem id, sample): Sample}``.
        engines: how many rows each engine sampled ("" when not stored).
        repeated: offsets of lines that repeat a sample of an earlier one.
    """

    def __init__(self, path: Path, golds: Mapping[str, str] | None = None):
        self.path, self.golds = path, dict(golds or {})
        self._forget()
        self.refresh()

    def _forget(self) -> None:
        self.index: dict[tuple[str, int], Sample] = {}
        self.engines: Counter[str] = Counter()
        self.repeated: list[int] = []
        self._size = 0  # bytes that the index knows

    @property
    def rows(self) -> int:
        """How many lines it has."""
        return len(self.index) + len(self.repeated)

    def refresh(self) -> None:
        """Read, and grade, what was written since the last time."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < self._size:
            self._forget()
        if size == self._size:
            return
        known = self._size
        fresh = (
            (offset, row)
            for offset, row in iter_located(self.path, Completion)
            if offset >= known
        )
        for offset, row in _iter_graded(fresh, self.golds):
            self.add(row, offset)
        self._size = size

    def add(self, row: GradedCompletion, offset: int) -> None:
        """Put the row at ``offset`` of the file into the index."""
        sample = make_sample(row, (self.path, offset))
        key = (sample.problem_id, sample.sample)
        if key in self.index:
            self.repeated.append(offset)
        else:
            self.index[key] = sample
        self.engines[row.engine] += 1

    def append(self, writer: RecordWriter, row: Completion) -> Sample:
        """Write a row, then grade it into the index; its small form."""
        offset = self.path.stat().st_size
        writer.append(row)
        (graded,) = grade_completions([row])
        self.add(graded, offset)
        self._size = self.path.stat().st_size
        return self.index[row.problem_id, row.sample]

    def has(self, problem_id: str, sample: int) -> bool:
        """True when this sample is there."""
        return (problem_id, sample) in self.index

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
        have = self.index.get((request.problem_id, request.sample))
        if have is None:
            return None
        differ = []
        if have.prompt_key != hash_text(request.prompt):
            differ.append("prompt")
        if have.seed != request.seed:
            differ.append("seed")
        if differ:
            raise LabError(
                f"{self.path}: sample {request.sample} of "
                f"'{request.problem_id}' was drawn with another "
                f"{' and '.join(differ)} than is asked for now.",
                why="going on would mix two experiments in one file",
                fix="choose another --run-dir, or add --force to set the "
                "begun file aside",
            )
        return have.correct

    def drop_repeated(self, aside: Path) -> int:
        """Keep the first line of each sample; the others go to ``aside``.

        Returns:
            how many lines were moved.
        """
        repeated = self.repeated
        drop = set(repeated)
        append_records(
            aside, (read_record_at(self.path, Completion, o) for o in repeated)
        )
        write_records(
            self.path,
            (
                row
                for offset, row in iter_located(self.path, Completion)
                if offset not in drop
            ),
        )
        self._forget()
        self.refresh()
        return len(repeated)
