"""Sampling in this process with transformers' ``generate``.

``generate`` decodes a batch until its longest row ends; here it is called
for short segments. Between two segments rows that have finished leave the
batch and waiting ones join it, so no step is spent on padding. Samples of
one prompt share its prefill.

A row's randomness is drawn beforehand from its own seed, one uniform number
a position, and turned into a token by inverting the distribution's CDF. So a
sample does not depend on its batch or on resuming (up to rounding: matrix
products of another shape may differ in the last bit, which in 16-bit
precision now and then changes a token).

The cache is dynamic: a static one, and ``torch.compile``, were measured on a
CPU (tests/benchmarks/bench_sampling.py --static) and brought nothing there.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import Cache

from helpers.base import LabError
from helpers.models import decode_response, free_memory, is_out_of_memory
from helpers.sampling.engine import (
    SampledText,
    SampleRequest,
    find_end_ids,
    refuse_long,
)
from helpers.sampling.kv_cache import build_cache, measure_room

SEGMENT_TOKENS = 16  # longest segment; bounds the room kept in the cache
WINDOW_BATCHES = 16  # requests read ahead, in batches, to sort by length
DONE_FRACTION = 1 / 8  # a segment ends when so many of its rows are done
ATTENTION = {"full_attention", "sliding_attention"}

Decode = Callable[[Sequence[int]], str]


class TransformersEngine:
    """Samples with a causal language model held in this process.

    Args:
        model: a transformers (or PEFT) causal model with a plain or sliding
            attention cache, on its device, in eval mode.
        tokenizer: its tokenizer.
        max_batch_size: most rows decoded at once; halved, with the rows in
            flight started again, when the device runs out of memory.
        max_batch_tokens: most tokens in the cache at once (rows times the
            longest row at its cap); None measures the free memory.
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        max_batch_size: int = 64,
        max_batch_tokens: int | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.max_batch_size = max_batch_size
        self.max_batch_tokens = max_batch_tokens or measure_room(model)
        kinds = set(getattr(model.config, "layer_types", None) or ())
        if not kinds <= ATTENTION:
            raise LabError(
                f"This model has layers of the kinds {sorted(kinds)}.",
                why="the in-process engine handles attention caches only",
                fix="choose a Llama-, Qwen- or Mistral-like model",
            )
        self.end_ids = find_end_ids(model.generation_config, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_id = self.end_ids[0] if pad is None else pad

    def describe(self) -> dict[str, Any]:
        """Name, version and settings of the engine."""
        return {
            "name": "transformers",
            "version": transformers.__version__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "max_batch_size": self.max_batch_size,
            "max_batch_tokens": self.max_batch_tokens,
        }

    def close(self) -> None:
        """Let go of the model, and of the device memory it held."""
        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> TransformersEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def sample(
        self, requests: Iterable[SampleRequest]
    ) -> Iterator[SampledText]:
        """Yield one SampledText a request, as they finish.

        Requests are read ``WINDOW_BATCHES`` batches at a time and sorted by
        settings and length, so memory does not grow with their number.

        Raises:
            LabError: an empty prompt, or one row alone does not fit the
                memory.
        """
        refused: list[SampledText] = []
        rows = self._read(iter(requests), refused)
        for (temperature, top_p), group in groupby(rows, _settings):
            warpers = LogitsProcessorList()
            if temperature not in (0.0, 1.0):
                warpers.append(TemperatureLogitsWarper(float(temperature)))
            if top_p < 1.0:
                warpers.append(TopPLogitsWarper(top_p))
            for text in self._sample_group(group, warpers):
                yield text
                yield from _drain(refused)
        yield from _drain(refused)

    def _read(
        self, requests: Iterator[SampleRequest], refused: list[SampledText]
    ) -> Iterator[Row]:
        """Rows of one window after the other, the shortest prompts first."""
        window = WINDOW_BATCHES * self.max_batch_size
        while part := list(islice(requests, window)):
            rows = self._encode(part, refused)
            yield from sorted(rows, key=lambda r: (_settings(r), r.length))

    def _encode(
        self, requests: Sequence[SampleRequest], refused: list[SampledText]
    ) -> list[Row]:
        prompts = list(dict.fromkeys(r.prompt for r in requests))
        encoded = self.tokenizer(prompts, add_special_tokens=False)
        ids = dict(zip(prompts, encoded["input_ids"], strict=True))
        limit = getattr(self.model.config, "max_position_embeddings", None)
        ends, rows = frozenset(self.end_ids), []
        decode = partial(decode_response, self.tokenizer)
        for request in requests:
            row = Row(request, ids[request.prompt], ends, decode)
            if not row.prompt_ids:
                raise LabError(f"{request.problem_id}: the prompt is empty.")
            if limit and row.longest > limit:
                refused.append(refuse_long(request))
            else:
                rows.append(row)
        return rows

    def _sample_group(
        self, source: Iterator[Row], warpers: LogitsProcessorList
    ) -> Iterator[SampledText]:
        waiting: deque[Row] = deque()
        rows: list[Row] = []
        cache: Cache | None = None
        keep: list[int] = []
        while True:
            joining = self._admit(rows, waiting, source)
            rows += joining
            if not rows:
                return
            try:
                with torch.inference_mode(), self._own_generation_config():
                    cache = self._rebuild(rows, cache, keep, joining)
                    self._decode_segment(rows, cache, warpers)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._halve_batch(error)
                waiting.extendleft(reversed(rows))
                rows, cache, keep = [], None, []
                continue
            keep = [i for i, row in enumerate(rows) if not row.done]
            yield from (row.finish() for row in rows if row.done)
            rows = [rows[i] for i in keep]

    def _admit(
        self, rows: Sequence[Row], waiting: deque[Row], source: Iterator[Row]
    ) -> list[Row]:
        """Rows that may join now: at most a batch, within the token room.

        A row counts with its length at the cap, times the rows of the batch:
        the cache is as wide as its longest row.
        """
        joining: list[Row] = []
        widest = max((row.longest for row in rows), default=0)
        while (count := len(rows) + len(joining)) < self.max_batch_size:
            if not waiting:
                waiting.extend(islice(source, 1))
            if not waiting:
                break
            widest = max(widest, waiting[0].longest)
            if count and (count + 1) * widest > self.max_batch_tokens:
                break
            joining.append(waiting.popleft())
            joining[-1].start()
        return joining

    def _rebuild(
        self,
        rows: Sequence[Row],
        cache: Cache | None,
        keep: Sequence[int],
        joining: Sequence[Row],
    ) -> Cache:
        """A cache of ``rows`` without their last tokens, and some room."""
        new, join = None, []
        if joining:
            unique = list(dict.fromkeys(tuple(r.prompt_ids) for r in joining))
            place = {ids: i for i, ids in enumerate(unique)}
            join = [place[tuple(r.prompt_ids)] for r in joining]
            new = self._prefill([list(ids[:-1]) for ids in unique])
        filled = max(row.length for row in rows) - 1
        room = min(SEGMENT_TOKENS, max(row.remaining for row in rows))
        return build_cache(cache, keep, new, join, filled, room)

    def _prefill(self, ids: Sequence[list[int]]) -> Cache:
        # A prompt of one token leaves nothing to fill in: keep one pad.
        input_ids, mask = self._pad(ids, max(1, max(map(len, ids))))
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        cache = DynamicCache()
        self.model.get_decoder()(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return cache

    def _pad(self, ids: Sequence[list[int]], width: int):
        """Left-padded token ids and their mask, both ``[rows, width]``."""
        tokens = np.full((len(ids), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(ids), width), dtype=np.int64)
        for i, row in enumerate(ids):
            if row:
                tokens[i, -len(row) :] = row
                mask[i, -len(row) :] = 1
        device = self.model.device
        return (
            torch.from_numpy(tokens).to(device),
            torch.from_numpy(mask).to(device),
        )

    def _decode_segment(
        self, rows: Sequence[Row], cache: Cache, warpers: LogitsProcessorList
    ) -> None:
        device, width = self.model.device, max(row.length for row in rows)
        remaining = torch.tensor([r.remaining for r in rows], device=device)
        steps = min(SEGMENT_TOKENS, int(remaining.max()))
        picker = PickToken(warpers, self._stack_uniforms(rows, steps))
        end_ids = torch.tensor(self.end_ids, device=device)
        input_ids, mask = self._pad(
            [row.prompt_ids + row.new_ids for row in rows], width
        )
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=steps,
            logits_processor=LogitsProcessorList([picker]),
            stopping_criteria=StoppingCriteriaList(
                [EnoughDone(end_ids, remaining)]
            ),
        )
        logprobs = torch.stack(picker.logprobs, dim=1).tolist()
        for row, ids, values in zip(
            rows, output[:, width:].tolist(), logprobs, strict=True
        ):
            row.extend(ids, values)

    def _stack_uniforms(self, rows: Sequence[Row], steps: int):
        if rows[0].uniforms is None:
            return None
        table = np.zeros((len(rows), steps))
        for i, row in enumerate(rows):
            now = row.uniforms[len(row.new_ids) :][:steps]
            table[i, : len(now)] = now
        uniforms = torch.from_numpy(table)
        if self.model.device.type == "mps":
            uniforms = uniforms.float()
        return uniforms.to(self.model.device)

    @contextmanager
    def _own_generation_config(self):
        """Keep the checkpoint's own penalties and samplers out of it."""
        theirs = self.model.generation_config
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=self.end_ids,
            pad_token_id=self.pad_id,
        )
        try:
            yield
        finally:
            self.model.generation_config = theirs

    def _halve_batch(self, error: Exception) -> None:
        """Go on with half the batch after an out-of-memory error only."""
        if not is_out_of_memory(error):
            raise error
        if self.max_batch_size == 1:
            raise LabError(
                "One response alone does not fit into the device's memory.",
                fix="lower max_new_tokens, or quantize the model",
            ) from error
        self.max_batch_size //= 2
        free_memory()
        print(f"Out of memory: going on with batches of {self.max_batch_size}")


