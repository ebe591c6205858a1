"""What runs inside the worker process: math-verify on two boxed answers.

The parent (``pool``) starts ``python -c "...; main()"`` and talks JSON, one
line each way. math-verify's own time limits are off (they use signals, which
only work in the main thread of a POSIX process); the parent's deadline ends
a hanging worker from outside. sympy and math-verify are imported here only.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

MEMORY_LIMIT = 4 << 30
CPU_SECONDS = 60


def _limit_resources() -> None:
    """Bound memory, on systems that can; a bound only, never a need."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT,) * 2)
    except (ImportError, ValueError, OSError):
        return


def _extend_cpu_limit() -> None:
    """Let an orphaned worker die of its own CPU time (POSIX)."""
    try:
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(usage.ru_utime + usage.ru_stime) + CPU_SECONDS
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
    except (ImportError, ValueError, OSError):
        return


def parse_boxed(answer: str) -> list[Any]:
    """Return what math-verify reads in an answer, written in a box."""
    from math_verify import LatexExtractionConfig, parse

    return parse(
        f"\\boxed{{{answer}}}",
        extraction_config=[LatexExtractionConfig()],
        parsing_timeout=None,
    )


def _values_differ(left: Any, right: Any) -> bool:
    """Say whether two scalar expressions are surely not equal.

    math-verify rounds to six decimals, which calls 1/2004! and 1/2006!
    equal; 60 digits, and a difference relative to the size, do not.
    """
    import sympy

    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
        return False
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    point = {
        s: sympy.Rational(37 + 14 * i, 23 + 6 * i)
        for i, s in enumerate(symbols)
    }
    try:
        one = left.subs(point).evalf(60)
        two = right.subs(point).evalf(60)
        if not (one.is_number and two.is_number):
            return False
        size = max(abs(one), abs(two))
        return bool(abs(one - two) > size * sympy.Float("1e-40", 60))
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return False


def compare(gold: str, predicted: str) -> str:
    """Return "equal", "different" or "unreadable" for two answers."""
    from math_verify import verify

    left, right = parse_boxed(gold), parse_boxed(predicted)
    if not left or not right:
        return "unreadable"
    if isinstance(left[0], str) or isinstance(right[0], str):
        # Only text was read: no mathematics to compare.
        return "unreadable"
    same = verify(left, right, timeout_seconds=None)
    if same and _values_differ(left[0], right[0]):
        return "different"
    return "equal" if same else "different"


def _watch_parent(lines: list[str], ready: threading.Semaphore) -> None:
    for line in sys.stdin:
        lines.append(line)
        ready.release()
    os._exit(0)


def main() -> None:
    """Answer requests from standard input until it is closed."""
    _limit_resources()
    _extend_cpu_limit()
    protocol = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with answers
    lines: list[str] = []
    ready = threading.Semaphore(0)
    threading.Thread(
        target=_watch_parent, args=(lines, ready), daemon=True
    ).start()
    compare("1+1", "2")  # imports and warms up before the first deadline
    protocol.write(json.dumps({"ready": True}) + "\n")
    while True:
        ready.acquire()
        request = json.loads(lines.pop(0))
        _extend_cpu_limit()
        try:
            verdict = compare(request["gold"], request["predicted"])
        except (Exception, RecursionError, MemoryError) as error:
            verdict = f"error: {type(error).__name__}"
        reply = {"id": request["id"], "verdict": verdict}
        protocol.write(json.dumps(reply) + "\n")
