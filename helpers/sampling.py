"""Sample, grade, append: what distillation and evaluation share.

A samples file is append-only. Beside it lies ``<name>.inputs.json`` with
hashes of all that its lines depend on, written before the first line, so a
killed run is taken up only by one that would have written the same lines.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from helpers.engines.base import (
    Engine,
    SampledText,
    SampleRequest,
    derive_seed,
)
from helpers.errors import LabError
from helpers.grading import grade_many
from helpers.prompts import render_prompt
from helpers.records import (
    Completion,
    Problem,
    append_records,
    disk_errors,
    read_json,
    read_records,
    write_json,
)
from helpers.runs import RunDir

WRITE_EVERY = 64  # most responses that a kill can lose
WRITE_SECONDS = 20.0


@dataclass
class Speed:
    """Tokens sampled by this process and the seconds that took."""

    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """None when everything was on disk already."""
        return self.tokens / self.seconds if self.tokens else None


def open_samples(
    run: RunDir,
    name: str,
    inputs: Mapping[str, str],
    force: bool = False,
) -> list[Completion]:
    """The completions that ``name`` (a path in the run) holds already.

    Raises:
        LabError: they were sampled from other inputs and ``force`` is off;
            with it they are moved to ``old/``.
    """
    path = run.file(name)
    stamp = path.with_suffix(".inputs.json")
    if path.is_file() and force:
        _set_aside(run, name)
    have = read_json(stamp) if stamp.is_file() and path.is_file() else None
    if have is not None and have != dict(inputs):
        differ = sorted(
            key for key in {*have, *inputs} if have.get(key) != inputs.get(key)
        )
        raise LabError(
            f"{path} was begun with other inputs "
            f"(changed: {', '.join(differ)}).",
            why="going on would mix two experiments in one file",
            fix="choose another --run-dir, or add --force to set the begun "
            "file aside",
        )
    if have is None and path.is_file():
        raise LabError(
            f"{path} lies there without {stamp.name}.",
            why="nobody can tell what its lines were sampled from",
            fix="add --force to set it aside",
        )
    if have is None:
        write_json(stamp, dict(inputs))
        return []
    rows = read_records(path, Completion)
    if rows:
        print(f"{path.name}: {len(rows)} responses are there, going on.")
    return rows


def _set_aside(run: RunDir, name: str) -> None:
    number = 1
    while (folder := run.file("old", f"{number}-begun")).exists():
        number += 1
    source = run.file(name)
    with disk_errors(folder):
        (folder / name).parent.mkdir(parents=True)
        shutil.move(source, folder / name)


def make_requests(
    problems: Sequence[Problem],
    tokenizer,
    template: str,
    *,
    n: int,
    run_seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> list[SampleRequest]:
    """``n`` requests a problem, each with a seed of its own."""
    return [
        SampleRequest(
            problem_id=problem.id,
            sample=sample,
            prompt=prompt,
            seed=derive_seed(run_seed, problem.id, sample),
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
        )
        for problem in problems
        for prompt in [render_prompt(tokenizer, problem.problem, template)]
        for sample in range(n)
    ]


def sample_missing(
    engine: Engine,
    requests: Iterable[SampleRequest],
    done: list[Completion],
    golds: Mapping[str, str],
    path: Path,
    *,
    title: str,
    speed: Speed,
) -> None:
    """Sample what ``done`` lacks, grade it, append it to ``path``.

    ``done`` grows by the new completions. Lines are written every
    WRITE_EVERY responses or WRITE_SECONDS seconds, graded, with ``gold``.
    """
    requests = list(requests)
    have = {(row.problem_id, row.sample) for row in done}
    missing = [r for r in requests if (r.problem_id, r.sample) not in have]
    if not missing:
        return
    bar = tqdm(
        total=len(requests),
        initial=len(requests) - len(missing),
        desc=title,
        unit="response",
    )
    waiting: list[SampledText] = []
    start = written = time.perf_counter()
    with bar:
        for text in engine.sample(missing):
            waiting.append(text)
            late = time.perf_counter() - written > WRITE_SECONDS
            if len(waiting) >= WRITE_EVERY or late:
                _write(waiting, done, golds, path, bar)
                waiting, written = [], time.perf_counter()
        _write(waiting, done, golds, path, bar)
    new = done[len(done) - len(missing) :]
    speed.tokens += sum(row.tokens for row in new)
    speed.seconds += time.perf_counter() - start


def _write(
    texts: Sequence[SampledText],
    done: list[Completion],
    golds: Mapping[str, str],
    path: Path,
    bar: tqdm,
) -> None:
    rows = grade_texts(texts, golds)
    append_records(path, rows)
    done.extend(rows)
    bar.update(len(rows))
    right = sum(row.correct for row in done)
    bar.set_postfix_str(f"right {right}/{len(done)}")


def grade_texts(
    texts: Sequence[SampledText], golds: Mapping[str, str]
) -> list[Completion]:
    """Graded records of sampled texts, each with its ``gold``."""
    answers = [golds[text.request.problem_id] for text in texts]
    grades = grade_many([text.response for text in texts], answers)
    return [
        Completion(
            problem_id=text.request.problem_id,
            sample=text.request.sample,
            prompt=text.request.prompt,
            response=text.response,
            extracted=grade.extracted,
            correct=grade.correct,
            reason=grade.reason,
            finish_reason=text.finish_reason,
            tokens=text.tokens,
            mean_logprob=text.mean_logprob,
            seed=text.request.seed,
            gold=gold,
        )
        for text, grade, gold in zip(texts, grades, answers, strict=True)
    ]