def _settings(row: Row) -> tuple[float, float]:
    return row.request.temperature, row.request.top_p


def _drain(texts: list[SampledText]) -> Iterator[SampledText]:
    while texts:
        yield texts.pop()


# --- a response in the making -------------------------------------------


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


# --- the two hooks that generate gives us --------------------------------


class PickToken(LogitsProcessor):
    """Choose one token a row and note its log p; the rest becomes -inf.

    ``uniforms`` is ``[rows, steps]``, or None for greedy. ``warpers`` are the
    library's temperature and top_p.
    """

    def __init__(self, warpers: LogitsProcessorList, uniforms):
        self.warpers, self.uniforms = warpers, uniforms
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids, scores):
        if self.uniforms is None:
            pick = scores.argmax(-1, keepdim=True)
        else:
            uniform = self.uniforms[:, len(self.logprobs)]
            pick = self._invert_cdf(self.warpers(input_ids, scores), uniform)
        chosen = scores.gather(1, pick).squeeze(1)
        self.logprobs.append(chosen - scores.logsumexp(-1))
        return torch.full_like(scores, -torch.inf).scatter_(1, pick, 0.0)

    def _invert_cdf(self, scores, uniform):
        # Double precision keeps rare tokens of a large vocabulary reachable.
        exact = torch.float32 if scores.device.type == "mps" else torch.double
        cdf = scores.softmax(-1).cumsum(-1, dtype=exact)
        target = uniform.to(exact)[:, None] * cdf[:, -1:]
        pick = torch.searchsorted(cdf, target, right=True)
        return pick.clamp_(max=scores.shape[-1] - 1)


class EnoughDone(StoppingCriteria):
    """End the segment for all rows when enough of them are done."""

    def __init__(self, end_ids: torch.Tensor, remaining: torch.Tensor):
        self.end_ids, self.remaining = end_ids, remaining
        self.done = torch.zeros_like(remaining, dtype=torch.bool)
        self.enough = max(1, int(len(remaining) * DONE_FRACTION))
        self.steps = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.steps += 1
        self.done |= torch.isin(input_ids[:, -1], self.end_ids)
        self.done |= self.remaining <= self.steps
        return self.done | (self.done.sum() >= self.enough)
