"""Grade a file of responses from anywhere: one JSON object a line. No torch.

A line has a response and a reference answer; ``id``, ``label`` (is it truly
right?) and ``kind`` are optional. With labels the grader itself is measured:
false accepts and false rejects by kind.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from helpers.base import LabError, did_you_mean, write_text
from helpers.grading.grade import Grade, grade_many
from helpers.grading.policy import GRADER_VERSION

CHUNK = 1024  # responses graded at a time
BAR_AFTER_S = 1.0
USUAL_NAMES = {
    "response": ("completion", "output", "generation", "prediction", "text"),
    "gold": ("answer", "reference", "ground_truth", "expected", "target"),
}


@dataclass(frozen=True)
class Fields:
    """What the fields of a line are called."""

    response: str = "response"
    gold: str = "gold"
    label: str = "label"


@dataclass(frozen=True)
class Case:
    """One line: ``id`` is the line number when the line has none."""

    id: str
    response: Any
    gold: str
    label: bool | None
    kind: str
    data: dict[str, Any]


@dataclass
class KindCount:
    """Verdicts against labels of one kind, with the ids of the wrong ones."""

    n: int = 0
    accepts: list[str] = field(default_factory=list)
    rejects: list[str] = field(default_factory=list)

    @property
    def right(self) -> int:
        """Verdicts that agree with the label."""
        return self.n - len(self.accepts) - len(self.rejects)


def read_cases(path: str | Path, fields: Fields | None = None) -> list[Case]:
    """All lines of a file, checked.

    Raises:
        LabError: no such file, an empty one, or a line that is not UTF-8, no
            JSON object, lacks a field or has a label that is no yes or no.
    """
    path, fields = Path(path), fields or Fields()
    cases = [
        _make_case(data, number, path, fields)
        for number, data in _read_lines(path)
    ]
    if not cases:
        raise LabError(
            f"{path} is empty.",
            why="there is nothing to grade",
            fix="it must have one JSON object a line, with "
            f"'{fields.response}' and '{fields.gold}'",
        )
    return cases


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object; blank lines are left out."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parse_line(line, f"{path}:{number}")
    except FileNotFoundError:
        raise LabError(
            f"There is no file {path}.", fix="check the path"
        ) from None
    except OSError as error:
        raise LabError(
            f"Cannot read {path}: {error.strerror}.",
            fix="it must be a file of one JSON object a line, in UTF-8",
        ) from None


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise LabError(
            f"{where} is not UTF-8: {error.reason} at byte {error.start}.",
            fix="save the file as UTF-8",
        ) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise LabError(
            f"{where} is not JSON: {getattr(error, 'msg', error)}.",
            fix="mend or delete that line; each line is one JSON object",
        ) from None
    if not isinstance(data, dict):
        raise LabError(
            f"{where} is a JSON {type(data).__name__}, not an object.",
            fix='write one object a line, e.g. {"response": "…", "gold": "…"}',
        )
    return data


def _make_case(
    data: dict[str, Any], number: int, path: Path, fields: Fields
) -> Case:
    where = f"{path}:{number}"
    response = _take(data, fields.response, "response", where)
    gold = _take(data, fields.gold, "gold", where)
    if not isinstance(gold, str):
        raise LabError(
            f"{where}: '{fields.gold}' is a {type(gold).__name__}, not text.",
            fix="write the reference answer as text",
        )
    label = data.get(fields.label)
    if label is not None and label not in (True, False):
        raise LabError(
            f"{where}: '{fields.label}' is {json.dumps(label)[:40]}, "
            "neither true nor false.",
            why="it says whether the response is truly right",
            fix="write true or false, or name another field: --label-field",
        )
    return Case(
        id=str(data.get("id", number)),
        response=response,
        gold=gold,
        label=None if label is None else bool(label),
        kind=str(data.get("kind", "all")),
        data=data,
    )


def _take(data: dict[str, Any], name: str, role: str, where: str) -> Any:
    """A field's value; a bare number becomes its text."""
    if name in data:
        value = data[name]
        number = isinstance(value, int | float)
        plain = number and not isinstance(value, bool)
        return json.dumps(value) if plain else value
    usual = [n for n in USUAL_NAMES[role] if n in data]
    hint = f"add --{role}-field {usual[0] if usual else 'NAME'}"
    raise LabError(
        f"{where} has no field '{name}'.{did_you_mean(name, data)}",
        why="the line has: " + (", ".join(data) or "no field at all"),
        fix=hint,
    )


def grade_cases(cases: Sequence[Case]) -> list[Grade]:
    """A grade a case, in order; a bar shows when it takes over a second."""
    grades: list[Grade] = []
    with tqdm(
        total=len(cases), desc="grade", unit="response", delay=BAR_AFTER_S
    ) as bar:
        for start in range(0, len(cases), CHUNK):
            part = cases[start : start + CHUNK]
            responses = [case.response for case in part]
            grades += grade_many(responses, [case.gold for case in part])
            bar.update(len(part))
    return grades


def count_reasons(
    grades: Sequence[Grade],
) -> list[tuple[bool, str, int]]:
    """``(correct, reason, how many)``: right first, then by frequency."""
    counts = Counter((grade.correct, grade.reason) for grade in grades)
    rows = [(*key, n) for key, n in counts.items()]
    return sorted(rows, key=lambda row: (not row[0], -row[2], row[1]))


def count_kinds(
    cases: Sequence[Case], grades: Sequence[Grade]
) -> dict[str, KindCount]:
    """Verdicts against labels by kind; cases without a label are left out."""
    kinds: dict[str, KindCount] = {}
    for case, grade in zip(cases, grades, strict=True):
        if case.label is None:
            continue
        count = kinds.setdefault(case.kind, KindCount())
        count.n += 1
        if grade.correct and not case.label:
            count.accepts.append(case.id)
        elif case.label and not grade.correct:
            count.rejects.append(case.id)
    return kinds


def check_target(path: str | Path, source: str | Path) -> None:
    """Refuse to write over a file that is there.

    Raises:
        LabError: ``path`` exists.
    """
    if Path(path).exists():
        same = Path(path).resolve() == Path(source).resolve()
        raise LabError(
            f"{path} is there already.",
            why="it is the file to be graded" if same else "",
            fix="choose another name for --out",
        )


def write_graded(
    path: str | Path, cases: Sequence[Case], grades: Sequence[Grade]
) -> None:
    """Write each line with ``extracted``, ``correct``, ``reason``, ``grader``.

    The other fields of a line stay as they are.
    """
    lines = [
        json.dumps(
            case.data
            | {
                "extracted": grade.extracted,
                "correct": grade.correct,
                "reason": grade.reason,
                "grader": GRADER_VERSION,
            }
        )
        for case, grade in zip(cases, grades, strict=True)
    ]
    write_text(path, "".join(line + "\n" for line in lines))


def find_case(cases: Sequence[Case], name: str) -> Case:
    """The case with this id.

    Raises:
        LabError: there is none.
    """
    for case in cases:
        if case.id == name:
            return case
    raise LabError(
        f"There is no case '{name}'."
        + did_you_mean(name, [case.id for case in cases]),
        fix="choose an id of the file; lines without one go by their number",
    )
