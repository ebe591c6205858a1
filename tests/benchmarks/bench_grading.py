"""Measure the grader: accuracy by kind and answers a second.

    python tests/benchmarks/bench_grading.py [--peer] [FILE.jsonl ...]

Without files it uses the repository's own labelled cases; a file has one
object a line with ``response``, ``gold``, ``label``, ``kind`` and maybe
``contested`` (left out of the figures). ``--peer`` also runs math-verify as
it is best called (gold and bare answers written in a box, its own limits).
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from helpers import grading

OWN = Path(__file__).parents[1] / "grading_cases.jsonl"


def load_cases(paths: list[Path]) -> list[dict]:
    """Return the uncontested cases of some JSONL files."""
    cases = [
        json.loads(line)
        for path in paths
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [case for case in cases if not case.get("contested")]


def grade_with_math_verify(response: str, gold: str) -> bool:
    """Return math-verify's verdict, gold and bare answers in a box."""
    from math_verify import parse, verify

    if "boxed" not in response and len(response) < 200:
        response = rf"{response} \boxed{{{response}}}"
    left, right = parse(rf"\boxed{{{gold}}}"), parse(response)
    return bool(verify(left, right))


def report(
    name: str, cases: list[dict], grade: Callable[[dict], bool]
) -> None:
    """Grade the cases one by one and print a table by kind."""
    by_kind: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    start = time.perf_counter()
    for case in cases:
        verdict = grade(case)
        for row in (by_kind[case["kind"]], by_kind["all"]):
            row[0] += 1
            row[1] += bool(case["label"])
            row[2] += verdict == case["label"]
            row[3] += verdict and not case["label"]
            row[4] += case["label"] and not verdict
    seconds = time.perf_counter() - start
    print(f"\n{name}: {len(cases) / seconds:,.0f} answers/s")
    print(f"{'kind':14} {'n':>6} {'right %':>8}  accepted wrongly  refused")
    for kind, (n, true, right, fp, fn) in sorted(by_kind.items()):
        print(
            f"{kind:14} {n:6} {100 * right / n:8.2f}"
            f"  {fp:5} of {n - true:<6}  {fn:5} of {true}"
        )


def main() -> None:
    """Parse the options and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    cases = load_cases(options.files or [OWN])
    report(
        f"helpers.grading {grading.GRADER_VERSION}",
        cases,
        lambda c: grading.grade_response(c["response"], c["gold"]).correct,
    )
    if options.peer:
        logging.disable(logging.ERROR)  # it reports every time-out
        report(
            "math-verify, boxed",
            cases,
            lambda c: grade_with_math_verify(c["response"], c["gold"]),
        )


if __name__ == "__main__":
    main()
