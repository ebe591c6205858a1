"""Measure how fast, and in how much memory, a mix is decontaminated.

    python tests/benchmarks/bench_decontamination.py [--rows N] [--json FILE]

GSM8K train (for its size) and MATH-500 stand for the evaluation sets; local
copies lie in MATHSLM_DATA_DIR as ``gsm8k_train.jsonl`` and
``math500_test.json``. They are compared with 100,000 rows.

The rows are words of those problems in another order, in lengths drawn from
theirs, and one in fifty is an evaluation problem or one with other numbers:
how many must be found is known. One process; the goal is two minutes. Making
the rows is part of the time.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from helpers.base import Problem  # noqa: E402
from helpers.problems import decontaminate, load_problems  # noqa: E402
from helpers.problems.contamination import ContaminationIndex  # noqa: E402

GOAL_S = 120.0
PLANTED = 50  # one row in so many is planted
SETS = ("gsm8k-train", "math-500")


def load_sets() -> dict[str, list[Problem]]:
    """The evaluation sets, from local copies or from the hub."""
    return {name: load_problems(name) for name in SETS}


def change_numbers(text: str, rng: random.Random) -> str:
    """Every number of the text becomes another, larger one."""
    return re.sub(
        r"\d[\d,]*(?:\.\d+)?", lambda _: str(rng.randint(10**3, 10**7)), text
    )


def make_rows(
    sets: dict[str, list[Problem]], count: int, seed: int = 0
) -> Iterator[Problem]:
    """Shuffled words, and now and then a planted problem."""
    rng = random.Random(seed)
    pool = [p for problems in sets.values() for p in problems]
    words = [word for p in pool for word in p.problem.split()]
    lengths = [len(p.problem.split()) for p in pool]
    for i in range(count):
        text = " ".join(rng.choices(words, k=rng.choice(lengths)))
        name = f"row-{i}"
        if i % PLANTED == 0:
            text = rng.choice(pool).problem
            name = f"copied-{i}"
            if i % (2 * PLANTED) == 0:
                text, name = change_numbers(text, rng), f"renumbered-{i}"
        yield Problem(id=name, problem=text, answer="0")


def main() -> None:
    """Build the index, run the rows through it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sets = load_sets()
    before = peak_mb()
    clock, cpu = time.perf_counter(), time.process_time()
    index = ContaminationIndex(sets)
    built = time.perf_counter() - clock
    after = peak_mb()
    clean, report = decontaminate(make_rows(sets, options.rows), index)
    left = sum(not p.id.startswith("row-") for p in clean)
    planted = -(-options.rows // PLANTED)
    result = {
        "rows": options.rows,
        "evaluation problems": sum(index.sizes.values()),
        "index s": round(built, 2),
        "total s": round(time.perf_counter() - clock, 2),
        "cpu s": round(time.process_time() - cpu, 2),
        "index MB": round(after - before),
        "planted": planted,
        "planted and found": planted - left,
        "others reported": report.hits - (planted - left),
        "goal s": GOAL_S,
        "python": platform.python_version(),
    }
    for name, value in result.items():
        print(f"{name:>20}: {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def peak_mb() -> float:
    """Most memory this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
