"""Sampling engines: the same requests in, the same kind of texts out.

An engine turns :class:`SampleRequest` into :class:`SampledText`, in any
order, as they finish. A request carries its own seed, so that a sample is
the same whatever batch it runs in and however often the run was resumed.
``open_engine(recipe, path)`` gives the engine that the recipe names around
the model in ``path``: in this process (:mod:`helpers.sampling.local`) or over
vLLM servers (:mod:`helpers.sampling.vllm_client`). Use it as a context
manager, so that memory and server processes are freed whatever happens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from helpers.base import LabError, Recipe


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


def open_engine(
    recipe: Recipe,
    path: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    log_dir: str | Path | None = None,
) -> Engine:
    """The recipe's engine around the model in ``path``.

    Args:
        recipe: its ``engine`` section says which engine and how.
        path: a model folder or hub id; None for the recipe's base model.
        adapter: a LoRA folder to sample with, unmerged.
        log_dir: where a server's output goes (default: a temporary folder).

    Raises:
        LabError: the engine is not installed or cannot start, or the model
            cannot be loaded.
    """
    if recipe.engine.name == "vllm":
        from helpers.sampling.vllm_client import open_vllm

        return open_vllm(recipe, path, adapter=adapter, log_dir=log_dir)
    from helpers.models import load_model

    model, tokenizer = load_model(recipe, path)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    return make_engine(recipe, model, tokenizer)


def make_engine(recipe: Recipe, model, tokenizer) -> Engine:
    """The in-process engine around a loaded model; imports torch."""
    from helpers.sampling.local import TransformersEngine

    return TransformersEngine(
        model,
        tokenizer,
        max_batch_size=recipe.engine.max_batch_size,
        max_batch_tokens=recipe.engine.max_batch_tokens,
    )


def derive_seed(run_seed: int, problem_id: str, sample: int) -> int:
    """A seed of its own for each (run, problem, sample), below 2**53.

    One seed for all requests would give different prompts the same random
    stream. 2**53 keeps the number exact in every JSON reader.
    """
    text = f"{run_seed}\x00{problem_id}\x00{sample}"
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**53


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
