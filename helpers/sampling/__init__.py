"""sampling"""

from helpers.sampling.engine import make_engine, open_engine
from helpers.sampling.placement import find_command
from helpers.sampling.protocol import Engine, SampleRequest, derive_seed
from helpers.sampling.sample import (
    Speed,
    grade_texts,
    iter_requests,
    make_requests,
    sample_missing,
    say_unusable,
)
from helpers.sampling.sample_file import (
    Sample,
    SampleFile,
    iter_samples,
    load_completion,
    make_sample,
)
from helpers.sampling.sample_store import describe_sampling, open_samples

__all__ = [
    "Engine",
    "Sample",
    "SampleFile",
    "SampleRequest",
    "Speed",
    "derive_seed",
    "describe_sampling",
    "find_command",
    "grade_texts",
    "iter_requests",
    "iter_samples",
    "load_completion",
    "make_engine",
    "make_requests",
    "make_sample",
    "open_engine",
    "open_samples",
    "sample_missing",
    "say_unusable",
]
