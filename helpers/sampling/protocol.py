"""What every sampling engine takes and gives.

An engine turns :class:`SampleRequest` into :class:`SampledText`, in any
order, as they finish. A request carries its own seed, so that a sample is
the same whatever batch it runs in and however often the run was resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class SampleRequest:
    """One response to draw.

    ``prompt`` is the exact text the model reads, chat template included;
    no special token is added to it. ``temperature`` 0 means greedy.
    ``max_new_tokens`` counts the end token. ``seed`` None leaves the random
    numbers to the engine: such a sample cannot be drawn again. A text of
    ``stop`` ends the response and is not part of it. ``logprobs`` asks for
    the log p of every token.
    """

    problem_id: str
    sample: int
    prompt: str
    seed: int | None
    temperature: float
    top_p: float
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    logprobs: bool = False


@dataclass(frozen=True)
class SampledText:
    """One response drawn.

    ``response`` is the text without special tokens; ``finish_reason`` is
    "stop" (the model wrote its end token or a stop text), "length" (cut at
    the cap) or "too_long" (prompt and cap do not fit the model's context:
    nothing was drawn, the response is empty and has no tokens).
    ``tokens`` counts the end token; ``mean_logprob`` is the mean over these
    tokens of log p in nats under the model itself (temperature 1, no top_p),
    0 without tokens. ``logprobs`` holds them one by one when asked for.
    """

    request: SampleRequest
    response: str
    finish_reason: str
    tokens: int
    mean_logprob: float
    logprobs: tuple[float, ...] | None = None


class Engine(Protocol):
    """Anything that can sample; a context manager that frees what it holds.

    ``tokenizer`` renders the prompts (see ``helpers.models.chat``).
    """

    tokenizer: Any

    def sample(
        self, requests: Iterable[SampleRequest]
    ) -> Iterator[SampledText]:
        """Yield one SampledText a request, as they finish.

        The requests are read as they are needed, never all at once.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Name, version and settings, for a run's metrics."""
        ...

    def close(self) -> None:
        """Free memory and processes; may be called twice."""
        ...

    def __enter__(self) -> Engine:
        """The engine itself."""
        ...

    def __exit__(self, *error: object) -> None:
        """Close it, whatever happened."""
        ...


def derive_seed(run_seed: int, problem_id: str, sample: int) -> int:
    """A seed of its own for each (run, problem, sample), below 2**53.

    One seed for all requests would give different prompts the same random
    stream. 2**53 keeps the number exact in every JSON reader.
    """
    text = f"{run_seed}\x00{problem_id}\x00{sample}"
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**53
