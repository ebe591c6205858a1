"""The grader gives the same verdicts wherever it is called from."""

from __future__ import annotations

import ast
import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.grading import grade as grading

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300  # of the test for a process; nothing here measures time
SYMBOLIC = r"\sum_{k=1}^{3} k"
CASES: list[tuple[Any, Any, bool]] = [
    (r"\boxed{7}", "7", True),
    (r"\boxed{\frac{1}{2}}", "0.5", True),
    (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", True),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{3}", False),
    (rf"\boxed{{{SYMBOLIC}}}", "6", True),
    (rf"\boxed{{{SYMBOLIC}}}", "7", False),
    (r"\boxed{\prod_{k=1}^{4} k}", "24", True),
    (r"\boxed{9^{9^{9^9}}}", "5", False),
    (r"\boxed{__import__('os').getpid()}", "0", False),
    (r"\boxed{" + r"\sin " * 300 + "x}", "5", False),
    (r"\boxed{" + "(" * 400 + "1,2" + ")" * 400 + "}", "(1,2)", True),
    ("\ud800\x00", "5", False),
    (None, "5", False),
    ("She walks there and back and pays 42.", "42", True),
]
RESPONSES = [c[0] for c in CASES]
GOLDS = [c[1] for c in CASES]

POSIX = pytest.mark.skipif(
    os.name != "posix", reason="the system has no such thing"
)

# What a process of its own runs; it prints its verdicts as JSON.
PROGRAM = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from helpers.grading import grade as grading
grades = grading.grade_many({RESPONSES!r}, {GOLDS!r})
rows = [[g.correct, g.extracted, g.reason] for g in grades]
verdicts = json.dumps(rows)
"""


def grade_cases(workers: int | None = None) -> list[list[Any]]:
    """Grade the cases here; rows that compare with a process's JSON."""
    grades = grading.grade_many(RESPONSES, GOLDS, workers=workers)
    return [[g.correct, g.extracted, g.reason] for g in grades]


@pytest.fixture(scope="module")
def expected() -> list[list[Any]]:
    """The verdicts in the main thread, checked against the labels."""
    rows = grade_cases()
    assert [row[0] for row in rows] == [case[2] for case in CASES]
    return rows


def run_process(
    arguments: list[str], **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a process to its end; it must end well."""
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done


# ---- where from ---------------------------------------------------------


def test_many_threads_at_once(expected: list[list[Any]]) -> None:
    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(lambda _: grade_cases(), range(6)))
    assert results == [expected] * 6


def test_asyncio(expected: list[list[Any]]) -> None:
    async def grade() -> list[list[Any]]:
        return grade_cases()

    async def grade_all() -> list[Any]:
        beside = [asyncio.to_thread(grade_cases) for _ in range(3)]
        return await asyncio.gather(grade(), *beside)

    assert asyncio.run(grade_all()) == [expected] * 4


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(method: str, expected: list[list[Any]]) -> None:
    context = multiprocessing.get_context(method)
    with context.Pool(2) as processes:
        results = processes.map(grade_cases, [1, 1])
    assert results == [expected] * 2
    assert grade_cases() == expected


def test_deep_inside_other_code(expected: list[list[Any]]) -> None:
    def call(depth: int) -> list[list[Any]]:
        return call(depth - 1) if depth else grade_cases()

    assert call(300) == expected


@pytest.mark.slow
@pytest.mark.parametrize("host", ["nbclient", "papermill"])
def test_jupyter(host: str, expected: list[list[Any]], tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    code = PROGRAM + "print(verdicts)"
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code)],
        metadata={
            "kernelspec": {
                "name": "python3",
                "display_name": "Python 3",
                "language": "python",
            }
        },
    )
    if host == "nbclient":
        nbclient = pytest.importorskip("nbclient")
        nbclient.NotebookClient(notebook, timeout=PATIENCE_S).execute()
    else:
        papermill = pytest.importorskip("papermill")
        source, target = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
        nbformat.write(notebook, source)
        papermill.execute_notebook(source, target, progress_bar=False)
        notebook = nbformat.read(target, as_version=4)
    (output,) = notebook.cells[0].outputs
    assert json.loads(output.text) == expected


@pytest.mark.parametrize("flags", [["-"], ["-O", "-W", "error", "-"]])
def test_script_piped_to_python(
    flags: list[str], expected: list[list[Any]]
) -> None:
    done = run_process(
        [sys.executable, *flags], input=PROGRAM + "print(verdicts)"
    )
    assert json.loads(done.stdout) == expected


def test_another_folder(expected: list[list[Any]], tmp_path: Path) -> None:
    """Files there must not pose as libraries in the worker."""
    for name in ("json", "random", "sympy", "math_verify", "queue"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(name)\n")
    program = tmp_path / "program" / "main.py"
    program.parent.mkdir()
    program.write_text(PROGRAM + "print(verdicts)", encoding="utf-8")
    done = run_process([sys.executable, str(program)], cwd=tmp_path)
    assert json.loads(done.stdout) == expected


def test_ascii_locale(expected: list[list[Any]]) -> None:
    done = run_process(
        [sys.executable, "-c", PROGRAM + "print(verdicts)"],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
    )
    assert json.loads(done.stdout) == expected


@POSIX
@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-", "</dev/null"])
def test_closed_streams(
    closed: str, expected: list[list[Any]], tmp_path: Path
) -> None:
    target = tmp_path / "verdicts.json"
    program = tmp_path / "program.py"
    program.write_text(
        PROGRAM + f"open({str(target)!r}, 'w').write(verdicts)",
        encoding="utf-8",
    )
    command = f'exec "{sys.executable}" "{program}" {closed}'
    run_process(["sh", "-c", command])
    assert json.loads(target.read_text("utf-8")) == expected


# ---- what it leaves alone -----------------------------------------------


def test_signal_handlers_stay() -> None:
    def look() -> list[Any]:
        handlers: list[Any] = [
            signal.getsignal(number) for number in signal.valid_signals()
        ]
        if hasattr(signal, "getitimer"):
            running = signal.getitimer(signal.ITIMER_REAL)[0] > 0
            handlers.append(running)
        return handlers

    before = look()
    grade_cases()
    grading.grade_many(RESPONSES * 10, GOLDS * 10, workers=2)
    assert look() == before


def test_it_imports_no_clock_and_no_other_grader() -> None:
    """What decides may not even see them; one call may start processes."""
    folder = ROOT / "helpers" / "grading"
    forbidden = {
        "signal", "select", "fcntl", "resource", "subprocess", "time",
        "datetime", "random", "socket", "asyncio", "math_verify", "sympy",
        "latex2sympy2_extended", "torch", "numpy",
    }  # fmt: skip
    processes = {"multiprocessing", "concurrent"}
    for path in sorted(folder.glob("*.py")):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
        assert not forbidden & names, path.name
        assert path.name == "grade.py" or not processes & names, path.name
