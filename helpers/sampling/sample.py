"""Sample, grade, append: what distillation and evaluation share.

Completions stream from any engine into a samples file (opened by
:mod:`helpers.sampling.sample_store`), each graded and written as it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from helpers.base import Completion, LabError, Problem, RecordWriter
from helpers.grading import GRADER_VERSION, Grade, grade_many, read_answer
from helpers.models import render_prompt
from helpers.sampling.protocol import (
    Engine,
    SampledText,
    SampleRequest,
    derive_seed,
)
from helpers.sampling.sample_file import SampleFile
from helpers.sampling.sample_progress import SampleProgress

TOO_LONG = "too_long"


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
    """Sample what ``samples`` lacks; grade and append each as it comes.

    A kill loses no finished completion: every one is on the disk before the
    next is taken. Nothing is held in memory but the requests that are with
    the engine.

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

    name = _say_engine(engine, samples)
    stream = engine.sample(iter_missing())
    try:
        with progress, RecordWriter(samples.path) as writer:
            for text in stream:
                key = (text.request.problem_id, text.request.sample)
                if key not in waiting:
                    raise ValueError(f"the engine answered {key} unasked")
                waiting.remove(key)
                (row,) = grade_texts([text], golds, engine=name)
                writer.append(row)
                progress.add(row)
    finally:
        getattr(stream, "close", bool)()
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


def _say_engine(engine: Engine, samples: SampleFile) -> str:
    """The engine's name; said when others began the file."""
    name = str(engine.describe()["name"])
    others = {k: v for k, v in samples.engines.items() if k not in ("", name)}
    if others:
        shown = ", ".join(f"{v} by {k}" for k, v in sorted(others.items()))
        print(
            f"{samples.path.name}: sampled so far: {shown}; the rest comes "
            f"from {name}. Prompts, seeds and settings are the same."
        )
    return name


def grade_texts(
    texts: Sequence[SampledText],
    golds: Mapping[str, str],
    *,
    engine: str = "",
) -> list[Completion]:
    """Graded records of sampled texts, each with its ``gold``.

    Args:
        engine: name of what sampled them.
    """
    answers = [golds[text.request.problem_id] for text in texts]
    responses = [_clean(text.response) for text in texts]
    graded = [
        read_answer(text.request.prompt, response)
        for text, response in zip(texts, responses, strict=True)
    ]
    grades = grade_many(graded, answers)
    return [
        Completion(
            problem_id=text.request.problem_id,
            sample=text.request.sample,
            prompt=text.request.prompt,
            response=response,
            extracted=grade.extracted,
            correct=grade.correct,
            reason=grade.reason,
            grader=GRADER_VERSION,
            finish_reason=text.finish_reason,
            tokens=text.tokens,
            mean_logprob=text.mean_logprob,
            seed=text.request.seed,
            engine=engine,
            gold=gold,
        )
        for text, response, grade, gold in zip(
            texts,
            responses,
            map(_explain_too_long, texts, grades),
            answers,
            strict=True,
        )
    ]


def _clean(response: str) -> str:
    """Half a surrogate pair, which a server may send, is no UTF-8."""
    return response.encode("utf-8", "replace").decode("utf-8")


def _explain_too_long(text: SampledText, grade: Grade) -> Grade:
    if text.finish_reason != TOO_LONG:
        return grade
    cap = text.request.max_new_tokens
    reason = f"too long: the prompt and {cap} new tokens exceed the context"
    return Grade(False, None, reason)


def say_unusable(title: str, too_long: int, empty: int, total: int) -> None:
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
