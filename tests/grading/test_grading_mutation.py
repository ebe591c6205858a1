"""Switch off any rule of the grader, and some labelled case fails.

See ``mutation`` for what a rule is and how it is switched off. The work is
done in a process of its own, because the instrumented grader takes the place
of the real one there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import alternatives

ROOT = Path(__file__).parents[2]
GRADER = ROOT / "helpers" / "grading"
NEEDS_FORK = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="mutants run in forked processes"
)


def run_mutation(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.grading.mutation", *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@NEEDS_FORK
@pytest.mark.long
@pytest.mark.skipif(
    not os.environ.get("MATHSLM_MUTATION"),
    reason="all mutants take long: MATHSLM_MUTATION=1 runs them, 1/4 a share",
)
@pytest.mark.timeout(3600)
def test_every_rule_is_needed_by_some_case(tmp_path: Path) -> None:
    """Only what ``open_mutants.txt`` owns up to may go unnoticed."""
    report = tmp_path / "mutants.json"
    share = os.environ["MATHSLM_MUTATION"]
    share = share if "/" in share else "1/1"
    run_mutation("--json", str(report), "--share", share)
    rows = json.loads(report.read_text(encoding="utf-8"))
    assert rows
    unneeded = [f"{r['place']}: {r['key']}" for r in rows if not r["killer"]]
    assert not unneeded, "no labelled case needs:\n" + "\n".join(unneeded)


@NEEDS_FORK
@pytest.mark.long
def test_no_exempt_mutant_is_stale() -> None:
    known = set(run_mutation("--list").splitlines())
    lists = [
        (ROOT / "tests" / "grading" / name)
        .read_text(encoding="utf-8")
        .splitlines()
        for name in ("equivalent_mutants.txt", "open_mutants.txt")
    ]
    keys = [k for lines in lists for k in lines if k and k[0] != "#"]
    assert len(keys) == len(set(keys))
    stale = [key for key in keys if key not in known]
    assert not stale, "gone from the grader, so take them off the list"


@NEEDS_FORK
@pytest.mark.long
def test_a_rule_without_a_case_is_found(tmp_path: Path) -> None:
    """The check is checked: a new rule that no case needs survives."""
    folder = tmp_path / "grading"
    shutil.copytree(GRADER, folder, ignore=shutil.ignore_patterns("*.pyc"))
    path = folder / "numbers.py"
    source = path.read_text(encoding="utf-8")
    old = "def parse_number("
    assert source.count(old) == 1
    rule = "def parse_unheard_of(text: str) -> str:\n"
    rule += '    return text.replace("unheard-of", "0")\n\n\n'
    path.write_text(source.replace(old, rule + old), encoding="utf-8")
    out = run_mutation("--folder", str(folder), "--key", "unheard")
    assert "1 survive" in out
    assert "numbers.parse_unheard_of" in out


@pytest.mark.parametrize(
    ("pattern", "left_out"),
    [
        ("a|bc", ["a", "bc"]),
        ("(?:a|b)c", ["a", "b"]),
        (r"[|]\|", []),
        (r"x(?!y)(?<=z)", ["(?!y)", "(?<=z)"]),
        ("(a(b|c)|d)", ["b", "c", "a(b|c)", "d"]),
    ],
)
def test_alternatives_of_a_pattern(pattern: str, left_out: list[str]) -> None:
    assert [gone for gone, _ in alternatives(pattern)] == left_out
