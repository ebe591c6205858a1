"""Sample, grade, append: what distillation and evaluation share.

Completions stream from any engine into a samples file (opened by
:mod:`helpers.sampling.store`): each is on the disk before the next is taken,
then graded for the index and for what a person sees meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tqdm.auto

from helpers.base import Completion, LabError, Problem, RecordWriter
from helpers.grading import GradedCompletion, grade_completions
from helpers.models import render_prompt
from helpers.results import proportion
from helpers.sampling.engine import (
    Engine,
    SampledText,
    SampleRequest,
    derive_seed,
)
from helpers.sampling.store import SampleFile

WORDS_EVERY_S = 0.5
FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


@dataclass
class Speed:
    """Tokens sampled by this process and the seconds that took."""

    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """None when everything was on disk already."""
        return self.tokens / self.seconds if self.tokens else None


def iter_requests(
    problems: Iterable[Problem],
    tokenizer,
    template: str,
    *,
    n: int,
    run_seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> Iterator[SampleRequest]:
    """``n`` requests a problem, each with a seed of its own, as needed."""
    for problem in problems:
        prompt = render_prompt(tokenizer, problem.problem, template)
        for sample in range(n):
            yield SampleRequest(
                problem_id=problem.id,
                sample=sample,
                prompt=prompt,
                seed=derive_seed(run_seed, problem.id, sample),
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=max_new_tokens,
                stop=tuple(stop),
            )


def make_requests(
    problems: Iterable[Problem], tokenizer, template: str, **settings
) -> list[SampleRequest]:
    """The requests of :func:`iter_requests` as a list."""
    return list(iter_requests(problems, tokenizer, template, **settings))


def sample_missing(
    engine: Engine,
    requests: Iterable[SampleRequest],
    samples: SampleFile,
    golds: Mapping[str, str],
    *,
    title: str,
    total: int,
    n: int = 1,
    speed: Speed | None = None,
) -> SampleProgress:
    """Sample what ``samples`` lacks; append and grade each as it comes.

    A kill loses no finished completion: every one is on the disk before the
    next is taken. No text is held in memory but those with the engine.

    Args:
        requests: each sample once; read as the engine asks for more.
        golds: the reference answer by problem id.
        title: what stands before the progress bar.
        total: how many requests there are.
        n: samples of each problem, for the share of mixed problems.
        speed: counts tokens and seconds.

    Raises:
        LabError: a sample on disk has another prompt or seed, the disk is
            full, or the engine failed.
    """
    samples.refresh()
    progress = SampleProgress(title, total, n)
    waiting: set[tuple[str, int]] = set()

    def iter_missing() -> Iterator[SampleRequest]:
        for request in requests:
            right = samples.find(request)
            if right is not None:
                progress.skip(request.problem_id, request.sample, right)
                continue
            progress.start()
            waiting.add((request.problem_id, request.sample))
            yield request

    name = _name_engine(engine, samples)
    stream = engine.sample(iter_missing())
    try:
        with progress, RecordWriter(samples.path) as writer:
            for text in stream:
                key = (text.request.problem_id, text.request.sample)
                if key not in waiting:
                    raise ValueError(f"the engine answered {key} unasked")
                waiting.remove(key)
                row = make_completion(text, golds[key[0]], name)
                right = samples.append(writer, row).correct
                progress.add(*key, right, text.tokens)
    finally:
        if hasattr(stream, "close"):  # a generator frees its requests
            stream.close()
        if speed is not None:
            speed.tokens += progress.tokens
            speed.seconds += progress.seconds
    if waiting:
        raise LabError(
            f"The engine gave no answer to {len(waiting)} requests, for "
            f"example sample {min(waiting)[1]} of '{min(waiting)[0]}'.",
            fix="start again: only those are asked for",
        )
    return progress


def _name_engine(engine: Engine, samples: SampleFile) -> str:
    """The engine's name; printed when others began the file."""
    name = str(engine.describe()["name"])
    others = {k: v for k, v in samples.engines.items() if k not in ("", name)}
    if others:
        shown = ", ".join(f"{v} by {k}" for k, v in sorted(others.items()))
        print(
            f"{samples.path.name}: sampled so far: {shown}; the rest comes "
            f"from {name}. Prompts, seeds and settings are the same."
        )
    return name


