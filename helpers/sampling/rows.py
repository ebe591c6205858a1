"""A response in the making: its tokens, random numbers and stop texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from helpers.sampling.protocol import SampledText, SampleRequest

Decode = Callable[[Sequence[int]], str]


@dataclass
class Row:
    """One request while it is being answered.

    Args:
        request: what to draw.
        prompt_ids: its prompt's tokens.
        end_ids: the tokens that end a response.
        decode: turns token ids into text without special tokens.
    """

    request: SampleRequest
    prompt_ids: list[int]
    end_ids: frozenset[int]
    decode: Decode
    new_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    uniforms: np.ndarray | None = None
    stopped_at: int | None = None  # characters before the stop text

    def start(self) -> None:
        """Forget what was drawn and prepare the row's random numbers."""
        self.new_ids, self.logprobs, self.stopped_at = [], [], None
        if self.request.temperature > 0:
            stream = np.random.default_rng(self.request.seed)
            self.uniforms = stream.random(self.request.max_new_tokens)

    @property
    def remaining(self) -> int:
        """Tokens that may still be drawn."""
        return self.request.max_new_tokens - len(self.new_ids)

    @property
    def length(self) -> int:
        """Tokens so far, prompt included."""
        return len(self.prompt_ids) + len(self.new_ids)

    @property
    def longest(self) -> int:
        """Tokens at the cap, prompt included."""
        return len(self.prompt_ids) + self.request.max_new_tokens

    @property
    def ended(self) -> bool:
        """True after an end token or a stop text."""
        last = bool(self.new_ids) and self.new_ids[-1] in self.end_ids
        return last or self.stopped_at is not None

    @property
    def done(self) -> bool:
        """True when nothing is left to draw."""
        return self.ended or self.remaining <= 0

    def extend(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Take over a segment's tokens up to the end, a stop or the cap."""
        for token, value in zip(ids, logprobs, strict=True):
            if self.done:
                break
            self.new_ids.append(token)
            self.logprobs.append(value)
        if self.request.stop:
            self._cut_at_stop()

    def _cut_at_stop(self) -> None:
        """Drop the tokens behind the one that completes a stop text."""
        if not self._find_stop(len(self.new_ids)):
            return
        # Fewest tokens that show a stop text; more tokens keep showing it.
        low, high = 1, len(self.new_ids)
        while low < high:
            middle = (low + high) // 2
            if self._find_stop(middle):
                high = middle
            else:
                low = middle + 1
        self.stopped_at = self._find_stop(low)[0]
        del self.new_ids[low:], self.logprobs[low:]

    def _find_stop(self, tokens: int) -> list[int]:
        """Where stop texts begin in the first ``tokens`` tokens, sorted."""
        text = self.decode(self.new_ids[:tokens])
        places = (text.find(stop) for stop in self.request.stop)
        return sorted(place for place in places if place >= 0)

    def finish(self) -> SampledText:
        """The finished response."""
        text = self.decode(self.new_ids)
        wanted = self.request.logprobs
        return SampledText(
            request=self.request,
            response=text[: self.stopped_at],
            finish_reason="stop" if self.ended else "length",
            tokens=len(self.new_ids),
            mean_logprob=sum(self.logprobs) / len(self.logprobs),
            logprobs=tuple(self.logprobs) if wanted else None,
        )


def refuse_long(request: SampleRequest) -> SampledText:
    """The empty result of a request that the context cannot hold."""
    return SampledText(
        request=request,
        response="",
        finish_reason="too_long",
        tokens=0,
        mean_logprob=0.0,
        logprobs=() if request.logprobs else None,
    )
