"""Measure the grader beside others: accuracy, speed, slowest answer.

    python tests/benchmarks/bench_grading.py [FILE.jsonl ...] [--json FILE]

Every grader has one process of its own and gets one answer at a time; it
measures its own time. They take turns in blocks of cases (A B, B A, …), so
that another program on the machine slows all alike. An answer that passes
the deadline is wrong and costs the deadline.

Sets of cases:

- ``gsm8k``: the worked solutions, with their own answer and with that of the
  next problem; from MATHSLM_SHARED/benchmarks, else our cases of that kind
- ``math500``: the boxed answers, with their own gold and with the next one
- ``models``: the boxed answers of the files named math500_models
- ``all``: our labelled cases and the given files, hostile ones included
- ``hostile``: inputs made to break a grader, ours alone

``scaling`` is the throughput of ``grade_many`` by number of processes. A file
has one object a line with ``response``, ``gold``, ``label``, ``kind`` and
maybe ``contested`` (left out).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "grading")]

from hostile_inputs import list_hostile  # noqa: E402

from helpers.grading import GRADER_VERSION  # noqa: E402
from helpers.grading import grade as grading  # noqa: E402
from helpers.results import proportion  # noqa: E402
from tools.peers import (  # noqa: E402
    GRADERS,
    OURS,
    PeerVerdict,
    find_python,
    run_peer,
)

OWN = ROOT / "tests" / "grading_cases.jsonl"
SETS = ("gsm8k", "math500", "models", "all", "hostile", "scaling")
BLOCK = 60
GOALS = {"gsm8k": 10.0, "math500": 2.0, "all": 5.0}
PEER = "math-verify (boxed)"

Case = dict[str, Any]


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_cases(path: Path) -> list[Case]:
    """Return the uncontested cases of a JSONL file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [c for c in map(json.loads, lines) if not c.get("contested")]


def find_outside(part: str) -> Path | None:
    """Return a folder of outside data, or None."""
    root = os.environ.get("MATHSLM_SHARED")
    folder = (Path(root) if root else ROOT.parent / "shared") / part
    return folder if folder.is_dir() else None


def with_neighbours(rows: list[tuple[str, str]]) -> list[Case]:
    """Return each response with its own gold and with the next other one.

    "Other" means other digits, so that no two golds of equal value meet.
    """
    cases = []
    for place, (response, gold) in enumerate(rows):
        digits = re.sub(r"\D", "", gold)
        cases.append({"response": response, "gold": gold, "label": True})
        for _, other in rows[place + 1 :] + rows[:place]:
            if re.sub(r"\D", "", other) != digits:
                break
        cases.append({"response": response, "gold": other, "label": False})
    return cases


