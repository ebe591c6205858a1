"""Hostile and random input: no crash, no hang, no growth of memory.

``MATHSLM_FUZZ_SECONDS`` lengthens the coverage-guided run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_grading import decode_case, encode_case
from hostile_inputs import list_hostile
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.grading import compare_answers
from helpers.grading import grade as grading

HERE = Path(__file__).resolve().parent
SUITE = HERE.parent / "grading_cases.jsonl"
PROGRAM = HERE / "fuzz_grading.py"
FUZZ_SECONDS = int(os.environ.get("MATHSLM_FUZZ_SECONDS", "90"))
PATIENCE_S = 600  # for what is not the fuzzing itself
MIN_EXECUTIONS = 2_000
HANG_S = 60  # wall time; processor time has a shorter deadline
MEMORY_MB = 1_500
MAX_GROWTH = 16 << 20
MAX_INPUT = 2_000
MAX_SEEDS = 1_500

TOKENS = r"""
\boxed{ \fbox{ \frac{ \dfrac{ \sqrt{ \sqrt[ \text{ \left( \right) \{ \}
\begin{pmatrix} \end{pmatrix} \begin{cases} \end{cases} \pm \mp \cup \cap
\setminus \infty \pi \le \ge \ne \in \mathbb{R} \sum_{ \prod_{ \int_ \lim_{
\sin \cos \log_ \ln \circ \% \$ \, \! \cdot \times \overline{ \binom{ \lfloor
\rfloor ^{ _{ ^ _ ! !! | ( ) [ ] { } , ; : = < > + - * / & \\ \( \) \[ \] $ $$
#### <answer> </answer> <think> </think> and or x= answer Final: 1,234 0.5 50%
30^\circ 1e9 10^{ 9^{9^{9}} 52_8 1/2 x^2 (x+y)^{ n! f(x) e^{ i NaN inf
__import__ ½ √ ² ∞ − ≤ １ km cm \text{m} 12:30 hours
""".split()


@st.composite
def answers(draw: st.DrawFn) -> str:
    """Text made of the tokens that the grader knows."""
    parts = draw(st.lists(st.sampled_from([*TOKENS, " ", "7"]), max_size=30))
    text = "".join(parts)
    return rf"\boxed{{{text}}}" if draw(st.booleans()) else text


@given(answers(), answers())
@settings(max_examples=300, deadline=None)
def test_any_formula_gets_a_grade(response: str, gold: str) -> None:
    extracted = grading.extract_answer(response)
    assert extracted is None or isinstance(extracted, str)
    grade = compare_answers(response, gold)  # bare: what it raises is seen
    assert grade.correct in (True, False) and grade.reason


@given(st.binary(max_size=60))
def test_any_bytes_are_a_case(data: bytes) -> None:
    response, gold = decode_case(data)
    assert isinstance(response, str) and isinstance(gold, str)


@given(st.text(max_size=40), st.text(max_size=20))
def test_cases_survive_as_bytes(response: str, gold: str) -> None:
    assert decode_case(encode_case(response, gold)) == (response, gold)


@pytest.mark.long
def test_hostile_inputs_end_in_time() -> None:
    """All of them in one process, which must end: none may hang it."""
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from hostile_inputs import list_hostile\n"
        "from helpers.grading import grade_response\n"
        "for name, response, gold in list_hostile():\n"
        "    grade = grade_response(response, gold)\n"
        "    assert grade.reason and not grade.correct, (name, grade)\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(HERE), str(HERE.parents[1])],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr[-2_000:]


@pytest.mark.long
def test_hostile_inputs_in_processes() -> None:
    names, responses, golds = zip(*list_hostile(), strict=True)
    grades = grading.grade_many(responses, golds, workers=2)
    assert len(grades) == len(names)
    assert not [n for n, g in zip(names, grades, strict=True) if g.correct]


def test_caches_are_bounded() -> None:
    """A cache without a bound grows with every answer that is new."""
    package = importlib.import_module("helpers.grading")
    found = []
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"helpers.grading.{info.name}")
        for name, value in vars(module).items():
            if isinstance(value, functools._lru_cache_wrapper):
                found.append(name)
                bound = value.cache_parameters()["maxsize"]
                assert bound is not None and bound <= 10_000, name
    assert found, "no cache was found: does this test still look at them?"


# ---- coverage-guided ----------------------------------------------------


def write_corpus(folder: Path) -> int:
    """Write our labelled cases and the hostile inputs as fuzz inputs."""
    folder.mkdir()
    lines = SUITE.read_text("utf-8").splitlines()
    cases = [(c["response"], c["gold"]) for c in map(json.loads, lines)]
    cases += [
        (response, gold)
        for _, response, gold in list_hostile()
        if isinstance(response, str) and isinstance(gold, str)
    ]
    named = {
        hashlib.sha256(data).hexdigest()[:32]: data
        for data in (encode_case(*case) for case in cases)
        if len(data) <= MAX_INPUT
    }
    for name in sorted(named)[:MAX_SEEDS]:  # as good as any draw
        (folder / name).write_bytes(named[name])
    return len(list(folder.iterdir()))


def write_dictionary(path: Path) -> None:
    """Write the tokens in libFuzzer's form."""
    lines = [
        '"' + "".join(f"\\x{byte:02x}" for byte in token.encode()) + '"'
        for token in TOKENS
    ]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


@pytest.mark.long
@pytest.mark.timeout(FUZZ_SECONDS + 3 * PATIENCE_S)
def test_coverage_guided_fuzzing(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is only made for CPython 3.11-3.13 on Linux x86")
    corpus, artifacts = tmp_path / "corpus", tmp_path / "artifacts"
    stats, tokens = tmp_path / "stats.jsonl", tmp_path / "tokens"
    artifacts.mkdir()
    seeds = write_corpus(corpus)
    write_dictionary(tokens)
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as lines:
        done = subprocess.run(
            [
                sys.executable, str(PROGRAM), str(stats), str(corpus),
                f"-max_total_time={FUZZ_SECONDS}", f"-timeout={HANG_S}",
                f"-rss_limit_mb={MEMORY_MB}", f"-max_len={MAX_INPUT}",
                f"-dict={tokens}", f"-artifact_prefix={artifacts}/",
                "-print_final_stats=1",
            ],
            stdin=subprocess.DEVNULL, stdout=lines, stderr=lines,
            timeout=FUZZ_SECONDS + PATIENCE_S, check=False,
        )  # fmt: skip
    found = [
        (path.name, decode_case(path.read_bytes()))
        for path in artifacts.iterdir()
        if not path.name.startswith("slow-unit")
    ]
    tail = log.read_text("utf-8", errors="replace")[-3_000:]
    assert not found and done.returncode == 0, f"{found}\n{tail}"
    records = [json.loads(line) for line in stats.open(encoding="utf-8")]
    last = records[-1]
    shown = ("executions", "graded", "seconds", "slowest_cpu_s")
    print({key: last[key] for key in shown})
    assert last["executions"] >= max(MIN_EXECUTIONS, seeds)
    grown = {
        name: (records[0]["caches"].get(name, 0), size)
        for name, size in last["caches"].items()
        if size > records[0]["caches"].get(name, 0) and size > 10_000
    }
    assert not grown
    check_growth(corpus)


def check_growth(corpus: Path) -> None:
    """Run what fuzzing has found again and again: memory must not grow."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--replay", str(corpus)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    warm, last = rounds[1], rounds[-1]
    assert last["memory"] - warm["memory"] < MAX_GROWTH, rounds
    assert last["caches"] == warm["caches"]
