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
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.grading import batch, get_pool
from helpers.grading import grade as grading
from helpers.grading.pool import Pool

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300  # of the test for a process; nothing here measures time
DEADLINE_S = 60.0
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
grades = grading.grade_many(
    {RESPONSES!r}, {GOLDS!r}, deadline_s={DEADLINE_S}
)
rows = [[g.correct, g.extracted, g.reason] for g in grades]
verdicts = json.dumps(rows)
"""


def grade_cases(workers: int | None = None) -> list[list[Any]]:
    """Grade the cases here; rows that compare with a process's JSON."""
    grades = grading.grade_many(
        RESPONSES, GOLDS, workers=workers, deadline_s=DEADLINE_S
    )
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


def children_of(pid: int) -> list[int]:
    """Return the ids of the living processes below one."""
    psutil = pytest.importorskip("psutil")
    return [
        child.pid
        for child in psutil.Process(pid).children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    ]


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
    """Fork too: the child must not use the pipes of its parent."""
    before = get_pool().pids()
    context = multiprocessing.get_context(method)
    with context.Pool(2) as processes:
        results = processes.map(grade_cases, [1, 1])
    assert results == [expected] * 2
    assert get_pool().pids() == before
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


# ---- workers that misbehave ---------------------------------------------


def test_dead_worker(expected: list[list[Any]]) -> None:
    grade_cases()
    psutil = pytest.importorskip("psutil")
    assert get_pool().pids()
    for pid in get_pool().pids():
        psutil.Process(pid).kill()
    assert grade_cases() == expected


@POSIX
def test_stopped_worker() -> None:
    """A stopped process is overdue, also when the pipe to it is full."""
    pool = Pool()
    try:
        for size in (1, 1_000_000):
            assert pool.ask("6", SYMBOLIC, DEADLINE_S) == "equal"
            (pid,) = pool.pids()
            os.kill(pid, signal.SIGSTOP)
            assert pool.ask("6", "1+" * size + "1", 0.5) == "deadline"
            assert pid not in pool.pids()
        assert pool.ask("6", SYMBOLIC, DEADLINE_S) == "equal"
    finally:
        pool.shut_down()


def test_worker_that_never_starts() -> None:
    pool = Pool("helpers.grading.no_such_module")
    try:
        assert pool.run(["a"] * 500, 2, 1.0) == ["worker died"] * 500
    finally:
        pool.shut_down()


def test_large_batches_survive_a_death(monkeypatch) -> None:
    """Every pair is graded, in order, though workers die on the way."""
    monkeypatch.setattr(batch, "IN_PROCESS_S", 0.0)
    monkeypatch.setattr(batch, "MIN_GAIN_S", 0.0)
    numbers = list(range(1_500))
    responses: list[Any] = [rf"\boxed{{{n}+0}}" for n in numbers]
    golds: list[Any] = [str(n + (n % 3 == 0)) for n in numbers]
    responses[700], golds[800] = None, b"800"
    killed: list[int] = []

    def kill() -> None:
        pool = get_pool(batch.MODULE)
        while not killed:
            for pid in pool.pids()[:1]:
                os.kill(pid, 9)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    grades = grading.grade_many(responses, golds, workers=2)
    thread.join()
    right = [n % 3 != 0 and n not in (700, 800) for n in numbers]
    assert [g.correct for g in grades] == right
    assert get_pool(batch.MODULE).pids()
    here = grading.grade_many(responses, golds, workers=1)
    assert here == grades


# ---- coming and going ---------------------------------------------------


def test_shut_down_leaves_no_child() -> None:
    grade_cases(workers=2)
    mine = set(get_pool().pids())
    assert mine
    grading.shut_down()
    assert not mine & set(children_of(os.getpid()))
    assert not [
        thread
        for thread in threading.enumerate()
        if "_write" in thread.name or "_read" in thread.name
    ]


def test_no_child_outlives_a_program(expected: list[list[Any]]) -> None:
    code = PROGRAM + (
        "from helpers.grading.pool import get_pool\n"
        "print(json.dumps(get_pool().pids()))\n"
    )
    done = run_process([sys.executable, "-c", code])
    psutil = pytest.importorskip("psutil")
    pids = json.loads(done.stdout)
    assert pids
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.parametrize("daemon", [True, False])
def test_exit_while_comparing(daemon: bool) -> None:
    """The interpreter ends although a thread waits for a comparison."""
    code = PROGRAM + (
        "import threading, time\n"
        "from helpers.grading.pool import get_pool\n"
        "bomb = '9^{9^{9^{9}}}'\n"
        "thread = threading.Thread(\n"
        "    target=get_pool().ask, args=('5', bomb, "
        f"{10_000.0 if daemon else 1.0}), daemon={daemon})\n"
        "thread.start(); time.sleep(0.2)\n"
        "print(get_pool().pids()[0])\n"
    )
    done = run_process([sys.executable, "-c", code])
    psutil = pytest.importorskip("psutil")
    assert not psutil.pid_exists(int(done.stdout))


def test_interrupt_leaves_the_pool_usable() -> None:
    """Ctrl-C in the middle of a comparison: raised, and nothing stale."""
    code = PROGRAM + (
        "import _thread, threading\n"
        "from helpers.grading.pool import get_pool\n"
        "pool, bomb = get_pool(), '9^{9^{9^{9}}}'\n"
        "for workers in (1, 3):\n"
        "    threading.Timer(0.3, _thread.interrupt_main).start()\n"
        "    try:\n"
        "        pool.ask_many([('5', bomb)] * 9, workers, 1000.0)\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped', flush=True)\n"
        "again = grading.grade_many(\n"
        f"    {RESPONSES!r}, {GOLDS!r}, deadline_s={DEADLINE_S})\n"
        "assert again == grades, again\n"
        "print(len(pool.pids()))\n"
    )
    done = run_process([sys.executable, "-c", code])
    assert done.stdout.split() == ["stopped", "stopped", "1"]


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
    get_pool().ask("5", "9^{9^{9^{9}}}", 0.3)
    assert look() == before
    grading.shut_down()
    assert look() == before


def test_caller_uses_nothing_of_one_system() -> None:
    """What runs in the caller imports no POSIX module and sets no signal."""
    folder = ROOT / "helpers" / "grading"
    forbidden = {"signal", "select", "fcntl", "resource", "multiprocessing"}
    for path in sorted(folder.glob("*.py")):
        if path.name in ("server.py", "symbolic.py"):  # worker's side
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [
                alias.name for alias in getattr(node, "names", [])
                if isinstance(node, ast.Import)
            ]  # fmt: skip
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            assert not forbidden & set(names), path.name
