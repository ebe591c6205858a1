"""What every worker process runs: one JSON request a line, one reply.

The parent (``pool``) starts ``python -P -c "...; MODULE.main()"``. Standard
output is kept for the replies; whatever a library prints goes elsewhere.
The worker ends when its standard input ends, so it never outlives its
parent. It handles Ctrl-C by ignoring it: the parent decides who stops.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

MEMORY_LIMIT = 4 << 30
CPU_SECONDS = 60


def limit_memory(size: int) -> None:
    """Bound this process's memory in bytes, on systems that can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    except (ImportError, ValueError, OSError):
        return


def extend_cpu_limit() -> None:
    """Let an orphaned worker die of its own CPU time (POSIX).

    A computation that never releases the interpreter would not notice the
    end of its input.
    """
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


def _take_lines(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def serve(
    handle: Callable[[Any], Any],
    warm_up: Callable[[], object] | None = None,
    memory: int = MEMORY_LIMIT,
) -> None:
    """Answer requests from standard input until it is closed.

    Args:
        handle: turns the ``task`` of a request into the ``result`` of the
            reply, both JSON. What it raises is the result "error: NAME".
        warm_up: imports and first calls that no deadline should pay for.
        memory: bytes that this process may use; 0 for no bound.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if memory:
        limit_memory(memory)
    extend_cpu_limit()
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="ascii")
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_take_lines, args=(lines,), daemon=True).start()
    if warm_up is not None:
        warm_up()
    replies.write(json.dumps({"ready": True}) + "\n")
    while True:
        request = json.loads(lines.get())
        extend_cpu_limit()
        try:
            result = handle(request["task"])
        except (Exception, RecursionError, MemoryError) as error:
            result = f"error: {type(error).__name__}"
        reply = {"id": request["id"], "result": result}
        replies.write(json.dumps(reply) + "\n")
