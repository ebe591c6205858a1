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
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import Cache

from helpers.engines.base import SampledText, SampleRequest
from helpers.engines.decoding import EnoughDone, PickToken, find_end_ids
from helpers.engines.kv_cache import build_cache
from helpers.errors import LabError

SEGMENT_TOKENS = 16  # longest segment; bounds the room kept in the cache
ATTENTION = {"full_attention", "sliding_attention"}


@dataclass
class _Row:
    """A response in the making."""

    request: SampleRequest
    prompt_ids: list[int]
    new_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    uniforms: np.ndarray | None = None

    def start(self) -> None:
        """Forget what was drawn and prepare the row's random numbers."""
        self.new_ids, self.logprob = [], 0.0
        if self.request.temperature > 0:
            stream = np.random.default_rng(self.request.seed)
            self.uniforms = stream.random(self.request.max_new_tokens)

    @property
    def remaining(self) -> int:
        return self.request.max_new_tokens - len(self.new_ids)

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.new_ids)


class TransformersEngine:
    """Samples with a causal language model held in this process.

    Args:
        model: a transformers (or PEFT) causal model with a plain or sliding
            attention cache, on its device, in eval mode.
        tokenizer: its tokenizer.
        max_batch_size: most rows decoded at once; halved, with the rows in
            flight started again, when the device runs out of memory.
    """

    def __init__(self, model, tokenizer, *, max_batch_size: int = 64):
        self.model, self.tokenizer = model, tokenizer
        self.max_batch_size = max_batch_size
        kinds = set(getattr(model.config, "layer_types", None) or ())
        if not kinds <= ATTENTION:
            raise LabError(
                f"This model has layers of the kinds {sorted(kinds)}.",
                why="the in-process engine handles attention caches only",
                fix="choose a Llama-, Qwen- or Mistral-like model",
            )
        self.end_ids = find_end_ids(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_id = self.end_ids[0] if pad is None else pad

    def describe(self) -> dict[str, Any]:
        """Name, version and settings of the engine."""
        return {
            "name": "transformers",
            "version": transformers.__version__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "max_batch_size": self.max_batch_size,
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

        Raises:
            LabError: a prompt and its cap do not fit the model's positions,
                or one row alone does not fit the memory.
        """
        groups: dict[tuple[float, float], list[_Row]] = {}
        for row in self._encode(list(requests)):
            key = (row.request.temperature, row.request.top_p)
            groups.setdefault(key, []).append(row)
        for (temperature, top_p), rows in groups.items():
            rows.sort(key=lambda row: len(row.prompt_ids))
            warpers = LogitsProcessorList()
            if temperature not in (0.0, 1.0):
                warpers.append(TemperatureLogitsWarper(float(temperature)))
            if top_p < 1.0:
                warpers.append(TopPLogitsWarper(top_p))
            yield from self._sample_group(deque(rows), warpers)

    def _encode(self, requests: Sequence[SampleRequest]) -> list[_Row]:
        if not requests:
            return []
        prompts = list(dict.fromkeys(r.prompt for r in requests))
        encoded = self.tokenizer(prompts, add_special_tokens=False)
        ids = dict(zip(prompts, encoded["input_ids"], strict=True))
        limit = getattr(self.model.config, "max_position_embeddings", None)
        for request in requests:
            need = len(ids[request.prompt]) + request.max_new_tokens
            if not ids[request.prompt]:
                raise LabError(f"{request.problem_id}: the prompt is empty.")
            if limit and need > limit:
                raise LabError(
                    f"{request.problem_id}: {len(ids[request.prompt])} prompt "
                    f"tokens + max_new_tokens={request.max_new_tokens} is "
                    f"more than the model's {limit} positions.",
                    fix="lower max_new_tokens, or leave this problem out",
                )
        return [_Row(r, ids[r.prompt]) for r in requests]

    def _sample_group(
        self, waiting: deque[_Row], warpers: LogitsProcessorList
    ) -> Iterator[SampledText]:
        rows: list[_Row] = []
        cache: Cache | None = None
        keep: list[int] = []
        while waiting or rows:
            joining = []
            while waiting and len(rows) + len(joining) < self.max_batch_size:
                joining.append(waiting.popleft())
                joining[-1].start()
            rows += joining
            try:
                with torch.inference_mode(), self._own_generation_config():
                    cache = self._rebuild(rows, cache, keep, joining)
                    self._decode_segment(rows, cache, warpers)
            except torch.OutOfMemoryError as error:
                self._halve_batch(error)
                waiting.extendleft(reversed(rows))
                rows, cache, keep = [], None, []
                continue
            keep = [i for i, row in enumerate(rows) if not self._done(row)]
            yield from (self._finish(r) for r in rows if self._done(r))
            rows = [rows[i] for i in keep]

    def _rebuild(
        self,
        rows: Sequence[_Row],
        cache: Cache | None,
        keep: Sequence[int],
        joining: Sequence[_Row],
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
        self, rows: Sequence[_Row], cache: Cache, warpers: LogitsProcessorList
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
            self._extend(row, ids, values)

    def _stack_uniforms(self, rows: Sequence[_Row], steps: int):
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

    def _extend(self, row: _Row, ids: list[int], values: list[float]) -> None:
        """Take over a segment's tokens up to the end token or the cap."""
        for token, value in zip(ids, values, strict=True):
            if self._done(row):
                return
            row.new_ids.append(token)
            row.logprob += value

    def _done(self, row: _Row) -> bool:
        ended = bool(row.new_ids) and row.new_ids[-1] in self.end_ids
        return ended or row.remaining <= 0

    def _finish(self, row: _Row) -> SampledText:
        text = self.tokenizer.decode(
            row.new_ids,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        stopped = row.new_ids[-1] in self.end_ids
        return SampledText(
            request=row.request,
            response=text,
            finish_reason="stop" if stopped else "length",
            tokens=len(row.new_ids),
            mean_logprob=row.logprob / len(row.new_ids),
        )

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
        if self.max_batch_size == 1:
            raise LabError(
                "One response alone does not fit into the device's memory.",
                fix="lower max_new_tokens, or quantize the model",
            ) from error
        self.max_batch_size //= 2
        torch.cuda.empty_cache()
        print(f"Out of memory: going on with batches of {self.max_batch_size}")
