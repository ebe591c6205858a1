"""Problem files: what is refused, and what two of them share."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.base import LabError, Problem, write_records
from helpers.problems import load_problems
from helpers.problems.overlap import ngram_overlap


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


def make(name, text):
    return Problem(id=name, problem=text, answer="0")


def test_overlap_needs_n_words_in_a_row():
    seen = [make("r", "one two three four five six seven eight nine")]
    shares = make("p", "zero  ONE two three\nfour five six seven eight ten")
    shuffled = make("q", "one two three four nine five six seven eight")
    found = ngram_overlap([shares, shuffled], seen, n=8)
    assert [(o.problem_id, o.reference_id) for o in found] == [("p", "r")]
    assert found[0].words == "one two three four five six seven eight"


def test_short_texts_are_compared_whole():
    reference = [make("r", "What is 1 + 1?")]
    same, longer = make("p", "what is 1 + 1?"), make("q", "What is 1 + 1 + 1?")
    found = ngram_overlap([same, longer], reference)
    assert [o.problem_id for o in found] == ["p"]


words = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12)


@given(words, words, st.integers(1, 5))
def test_overlap_is_reflexive_symmetric_and_weaker_for_smaller_n(a, b, n):
    p, q = make("p", " ".join(a)), make("q", " ".join(b))
    assert ngram_overlap([p], [p], n)
    assert bool(ngram_overlap([p], [q], n)) == bool(ngram_overlap([q], [p], n))
    if min(len(a), len(b)) > n and ngram_overlap([p], [q], n + 1):
        assert ngram_overlap([p], [q], n)


def test_shipped_test_sets_share_no_whole_problem_with_training():
    from helpers.base import DATA_DIR

    if not (DATA_DIR / "pocket" / "train.jsonl").is_file():
        pytest.skip("data/pocket is not there")
    train = {p.problem for p in load_problems("pocket/train.jsonl")}
    for name in ("easy", "main", "hard", "shifted"):
        test = load_problems(f"pocket/{name}.jsonl")
        assert not train & {p.problem for p in test}