def load_set(name: str, files: list[Path]) -> list[Case]:
    """Return the cases of one set."""
    folder, given = find_outside("benchmarks"), find_outside("grading-cases")
    own = read_cases(OWN)
    if name == "gsm8k":
        if folder is None:
            return [c for c in own if c["kind"] in ("number", "extraction")]
        text = (folder / "gsm8k_test.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line)["answer"] for line in text.splitlines()]
        return with_neighbours(
            [(r, r.rsplit("####", 1)[1].strip()) for r in rows]
        )
    if name == "math500":
        if folder is None:
            return [c for c in own if c["response"].startswith("\\boxed")]
        text = (folder / "math500_test.json").read_text(encoding="utf-8")
        answers = [row["answer"] for row in json.loads(text)]
        return with_neighbours([(rf"\boxed{{{a}}}", a) for a in answers])
    if name == "models":
        path = given / "math500_models.jsonl" if given else Path("none")
        return read_cases(path) if path.is_file() else []
    return own + [case for path in files for case in read_cases(path)]


def take_turns(
    cases: list[Case], names: list[str], deadline_s: float
) -> dict[str, list[PeerVerdict]]:
    """Grade all cases with all graders, block by block."""
    verdicts: dict[str, list[PeerVerdict]] = {name: [] for name in names}
    for name in names:  # start the processes outside of the measurement
        run_peer(name, [("1", "1")], 60.0, progress=False)
    starts = range(0, len(cases), BLOCK)
    for turn, start in enumerate(tqdm(starts, desc="blocks", unit="block")):
        pairs = [
            (case["response"], case["gold"])
            for case in cases[start : start + BLOCK]
        ]
        for name in names if turn % 2 == 0 else names[::-1]:
            verdicts[name] += run_peer(name, pairs, deadline_s, progress=False)
    return verdicts


def summarize(cases: list[Case], verdicts: list[PeerVerdict]) -> Case:
    """Return the figures of one grader on one set."""
    pairs = list(zip(cases, verdicts, strict=True))
    right = sum(v.correct == c["label"] for c, v in pairs)
    seconds = [v.seconds for v in verdicts]
    slowest = max(range(len(pairs)), key=seconds.__getitem__)
    outcomes = [v.outcome for v in verdicts]
    return {
        "n": len(pairs),
        "right": right,
        "accuracy": str(proportion(right, len(pairs))),
        "labelled_true": sum(bool(c["label"]) for c in cases),
        "false_accepts": sum(v.correct and not c["label"] for c, v in pairs),
        "false_rejects": sum(c["label"] and not v.correct for c, v in pairs),
        "over_deadline": outcomes.count("deadline"),
        "died": outcomes.count("worker died"),
        "raised": sum(o.startswith("error") for o in outcomes),
        "answers_per_s": len(pairs) / sum(seconds),
        "median_ms": 1000 * statistics.median(seconds),
        "slowest_s": seconds[slowest],
        "slowest": repr(cases[slowest]["response"])[:80],
    }


def compare_graders(
    name: str, cases: list[Case], names: list[str], deadline_s: float
) -> dict[str, Case]:
    """Measure all graders on one set and print the table."""
    verdicts = take_turns(cases, names, deadline_s)
    table = {key: summarize(cases, verdicts[key]) for key in names}
    print(f"\n{name}: {len(cases)} answers")
    for key, row in table.items():
        ratio = table[OURS]["answers_per_s"] / row["answers_per_s"]
        row["ours_is_faster_by"] = ratio
        print(
            f"  {key:29} {row['answers_per_s']:9,.0f} answers/s"
            f"  ours ×{ratio:<7.1f} slowest {row['slowest_s']:6.2f} s"
            f"  over {row['over_deadline']:3}"
            f"  accepts {row['false_accepts']:4}"
            f"  rejects {row['false_rejects']:4}  {row['accuracy']}"
        )
    if name in GOALS and PEER in table:
        got = table[PEER]["ours_is_faster_by"]
        verdict = "met" if got >= GOALS[name] else "NOT met"
        print(f"  goal: {GOALS[name]:g} times {PEER}: {verdict} ({got:.1f})")
    return table


def measure_hostile() -> Case:
    """Grade the hostile inputs with ours, one by one, in this process."""
    seconds: list[tuple[float, str]] = []
    accepted = []
    for name, response, gold in tqdm(list(list_hostile()), desc="hostile"):
        start = time.perf_counter()
        grade = grading.grade_response(response, gold)
        seconds.append((time.perf_counter() - start, name))
        if grade.correct:
            accepted.append(name)
    slowest = sorted(seconds, reverse=True)[:10]
    print(f"\nhostile: {len(seconds)} inputs, accepted: {accepted or 'none'}")
    print(f"  slowest answer {slowest[0][0]:.2f} s ({slowest[0][1]})")
    over = sum(s > 2 for s, _ in seconds)
    print(f"  answers over 2 s: {over} of {len(seconds)}")
    return {
        "n": len(seconds),
        "accepted": accepted,
        "over_2_s": over,
        "slowest": slowest,
    }


def scaling_pairs() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield plain pairs, and pairs with a sum to be added up."""
    plain = [
        (rf"\boxed{{(x+{k})(x-{m})}}", f"x^2+({k}-{m})x-{k * m}")
        for k in range(2, 82)
        for m in range(1, 76)
    ]
    yield "plain", plain
    sums = [
        (rf"\boxed{{\sum_{{k=1}}^{{{n}}} k^{p}}}",
         str(sum(k**p for k in range(1, n + 1))))
        for n in range(3, 103)
        for p in range(2, 6)
    ]  # fmt: skip
    yield "sums", sums


def measure_scaling(rounds: int) -> dict[str, Any]:
    """Measure ``grade_many`` with 1 … cores processes, rounds in turn.

    The caller's own processor time with several processes, over that of one
    answer, says how many processes it could keep busy.
    """
    result: dict[str, Any] = {}
    counts = sorted({1, *(2**i for i in range(1, 8)), count_cores()})
    counts = [c for c in counts if c <= count_cores()]
    for name, pairs in scaling_pairs():
        responses, golds = map(list, zip(*pairs, strict=True))
        rates: dict[int, list[float]] = {count: [] for count in counts}
        own: dict[int, list[float]] = {count: [] for count in counts}
        for turn in range(rounds + 1):
            for count in counts:
                start, used = time.perf_counter(), time.process_time()
                grades = grading.grade_many(responses, golds, workers=count)
                spent = time.perf_counter() - start
                used = time.process_time() - used
                assert all(grade.correct for grade in grades)
                if turn:  # the first round warms up
                    rates[count].append(len(pairs) / spent)
                    own[count].append(1e6 * used / len(pairs))
        result[name] = {"pairs": len(pairs)}
        print(f"\nscaling, {name}: {len(pairs)} pairs")
        one = statistics.median(rates[1])
        for count in counts:
            rate = statistics.median(rates[count])
            micro = statistics.median(own[count])
            print(
                f"  {count:3} processes {rate:9,.0f} answers/s"
                f"  ×{rate / one:.2f}"
                f"  caller's processor time {micro:7.0f} µs an answer"
            )
            result[name][str(count)] = {
                "answers_per_s": rate, "to_one": rate / one,
                "caller_cpu_us": micro,
            }  # fmt: skip
    return result


def describe_run(options: argparse.Namespace) -> Case:
    """Return where, when and with what this was measured."""
    packages = ("math-verify", "sympy", "latex2sympy2_extended", "trl")
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "grader_version": GRADER_VERSION,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": count_cores(),
        "load_at_start": load,
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "deadline_s": options.deadline,
        "files": [path.name for path in options.files],
    }


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument(
        "--peers", nargs="*", default=None, help="default: all installed"
    )
    parser.add_argument("--deadline", type=float, default=5.0)
    parser.add_argument("--cases", type=int, help="at most so many in a set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, print the tables, write the JSON."""
    options = parse_options()
    result: dict[str, Any] = {"manifest": describe_run(options), "sets": {}}
    names = [OURS]
    for name in GRADERS if options.peers is None else options.peers:
        if name != OURS and find_python(name) is not None:
            names.append(name)
    for name in options.sets:
        if name == "hostile":
            result["hostile"] = measure_hostile()
        elif name == "scaling":
            result["scaling"] = measure_scaling(options.rounds)
        elif cases := load_set(name, options.files)[: options.cases]:
            result["sets"][name] = compare_graders(
                name, cases, names, options.deadline
            )
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1), "utf-8")
        print(f"\nwritten: {options.json}")


if __name__ == "__main__":
    main()
