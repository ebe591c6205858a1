"""The recorded verdicts of other graders: present, whole and up to date."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from helpers.base import LabError
from helpers.grading import GRADER_VERSION, Case, read_cases
from tools import peer_record
from tools.peer_record import (
    COMMAND,
    RECORD,
    SUITE,
    Store,
    list_changes,
    list_right,
    load_record,
    name_letter,
    score_grader,
    thin_out,
)
from tools.peers import GRADERS, OURS, PeerVerdict

REMEDY = f"make the record again, on a quiet machine: {COMMAND}"


def make_case(name, label, response="5", gold="5"):
    return Case(name, response, gold, label, "kind", {"id": name})


FOUR = [
    make_case("a", True),
    make_case("b", True),
    make_case("c", False),
    make_case("d", False),
]


# --- the record that notebook 01 shows ------------------------------------


def test_the_record_is_of_this_suite_and_this_grader():
    assert RECORD.is_file(), REMEDY
    changes = list_changes(load_record(), read_cases(SUITE))
    assert not changes, f"{changes}; {REMEDY}"


def test_the_record_is_whole():
    assert RECORD.is_file(), REMEDY
    record, cases = load_record(), read_cases(SUITE)
    assert OURS in record.verdicts and len(record.verdicts) >= 4, REMEDY
    assert set(record.verdicts) <= set(GRADERS), REMEDY
    known = {*peer_record.LETTERS.values(), peer_record.ERROR}
    for name, letters in record.verdicts.items():
        assert letters.keys() == {case.id for case in cases}, (name, REMEDY)
        assert set(letters.values()) <= known, name


def test_ours_is_recorded_as_the_tests_of_the_grader_demand_it():
    """Every labelled case is judged as its label says."""
    assert RECORD.is_file(), REMEDY
    right = list_right(read_cases(SUITE), load_record().verdicts[OURS])
    assert [id for id, agrees in right.items() if not agrees] == [], REMEDY


# --- how it is made --------------------------------------------------------


def test_a_case_without_verdict_is_not_accepted():
    letters = {"a": "1", "b": "t", "c": "1", "d": "e"}
    score = score_grader(FOUR, letters)
    assert (score.right.k, score.right.n) == (2, 4)
    assert (score.false_accepts.k, score.false_accepts.n) == (1, 2)
    assert (score.false_rejects.k, score.false_rejects.n) == (1, 2)
    assert (score.hangs, score.errors) == (1, 1)
    right = list_right(FOUR, letters)
    assert right == {"a": True, "b": False, "c": False, "d": True}


def test_only_graded_cases_are_scored():
    score = score_grader(FOUR, {"a": "1", "c": "0"})
    assert (score.right.k, score.right.n) == (2, 2)


@pytest.mark.parametrize(
    ("outcome", "letter"),
    [
        ("accepted", "1"),
        ("refused", "0"),
        ("no verdict", "n"),
        ("deadline", "t"),
        ("worker died", "d"),
        ("error: ValueError", "e"),
    ],
)
def test_letters(outcome, letter):
    assert name_letter(PeerVerdict(False, outcome, 0.0)) == letter


def test_a_change_of_suite_or_grader_is_seen():
    manifest = {
        "grader": GRADER_VERSION,
        "suite": peer_record.hash_cases(FOUR),
    }
    letters = {OURS: dict.fromkeys("abcd", "1")}
    record = peer_record.PeerRecord(manifest, letters)
    assert list_changes(record, FOUR) == []
    other = [*FOUR[:3], make_case("d", True)]
    assert "suite" in list_changes(record, other)[0]
    manifest["grader"] = "0.1"
    assert "0.1" in list_changes(record, FOUR)[0]


def test_the_store_resumes_and_survives_a_torn_line(tmp_path):
    store = Store(tmp_path / "new" / "store.jsonl")
    one, two = (store.name_key("last number", c, 1.0) for c in FOUR[:2])
    assert one == two, "the same texts are graded once"
    key = store.name_key("last number", make_case("e", True, "6"), 1.0)
    assert key not in (one, store.name_key("last number", FOUR[0], 2.0))
    store.add({one: PeerVerdict(True, "accepted", 0.5)})
    with open(store.path, "a") as file:
        file.write('["torn", "1')
    assert Store(store.path).rows == {one: ("1", 0.5)}


def test_thin_out_keeps_order_and_spreads():
    cases = [make_case(str(i), True) for i in range(10)]
    assert [c.id for c in thin_out(cases, 5)] == ["0", "2", "4", "6", "8"]
    assert thin_out(cases, 99) == cases


def test_no_record_says_how_to_make_one(tmp_path):
    with pytest.raises(LabError, match=COMMAND):
        load_record(tmp_path / "none.json")


def test_a_trial_does_not_replace_the_record():
    done = CliRunner().invoke(peer_record.app, ["--n", "5"])
    assert isinstance(done.exception, LabError)


def run_trial(monkeypatch, tmp_path, *options):
    """A recording of four cases with the two graders that start at once."""
    monkeypatch.setattr(
        peer_record, "list_graders", lambda: [OURS, "last number"]
    )
    out, store = tmp_path / "out.json", tmp_path / "store.jsonl"
    arguments = ["--n", "4", "--out", str(out), "--store", str(store)]
    done = CliRunner().invoke(peer_record.app, [*arguments, *options])
    assert done.exception is None, done.output
    return out, store


def test_a_recording_is_read_back_and_goes_on(monkeypatch, tmp_path):
    out, store = run_trial(monkeypatch, tmp_path)
    record, lines = load_record(out), store.read_text().splitlines()
    cases = thin_out(read_cases(SUITE), 4)
    assert list_changes(record, cases) == []
    assert all(list_right(cases, record.verdicts[OURS]).values())
    assert len(lines) == 8
    run_trial(monkeypatch, tmp_path)
    again = store.read_text().splitlines()
    assert len(again) == 12, "ours is graded anew, the peer is not"
    assert load_record(out).verdicts == record.verdicts


def test_a_recorded_grader_is_not_lost(tmp_path):
    path = tmp_path / "out.json"
    data = {"graders": ["gone"], "manifest": {}, "verdicts": {"a": "1"}}
    path.write_text(json.dumps(data))
    with pytest.raises(LabError, match="gone cannot run here"):
        peer_record.check_no_loss([OURS], path)
    peer_record.check_no_loss([OURS, "gone"], path)
