"""Problem files: what is refused, and what two of them share."""

import json

import pytest

from helpers.base import LabError, write_records
from helpers.problems import load_problems


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_round_trip_and_prefix(tmp_path, problems):
    path = tmp_path / "set.jsonl"
    write_records(path, problems)
    assert load_problems(path) == problems
    assert load_problems(path, 5) == problems[:5]


def test_data_dir_is_looked_in_first(tmp_path, problems, monkeypatch):
    write_records(tmp_path / "pocket" / "train.jsonl", problems[:3])
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(tmp_path))
    assert load_problems("pocket/train.jsonl") == problems[:3]


GOOD = {"id": "a", "problem": "1 + 1", "answer": "2"}
BAD = {
    "no file": None,
    "no line": (),
    "missing answer": ({"id": "a", "problem": "1 + 1"},),
    "empty answer": (GOOD | {"answer": " "},),
    "empty problem": (GOOD | {"problem": ""},),
    "one id twice": (GOOD, GOOD | {"problem": "2 + 0"}),
    "a number as answer": (GOOD | {"answer": 2},),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(tmp_path, name):
    path = tmp_path / "set.jsonl"
    if BAD[name] is not None:
        write_lines(path, *BAD[name])
    with pytest.raises(LabError, match=r"set\.jsonl"):
        load_problems(path)


def test_more_than_there_are_is_refused(tmp_path):
    path = write_lines(tmp_path / "set.jsonl", GOOD)
    with pytest.raises(LabError, match="holds 1 problems, 2 were asked"):
        load_problems(path, 2)


def test_shipped_test_sets_share_no_whole_problem_with_training():
    from helpers.base import DATA_DIR

    if not (DATA_DIR / "pocket" / "train.jsonl").is_file():
        pytest.skip("data/pocket is not there")
    train = {p.problem for p in load_problems("pocket/train.jsonl")}
    for name in ("easy", "main", "hard", "shifted"):
        test = load_problems(f"pocket/{name}.jsonl")
        assert not train & {p.problem for p in test}
