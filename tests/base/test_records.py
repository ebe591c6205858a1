"""Reading and writing JSONL: bad input is named, nothing on disk is lost."""

from __future__ import annotations

import errno
import json

import pytest

from helpers.base import LabError, Problem, append_records, records

GOOD = {"id": "a", "problem": "1 + 1", "answer": "2"}


def write_lines(path, *lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_round_trip(tmp_path):
    rows = [Problem(id=str(i), problem="p", answer="é") for i in range(5)]
    path = tmp_path / "rows.jsonl"
    assert records.write_records(path, rows) == 5
    assert records.read_records(path, Problem) == rows
    assert not list(tmp_path.glob("*.partial"))


def test_torn_last_line_is_dropped_and_said(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", json.dumps(GOOD), '{"id": "b", ')
    with pytest.warns(UserWarning, match="x.jsonl:2.*torn"):
        assert len(records.read_records(path, Problem)) == 1


def test_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", "{oops", json.dumps(GOOD), "")
    with pytest.raises(LabError, match=r"x\.jsonl:1 is not JSON"):
        records.read_records(path, Problem)


def test_missing_field_names_file_line_and_field(tmp_path):
    path = write_lines(
        tmp_path / "x.jsonl", json.dumps(GOOD), '{"id": "b"}', ""
    )
    with pytest.raises(LabError, match=r"x\.jsonl:2: field 'problem'"):
        records.read_records(path, Problem)


def test_not_utf8_and_missing_file(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\x00\n")
    with pytest.raises(LabError, match=r"x\.jsonl:2 is not UTF-8"):
        records.read_records(path, Problem)
    with pytest.raises(LabError, match="There is no file"):
        records.read_records(tmp_path / "none.jsonl", Problem)


def test_append_cuts_a_torn_line_first(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", json.dumps(GOOD), '{"id": "to')
    row = Problem(id="b", problem="p", answer="3")
    append_records(path, [row])
    assert [r.id for r in records.read_records(path, Problem)] == ["a", "b"]


def test_a_line_torn_inside_a_letter_is_dropped(tmp_path):
    path = tmp_path / "x.jsonl"
    torn = '{"id": "é'.encode()[:-1]
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + torn)
    with pytest.warns(UserWarning, match="x.jsonl:2.*torn"):
        assert len(records.read_records(path, Problem)) == 1


def test_append_keeps_a_whole_line_without_its_newline(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", json.dumps(GOOD))
    row = Problem(id="b", problem="p", answer="3")
    append_records(path, [row])
    assert [r.id for r in records.read_records(path, Problem)] == ["a", "b"]


def test_written_files_end_their_lines_alike_on_every_system(tmp_path):
    records.write_text(tmp_path / "x.txt", "a\nb\n")
    assert (tmp_path / "x.txt").read_bytes() == b"a\nb\n"


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    records.write_records(path, [Problem(**GOOD)])

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records.os, "replace", full)
    with pytest.raises(LabError, match="disk is full"):
        records.write_records(path, [])
    assert len(records.read_records(path, Problem)) == 1


def test_torn_json_names_the_line(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{\n "a": 1,\n')
    with pytest.raises(LabError, match="metrics.json:"):
        records.read_json(path)
