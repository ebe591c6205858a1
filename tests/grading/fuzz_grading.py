"""Coverage-guided fuzzing of the grader (atheris, libFuzzer).

    python tests/grading/fuzz_grading.py STATS.jsonl CORPUS [libFuzzer options]
    python tests/grading/fuzz_grading.py --replay CORPUS

One input is the bytes of a response and a gold with 0xFF between them. It
goes through ``extract_answer`` and ``compare_answers``; now and then a whole
list through ``grade_many``.
Whatever is raised ends the run with a crash file, and so does an input that
uses more than :data:`CPU_DEADLINE_S` seconds of processor time.
``--replay`` runs a corpus several times and prints the memory after each.
``tests/grading/test_grading_fuzz.py`` starts this as a process.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEPARATOR = b"\xff"
MANY_EVERY = 10_000
STATS_EVERY = 500
CPU_DEADLINE_S = 2.0
STACK_FRAMES = 700  # a caller may have used some of Python's 1000
ROUNDS = 4
MAX_REPLAYED = 1_000


def encode_case(response: str, gold: str) -> bytes:
    """Return the fuzz input that stands for one case."""
    both = (response, gold)
    return SEPARATOR.join(t.encode("utf-8", "surrogatepass") for t in both)


def decode_case(data: bytes) -> tuple[str, str]:
    """Return the response and gold of one fuzz input (any bytes are one)."""
    response, _, gold = data.partition(SEPARATOR)
    return (
        response.decode("utf-8", "surrogateescape"),
        gold.decode("utf-8", "surrogateescape"),
    )


def read_memory() -> int:
    """Return the resident memory of this process in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def list_caches() -> dict[str, int]:
    """Return the size of every cache and container of the grader."""
    sizes: dict[str, int] = {}
    for name, module in list(sys.modules.items()):
        if not name.startswith("helpers.grading"):
            continue
        for key, value in vars(module).items():
            if key.startswith("__"):
                continue
            if hasattr(value, "cache_info"):
                sizes[f"{name}.{key}"] = value.cache_info().currsize
            elif isinstance(value, dict | list | set):
                sizes[f"{name}.{key}"] = len(value)
    return sizes


class TooSlow(Exception):
    """One input used up its processor time."""


def _refuse(number: int, frame: object) -> None:
    raise TooSlow(f"more than {CPU_DEADLINE_S} s of processor time")


def check_case(response: str, gold: str) -> None:
    """Extract and compare."""
    from helpers.grading import grade as grading

    answer = grading.extract_answer(response)
    assert answer is None or isinstance(answer, str)
    for predicted in {response, answer or ""}:
        verdict = grading.compare_answers(predicted, gold)
        assert verdict.correct in (True, False) and verdict.reason


class Target:
    """What is called for every input, and what it counted."""

    def __init__(self, stats: Path) -> None:
        self.stats = stats
        self.executions = self.graded = 0
        self.slowest_s = 0.0
        self.slowest = ""
        self.start = time.monotonic()
        signal.signal(signal.SIGVTALRM, _refuse)

    def __call__(self, data: bytes) -> None:
        """Check one input under a deadline of processor time."""
        response, gold = decode_case(data)
        before = time.thread_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_DEADLINE_S)
        check_case(response, gold)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        spent = time.thread_time() - before
        if spent > self.slowest_s:
            self.slowest_s, self.slowest = spent, repr((response, gold))[:600]
        self.executions += 1
        if self.executions % MANY_EVERY == 0:
            self.grade_list(response, gold)
        if self.executions % STATS_EVERY == 0:
            self.write()

    def grade_list(self, response: str, gold: str) -> None:
        """Grade the present input, odd ones, and a sum."""
        from helpers.grading import grade as grading

        responses = [response, None, b"5", r"\boxed{\sum_{k=1}^{3} k}"]
        grades = grading.grade_many(responses, [gold, response, gold, "6"])
        assert len(grades) == len(responses)
        assert all(grade.reason for grade in grades)
        self.graded += len(grades)

    def write(self) -> None:
        """Add the present counters to the file."""
        record = {
            "executions": self.executions,
            "graded": self.graded,
            "seconds": time.monotonic() - self.start,
            "slowest_cpu_s": self.slowest_s,
            "slowest": self.slowest,
            "memory": read_memory(),
            "caches": list_caches(),
        }
        with self.stats.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")


def fuzz(arguments: list[str]) -> None:
    """Instrument the grader only, then fuzz until libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["helpers.grading"]):
        from helpers.grading import grade as grading
    grading.grade_response(r"\boxed{\sum_{k=1}^{3} k}", "6")
    sys.setrecursionlimit(STACK_FRAMES)
    target = Target(Path(arguments[0]))
    atheris.Setup([sys.argv[0], *arguments[1:]], target)
    atheris.Fuzz()


def replay(corpus: Path) -> None:
    """Run all inputs several times; print memory and caches each time."""
    paths = sorted(corpus.iterdir())[:MAX_REPLAYED]  # names are hashes
    cases = [decode_case(path.read_bytes()) for path in paths]
    for _ in range(ROUNDS):
        for response, gold in cases:
            check_case(response, gold)
        gc.collect()
        record = {"memory": read_memory(), "caches": list_caches()}
        print(json.dumps({"inputs": len(cases), **record}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1] == "--replay":
        replay(Path(sys.argv[2]))
    else:
        fuzz(sys.argv[1:])