def make_completion(text: SampledText, gold: str, engine: str) -> Completion:
    """The record of a sampled text."""
    # Half a surrogate pair, which a server may send, is no UTF-8.
    response = text.response.encode("utf-8", "replace").decode("utf-8")
    return Completion(
        problem_id=text.request.problem_id,
        sample=text.request.sample,
        prompt=text.request.prompt,
        response=response,
        finish_reason=text.finish_reason,
        tokens=text.tokens,
        mean_logprob=text.mean_logprob,
        seed=text.request.seed,
        engine=engine,
        gold=gold,
    )


def grade_texts(
    texts: Iterable[SampledText],
    golds: Mapping[str, str],
    *,
    engine: str = "",
) -> list[GradedCompletion]:
    """Graded records of sampled texts, each with its ``gold``.

    Args:
        golds: the reference answer by problem id.
        engine: name of what sampled them.
    """
    rows = (
        make_completion(text, golds[text.request.problem_id], engine)
        for text in texts
    )
    return list(grade_completions(rows))


def report_unusable(title: str, too_long: int, empty: int, total: int) -> None:
    """One line about responses that hold nothing, when there are any."""
    parts = []
    if too_long:
        parts.append(
            f"{too_long} were not drawn (prompt and max_new_tokens exceed "
            "the model's context)"
        )
    if empty:
        parts.append(f"{empty} are empty")
    if parts:
        print(f"{title}: of {total} responses {' and '.join(parts)}.")


class SampleProgress:
    """Counts completions and shows them; a context manager.

    One bar with done/total and the time left, and behind it: tokens a
    second, the share of mixed problems, and how often the first sample of a
    problem is right, with its interval. It is a line in a terminal, a widget
    in a notebook and plain lines in a batch run.

    The interval counts the first sample of each problem only: those are
    independent, all samples of one problem are not. Memory does not grow:
    only problems that lack samples are remembered.

    Args:
        title: what stands before the bar.
        total: how many samples are asked for.
        n: samples of each problem.
    """

    def __init__(self, title: str, total: int, n: int = 1):
        self.title, self.total, self.n = title, total, n
        self.done = self.there = self.tokens = 0
        self.first_right = self.first = 0
        self.mixed = self.whole = 0
        self._open: dict[str, list[int]] = {}  # problem: [samples, right]
        self._bar: Any = None
        self._start = self._words_at = 0.0

    def __enter__(self) -> SampleProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self.describe(), refresh=False)
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Since the bar was shown; 0 when nothing was missing."""
        return time.perf_counter() - self._start if self._start else 0.0

    def skip(self, problem_id: str, sample: int, correct: bool) -> None:
        """A sample that was there already: it counts, its time does not."""
        self._count(problem_id, sample, correct)
        self.there += 1
        if self._bar is not None:
            self._bar.initial += 1
            self._bar.n += 1
            self._bar.last_print_n += 1

    def start(self) -> None:
        """Show the bar; the clock runs from here."""
        if self._bar is None:
            self._start = time.perf_counter()
            # Looked up now: a batch run puts a bar of its own there.
            self._bar = tqdm.auto.tqdm(
                total=self.total,
                initial=self.there,
                desc=self.title,
                bar_format=FORMAT,
                smoothing=0,  # samples come in bursts: mean rate
                dynamic_ncols=True,
            )

    def add(
        self, problem_id: str, sample: int, correct: bool, tokens: int
    ) -> None:
        """A new completion."""
        self.start()
        self._count(problem_id, sample, correct)
        self.tokens += tokens
        now = time.perf_counter()
        if now - self._words_at > WORDS_EVERY_S or self.done == self.total:
            self._words_at = now
            self._bar.set_postfix_str(self.describe(), refresh=False)
        self._bar.update(1)

    def _count(self, problem_id: str, sample: int, correct: bool) -> None:
        self.done += 1
        if sample == 0:
            self.first += 1
            self.first_right += correct
        if self.n < 2:
            return
        counts = self._open.setdefault(problem_id, [0, 0])
        counts[0] += 1
        counts[1] += correct
        if counts[0] == self.n:
            self.whole += 1
            self.mixed += 0 < counts[1] < self.n
            del self._open[problem_id]

    def describe(self) -> str:
        """``3,210 tokens/s, mixed 28 % of 430, first 203/450 (…)``."""
        parts = []
        if self.tokens and (seconds := self.seconds):
            parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
        if self.whole:
            share = 100 * self.mixed / self.whole
            parts.append(f"mixed {share:.0f} % of {self.whole:,}")
        if self.first:
            word = "right" if self.n < 2 else "first try"
            score = proportion(self.first_right, self.first)
            parts.append(f"{word} {score}")
        return ", ".join(parts)
