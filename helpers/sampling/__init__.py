"""Requests in, completions out: in this process, or by vLLM servers.

The engines themselves load torch or a client when first asked for.
"""

from importlib import import_module
from typing import Any

from helpers.sampling.engine import (
    Engine,
    SampledText,
    SampleRequest,
    derive_seed,
    make_engine,
    open_engine,
)
from helpers.sampling.sample import (
    Speed,
    grade_texts,
    iter_requests,
    make_requests,
    report_unusable,
    sample_missing,
)
from helpers.sampling.store import (
    Sample,
    SampleFile,
    describe_sampling,
    load_completion,
    make_sample,
    open_samples,
)
from helpers.sampling.vllm_serve import find_command

__all__ = [
    "Engine",
    "Sample",
    "SampleFile",
    "SampleRequest",
    "SampledText",
    "Speed",
    "TransformersEngine",
    "VllmEngine",
    "derive_seed",
    "describe_sampling",
    "find_command",
    "grade_texts",
    "iter_requests",
    "load_completion",
    "make_engine",
    "make_requests",
    "make_sample",
    "open_engine",
    "open_samples",
    "report_unusable",
    "sample_missing",
]
# Loaded when first asked for: these import torch or a client.
_LAZY = {
    "TransformersEngine": "helpers.sampling.local",
    "VllmEngine": "helpers.sampling.vllm_client",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(name)
