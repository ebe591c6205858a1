"""``mathslm grade``: any file of responses, graded, counted, explained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helpers.base import REPO_ROOT, LabError
from helpers.cli import app
from helpers.grading import files as grade_file
from helpers.grading import grade as grading

OWN_CASES = Path(__file__).parents[1] / "grading_cases.jsonl"
ROWS = [
    {"id": "a", "response": r"\boxed{7}", "gold": "7", "label": True,
     "kind": "number"},
    {"id": "b", "response": r"\boxed{8}", "gold": "7", "label": True,
     "kind": "number"},
    {"id": "c", "response": r"\boxed{1/2}", "gold": "0.5", "label": False,
     "kind": "fraction"},
    {"id": "d", "response": "no idea at all", "gold": "7", "label": False},
]  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "answers.jsonl", ROWS)


def call(*arguments):
    return CliRunner().invoke(
        app, ["grade", *map(str, arguments)], env={"COLUMNS": "120"}
    )


def test_score_reasons_and_confusion_by_kind(file):
    result = call(file)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    cells = [[w for w in line if w not in ("│", "┃")] for line in lines]
    assert ["number", "2", "1", "0", "1"] in cells
    assert ["fraction", "1", "0", "1", "0"] in cells
    assert ["all", "1", "1", "0", "0"] in cells  # the row without a kind
    assert ["all", "kinds", "4", "2", "1", "1"] in cells
    assert ["right", "exact", "string", "1"] in cells
    assert "False accepts: c" in result.stdout
    assert "False rejects: b" in result.stdout
    assert "Graded right: 2/4 (50.0 %, 95 % CI " in result.stdout
    assert grading.GRADER_VERSION in result.stdout


def test_without_labels_there_is_no_confusion(tmp_path):
    rows = [{"response": "5", "gold": "5"}, {"response": "6", "gold": "5"}]
    result = call(write(tmp_path / "x.jsonl", rows))
    assert "Graded right: 1/2" in result.stdout
    assert "false accepts" not in result.stdout


def test_our_own_cases_agree_with_their_labels():
    cases = grade_file.read_cases(OWN_CASES)
    grades = grade_file.grade_cases(cases)
    kinds = grade_file.count_kinds(cases, grades)
    assert sum(count.n for count in kinds.values()) == len(cases)
    wrong = sum(count.n - count.right for count in kinds.values())
    agree = sum(
        grade.correct == case.label
        for case, grade in zip(cases, grades, strict=True)
    )
    assert wrong == len(cases) - agree
    reasons = grade_file.count_reasons(grades)
    assert sum(n for *_, n in reasons) == len(cases)


def test_long_lists_of_wrong_verdicts_are_cut(tmp_path):
    rows = [
        {"id": f"case-{i}", "response": "1", "gold": "2", "label": True}
        for i in range(25)
    ]
    result = call(write(tmp_path / "x.jsonl", rows))
    assert "case-19 and 5 more" in result.stdout
    assert "case-20" not in result.stdout


def test_graded_lines_keep_their_fields(file, tmp_path):
    target = tmp_path / "graded.jsonl"
    result = call(file, "--out", target)
    assert result.exit_code == 0 and str(target) in result.stdout
    rows = [json.loads(x) for x in target.read_text("utf-8").splitlines()]
    assert [{k: r[k] for k in ROWS[i]} for i, r in enumerate(rows)] == ROWS
    for row in rows:
        grade = grading.grade_response(row["response"], row["gold"])
        assert row["correct"] == grade.correct
        assert row["extracted"] == grade.extracted
        assert row["reason"] == grade.reason
        assert row["grader"] == grading.GRADER_VERSION


@pytest.mark.parametrize("name", ["answers.jsonl", "there.txt"])
def test_a_file_that_is_there_is_not_written_over(file, tmp_path, name):
    target = tmp_path / name
    if not target.exists():
        target.write_text("my thesis")
    before = target.read_bytes()
    result = call(file, "--out", target)
    assert result.exit_code == 2 and "is there already" in result.stderr
    assert target.read_bytes() == before


def test_other_field_names_numbers_and_line_numbers(tmp_path):
    rows = [
        {"completion": "#### 18", "answer": 18, "ok": 1},
        {"completion": None, "answer": 2.5, "ok": 0},
        {"completion": 2.5, "answer": "2.5", "ok": None},
    ]
    path = write(tmp_path / "x.jsonl", rows)
    fields = grade_file.Fields("completion", "answer", "ok")
    cases = grade_file.read_cases(path, fields)
    assert [case.id for case in cases] == ["1", "2", "3"]
    assert [case.gold for case in cases] == ["18", "2.5", "2.5"]
    assert [case.label for case in cases] == [True, False, None]
    grades = grade_file.grade_cases(cases)
    assert [grade.correct for grade in grades] == [True, False, True]
    result = call(
        path, "--response-field", "completion", "--gold-field", "answer",
        "--label-field", "ok",
    )  # fmt: skip
    assert "Graded right: 2/3" in result.stdout


GOOD = b'{"response": "5", "gold": "5"}\n'


@pytest.mark.parametrize(
    ("content", "message", "fix"),
    [
        (b"", "is empty", "'response' and 'gold'"),
        (b"\n \n", "is empty", "'response' and 'gold'"),
        (GOOD + b"{oops\n", ":2 is not JSON", "each line is one JSON object"),
        (GOOD + b'{"response": "5', ":2 is not JSON", "mend or delete"),
        (GOOD + b"\xff\n", ":2 is not UTF-8", "save the file as UTF-8"),
        (b'[{"response": "5"}]\n', ":1 is a JSON list", "one object a line"),
        (b'{"completion": "5", "gold": "5"}', "no field 'response'",
         "--response-field completion"),
        (b'{"response": "5", "answer": "5"}', "no field 'gold'",
         "--gold-field answer"),
        (b'{"respnse": "5", "gold": "5"}', "Did you mean 'respnse'",
         "--response-field NAME"),
        (b'{"response": "5", "gold": ["5"]}', "'gold' is a list", "as text"),
        (b'{"response": "5", "gold": null}', "'gold' is a NoneType",
         "as text"),
        (b'{"response": "5", "gold": "5", "label": "maybe"}',
         "neither true nor false", "--label-field"),
        (b"[" * 100_000, ":1 is not JSON", "mend or delete"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_message_with_line_and_remedy(
    tmp_path, content, message, fix
):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(LabError) as refusal:
        grade_file.read_cases(path)
    assert message in refusal.value.what and fix in refusal.value.fix
    result = call(path)
    assert result.exit_code == 2 and result.stdout == ""
    assert message in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize("name", ["nowhere.jsonl", "."])
def test_a_file_that_is_none_is_refused(tmp_path, name):
    result = call(tmp_path / name)
    assert result.exit_code == 2
    assert "There is no file" in result.stderr or "Cannot read" in (
        result.stderr
    )


def test_a_byte_order_mark_is_no_error(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD)
    assert len(grade_file.read_cases(path)) == 1


def test_hostile_text_reaches_no_terminal(tmp_path):
    rows = [
        {"id": "\x1b[2J[red]x", "kind": "\x1b]0;k", "label": True,
         "response": "\\boxed{\x1b[31m[bold]}", "gold": "\ud800"},
    ]  # fmt: skip
    path = write(tmp_path / "x.jsonl", rows)
    target = tmp_path / "out.jsonl"
    for arguments in ((), ("--explain", "\x1b[2J[red]x"), ("--out", target)):
        result = call(path, *arguments)
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.stdout
    assert "[red]x" in call(path).stdout
    (row,) = [json.loads(x) for x in target.read_text().splitlines()]
    assert row["gold"] == "\ud800"


def test_explain_shows_the_steps_of_one_case(file):
    result = call(file, "--explain", "c")
    assert result.exit_code == 0, result.output
    for words in ("cleaned", "numbers", "yes: number", "extract", "verdict"):
        assert words in result.stdout
    missing = call(file, "--explain", "e")
    assert missing.exit_code == 2 and "no case 'e'" in missing.stderr


def test_nothing_heavy_is_loaded(file):
    code = (
        "import sys\n"
        "from helpers.cli import app\n"
        "for extra in ([], ['--explain', 'c']):\n"
        "    try:\n"
        "        app(['grade', sys.argv[1], *extra])\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'scipy',\n"
        "         'statsmodels', 'sympy', 'math_verify'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        capture_output=True,
        text=True,
        cwd=REPO_ROOT,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["grade_file"])
def test_the_modules_are_commands_too(module):
    done = subprocess.run(
        [sys.executable, "-m", f"helpers.{module}", "nowhere"],
        capture_output=True,
        text=True,
        cwd=REPO_ROOT,
    )
    assert done.returncode == 2
    assert "There is no" in done.stderr
