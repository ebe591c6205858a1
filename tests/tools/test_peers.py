"""Other graders: found, killed when they hang, never fatal."""

from __future__ import annotations

import pytest

from helpers.base import LabError
from tools import peers

CASES = [
    (r"\boxed{\frac{1}{2}}", "0.5"),
    ("so we have 7 and then 42", "42"),
    ("so we have 42 and then 7", "42"),
    (r"\boxed{9^{9^{9^{9}}}}", "5"),
    ("\ud800\x00", "5"),
]


def test_last_number() -> None:
    assert peers.grade_last_number("a 7, then 1,234.", "1234")
    assert peers.grade_last_number("work 9\n#### -7", "#### -7")
    assert not peers.grade_last_number("7 and 8", "7")
    assert not peers.grade_last_number("none", "none")


def test_what_is_installed_can_be_called() -> None:
    (found,) = peers.run_peer("last number", [("it is 42", "42")])
    assert found.correct
    halves = [(rf"\boxed{{\frac{{1}}{{{n}}}}}", "0.5") for n in (2, 3)]
    found = peers.run_peer("math-verify (boxed)", halves, progress=False)
    assert [verdict.correct for verdict in found] == [True, False]


@pytest.mark.long
@pytest.mark.parametrize("name", peers.GRADERS)
def test_a_hang_is_a_wrong_answer(name: str) -> None:
    if peers.find_python(name) is None:
        pytest.skip(f"{peers.GRADERS[name][1]} is not installed")
    verdicts = peers.run_peer(name, CASES, 3.0, progress=False)
    assert len(verdicts) == len(CASES)
    assert not verdicts[3].correct and not verdicts[4].correct
    if "math-verify" in name:  # its own limit is longer than ours
        assert verdicts[3].outcome == "deadline"
        assert verdicts[0].correct
    again = peers.run_peer(name, CASES[:3], 30.0, progress=False)
    assert [v.correct for v in again] == [v.correct for v in verdicts[:3]]


def test_unknown_and_absent_graders_are_refused(monkeypatch) -> None:
    with pytest.raises(LabError, match="Did you mean 'last number'"):
        peers.run_peer("last numbers", CASES)
    monkeypatch.setitem(
        peers.GRADERS, "absent", (peers.grade_ours, "no_such_package_at_all")
    )
    with pytest.raises(LabError, match="no_such_package_at_all"):
        peers.run_peer("absent", CASES)


def test_a_wrong_interpreter_is_named(monkeypatch) -> None:
    peers.find_python.cache_clear()
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv(peers.OTHER_PYTHON, "no/such/python")
    with pytest.raises(LabError, match="no/such/python"):
        peers.find_python("lm-eval minerva_math")
    peers.find_python.cache_clear()
