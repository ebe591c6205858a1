"""Memory of the sampler while a million requests stream through it.

``python tests/benchmarks/bench_memory.py --out bench_memory.json``

The engine is simulated (its texts follow from the requests), so the numbers
are about our side alone: requests made as they are asked for, grading, one
write a completion, the progress bar. After the stream the file is opened
again, to see what going on with so many samples costs.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import psutil

from helpers.base import write_json
from helpers.sampling import (
    SampleFile,
    SampleRequest,
    derive_seed,
    sample_missing,
)
from helpers.sampling.engine import SampledText

SAMPLES = 4  # of each problem
POINTS = 10


class Sums(Mapping[str, str]):
    """Gold answers of problems ``"0"``, ``"1"``, …, none of them stored."""

    def __getitem__(self, problem_id: str) -> str:
        return str(int(problem_id) + 7)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class Simulated:
    """Reads ``window`` requests, answers them, reads on."""

    tokenizer = None

    def __init__(self, window: int, points: list[int]):
        self.window, self.points = window, points
        self.memory: list[dict[str, float]] = []
        self.start = time.perf_counter()

    def describe(self) -> dict[str, str]:
        """Its name."""
        return {"name": "simulated"}

    def sample(self, requests) -> Iterator[SampledText]:
        """Yield texts; note the memory at the points."""
        source, given = iter(requests), 0
        while held := list(islice(source, self.window)):
            for text in map(answer, held):
                yield text
                given += 1
                if given in self.points:
                    self.note(given)

    def note(self, done: int) -> None:
        """Remember the memory of this process."""
        seconds = time.perf_counter() - self.start
        self.memory.append({"done": done, "rss_mb": rss_mb(), "s": seconds})


def rss_mb() -> float:
    """Resident memory of this process in MB."""
    return psutil.Process().memory_info().rss / 2**20


def answer(request: SampleRequest) -> SampledText:
    """A tiny text; every third one is wrong."""
    value = int(request.problem_id) + 7 + (request.seed % 3 == 0)
    return SampledText(request, f"\\boxed{{{value}}}", "stop", 6, -0.1)


def iter_requests(count: int) -> Iterator[SampleRequest]:
    """``count`` requests, ``SAMPLES`` of each problem."""
    for number in range(count):
        problem, sample = str(number // SAMPLES), number % SAMPLES
        yield SampleRequest(
            problem_id=problem,
            sample=sample,
            prompt=f"What is {problem} + 7?",
            seed=derive_seed(0, problem, sample),
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=16,
        )


def parse_options() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="default: a temporary")
    parser.add_argument("--out", type=Path, default=Path("build/memory.json"))
    return parser.parse_args()


def main() -> None:
    """Stream, note the memory, open the file again, write the JSON."""
    options = parse_options()
    count = options.requests
    points = [count * (i + 1) // POINTS for i in range(POINTS)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, before = Path(folder) / "samples.jsonl", rss_mb()
        engine = Simulated(options.window, points)
        sample_missing(
            engine,
            iter_requests(count),
            SampleFile(path),
            Sums(),
            title="stream",
            total=count,
            n=SAMPLES,
        )
        size, clock = path.stat().st_size / 2**20, time.perf_counter()
        again = SampleFile(path)
        reading = time.perf_counter() - clock
    used = [point["rss_mb"] for point in engine.memory]
    result = {
        "requests": count,
        "window": options.window,
        "rss_before_mb": before,
        "memory": engine.memory,
        "growth_mb": used[-1] - used[0],
        "requests_per_second": count / engine.memory[-1]["s"],
        "file_mb": size,
        "rows_again": again.rows,
        "reading_again_s": reading,
        "rss_again_mb": rss_mb(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    write_json(options.out, result)
    for point in engine.memory:
        print(f"{point['done']:>9,} {point['rss_mb']:7.1f} MB")
    print(f"growth {result['growth_mb']:.1f} MB, written: {options.out}")


if __name__ == "__main__":
    main()
