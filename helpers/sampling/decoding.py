"""The two hooks that ``generate`` gives us, and the end tokens of a model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
)

from helpers.base import LabError

DONE_FRACTION = 1 / 8  # a segment ends when so many of its rows are done


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


def find_end_ids(settings: Any, tokenizer: Any) -> list[int]:
    """All token ids that end a response.

    Args:
        settings: the checkpoint's ``GenerationConfig``; None: it has none.
        tokenizer: its end token comes first.
    """
    found = [tokenizer.eos_token_id]
    listed = getattr(settings, "eos_token_id", None)
    found += listed if isinstance(listed, list) else [listed]
    ends = list(dict.fromkeys(i for i in found if i is not None))
    if not ends:
        raise LabError(
            "Neither the model nor its tokenizer names an end token.",
            fix="set eos_token in the tokenizer's configuration",
        )
    return ends
