"""Write down the tests that a verdict went through, when someone asks.

:func:`note` stands around each test of the grader. It hands the outcome on
unchanged, so the order of tests exists once, in the code that decides;
``mathslm grade --explain`` reads what was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Trace = list[tuple[str, object]]

_TRACE: ContextVar[Trace | None] = ContextVar("trace", default=None)


def note(test: str, outcome: T) -> T:
    """Return the outcome; write it down when a trace is being recorded."""
    trace = _TRACE.get()
    if trace is not None:
        trace.append((test, outcome))
    return outcome


@contextmanager
def record_trace() -> Iterator[Trace]:
    """Yield the list that gets every ``(test, outcome)`` of this thread."""
    trace: Trace = []
    token = _TRACE.set(trace)
    try:
        yield trace
    finally:
        _TRACE.reset(token)
