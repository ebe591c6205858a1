"""How a line of JSONL looks, and how such files are read and written safely.

A record is a pydantic model; a file is one JSON object a line, UTF-8. Reading
names file, line and remedy when something is wrong; a torn last line (a run
that was killed while writing) is dropped and said so. Rows are appended so
that a kill loses at most one, and a whole file is written under a temporary
name, so a kill never leaves half of it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from helpers.base.errors import LabError
from helpers.base.guards import check_writable

R = TypeVar("R", bound="Record")
Row = TypeVar("Row")
SYNC_SECONDS = 1.0  # so often appended rows are synced to the device
BLOCK = 1 << 16  # bytes read at once in search of the last line
# the device, a quota, or the largest file this process may write
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# ... and how libraries that are no Python say so: safetensors, torch.save
SAVE_WORDS = (
    "No space left on device",
    "File too large (os error",
    "Disk quota exceeded",
    "not enough space on the disk",
    "PytorchStreamWriter failed writing",
    "file write failed",
)


class Record(BaseModel):
    """Base of all JSONL records; extra keys are kept, missing ones refused."""

    model_config = ConfigDict(extra="allow")


class Problem(Record):
    """One problem with its gold answer."""

    id: str
    problem: str
    answer: str
    source: str = ""
    solution: str | None = None


class Completion(Record):
    """One sampled response.

    ``prompt`` is the exact text the model saw, ``response`` what it wrote
    (special tokens removed), ``tokens`` its length with the end token,
    ``finish_reason`` "stop", "length" or "too_long" (see
    the engine), ``mean_logprob`` the mean over those
    tokens of log p in nats at temperature 1, ``engine`` what sampled it and
    ``gold`` the reference answer ("" in files from before these were
    stored). The verdict is a function of the response: whoever reads
    completions grades them, see :mod:`helpers.grading.completions`.
    """

    problem_id: str
    sample: int
    prompt: str
    response: str
    finish_reason: str
    tokens: int
    mean_logprob: float
    seed: int | None
    engine: str = ""
    gold: str = ""


class SftRow(Record):
    """One supervised example: prompt text, completion text, provenance."""

    prompt: str
    completion: str
    problem_id: str
    sample: int
    run: str


class PairRow(Record):
    """One preference pair: same prompt, a right and a wrong response."""

    prompt: str
    chosen: str
    rejected: str
    problem_id: str
    run: str


def iter_records(path: str | Path, kind: type[R]) -> Iterator[R]:
    """Yield the records of a JSONL file, checked one line at a time.

    Raises:
        LabError: file missing, a line that is not UTF-8, is no JSON object
            or lacks a field. A last line without its newline that cannot be
            read is dropped with a warning instead: a killed run tore it.
    """
    for _, row in iter_located(path, kind):
        yield row


def iter_located(path: str | Path, kind: type[R]) -> Iterator[tuple[int, R]]:
    """As :func:`iter_records`, each with the offset of its line in bytes.

    One line is in memory at a time, however large the file is.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        row = kind.model_validate_json(line)
                    except ValidationError:  # say what and where
                        row = _read_line(kind, line, path, number)
                    if row is None:
                        return
                    yield offset, row
                offset += len(line)
    except FileNotFoundError:
        raise LabError(
            f"There is no file {path}.",
            fix="run the stage that writes it, or check the path",
        ) from None
    except OSError as error:
        raise LabError(
            f"Cannot read {path}: {error}",
            fix="it must be a UTF-8 file of one JSON object a line",
        ) from None


def _read_line(
    kind: type[R], line: bytes, path: Path, number: int
) -> R | None:
    """The record of a line, or None for a last line that was torn."""
    try:
        data = json.loads(line.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        if not line.endswith(b"\n"):
            warnings.warn(
                f"{path}:{number}: the last line was torn by a killed "
                "run and is dropped; it will be made again.",
                stacklevel=4,
            )
            return None
        wrong = (
            f"not UTF-8: {error.reason}"
            if isinstance(error, UnicodeDecodeError)
            else f"not JSON: {error.msg}"
        )
        raise LabError(
            f"{path}:{number} is {wrong}.",
            fix="mend or delete that line, then start again",
        ) from None
    return _validate(kind, data, path, number)


def read_record_at(path: str | Path, kind: type[R], offset: int) -> R:
    """The record whose line starts at ``offset`` (see iter_located)."""
    with open(path, "rb") as file:
        file.seek(offset)
        return kind.model_validate_json(file.readline())


def read_records(path: str | Path, kind: type[R]) -> list[R]:
    """The whole file as a list; see :func:`iter_records`."""
    return list(iter_records(path, kind))


def _validate(kind: type[R], data: Any, path: Path, number: int) -> R:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(p) for p in first["loc"]) or "the line"
        raise LabError(
            f"{path}:{number}: field '{field}': {first['msg']}.",
            why=f"a {kind.__name__} has the fields "
            + ", ".join(kind.model_fields),
            fix="mend that line, then start again",
        ) from None


def append_records(path: str | Path, rows: Iterable[BaseModel]) -> None:
    """Append rows and flush them to disk; a torn last line is cut first.

    A whole last line that only lacks its newline is kept.
    """
    with RecordWriter(path) as writer:
        for row in rows:
            writer.append(row)


class RecordWriter:
    """Append rows to a JSONL file, each on the disk when it is written.

    A context manager. A kill loses at most the row being written: every row
    is handed to the system at once, and synced to the device once a second
    and at the end. On opening, a torn last line is cut. A row that does not
    fit the disk is taken back, so the file ends in a whole line.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __enter__(self) -> RecordWriter:
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: nothing left over could be written later.
            self._file = open(self.path, "ab+", buffering=0)
            _cut_torn_line(self._file)
        self._synced = time.monotonic()
        return self

    def append(self, row: BaseModel) -> None:
        """Write one row; raises LabError when the disk is full."""
        line = memoryview(row.model_dump_json().encode() + b"\n")
        with disk_errors(self.path):
            start, sent = self._file.seek(0, os.SEEK_END), 0
            try:
                while sent < len(line):
                    sent += self._file.write(line[sent:])
            except OSError:
                self._file.truncate(start)
                raise
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            with disk_errors(self.path):
                os.fsync(self._file.fileno())
        except LabError:
            if kind is None:
                raise
        finally:
            self._file.close()


def _cut_torn_line(file: io.FileIO) -> None:
    size = file.seek(0, os.SEEK_END)
    keep = _find_last_line(file, size)
    file.seek(keep)
    last = file.read(size - keep)
    if not last:
        return
    if _is_json(last):
        file.write(b"\n")
    else:
        file.truncate(keep)
    file.seek(0, os.SEEK_END)


def _find_last_line(file: io.FileIO, size: int) -> int:
    """Where the text behind the last newline starts, read from the end."""
    end = size
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8"))
    except ValueError:
        return False
    return True


def write_records(path: str | Path, rows: Iterable[BaseModel]) -> int:
    """Replace ``path`` by these rows in one step; returns how many."""
    path, count = Path(path), 0
    with _replacing(path) as file:
        for row in rows:
            file.write(row.model_dump_json() + "\n")
            count += 1
    return count


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A file under a temporary name, renamed into place at the end."""
    temporary = path.with_name(path.name + ".partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(temporary, path)


def write_text(path: str | Path, text: str) -> None:
    """Write a file through a temporary name, then rename it into place."""
    with _replacing(Path(path)) as file:
        file.write(text)


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON, indented, in one step."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raises LabError that names file and line."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LabError(f"There is no file {path}.") from None
    except json.JSONDecodeError as error:
        raise LabError(
            f"{path}:{error.lineno} is not JSON: {error.msg}.",
            fix="delete the file; the stage that wrote it makes it again",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"Cannot read {path}: {error}") from None


def measure_size(path: Path) -> int | None:
    """Bytes of a file, or of all files in a folder; None: nothing there."""
    if path.is_dir():
        sizes = [p.stat().st_size for p in path.rglob("*") if p.is_file()]
        return sum(sizes) if sizes else None
    return path.stat().st_size if path.exists() else None


def require_writable(folder: Path) -> None:
    """LabError when this is no folder, or this user may not write there."""
    check_writable(
        str(folder),
        is_folder=folder.is_dir(),
        may_write=os.access(folder, os.W_OK | os.X_OK),
    )


def is_full(error: BaseException) -> bool:
    """A save that ran out of disk, as Python, safetensors or torch say it."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(words in str(error) for words in SAVE_WORDS)


def choose_aside(run: Path, word: str) -> Path:
    """A new folder ``old/<n>-<word>`` of a run folder; not made yet."""
    number = 1
    while (folder := run / "old" / f"{number}-{word}").exists():
        number += 1
    return folder


class disk_errors:
    """Context manager: a full or read-only disk becomes one clear message."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> bool:
        full = error is not None and is_full(error)
        if full or isinstance(error, OSError):
            said = getattr(error, "strerror", None) or error
            raise LabError(
                f"Cannot write {self.path}: {str(said).splitlines()[0]}.",
                why="the disk is full" if full else "",
                fix="free some space or choose another --run-dir; what is "
                "on disk is intact, and the same command goes on from there",
            ) from error
        return False


def is_empty(row: Completion) -> bool:
    """True when the model was asked and wrote nothing that can be seen."""
    return row.finish_reason != "too_long" and not row.response.strip()


def hash_text(text: str) -> int:
    """64 bits of BLAKE2b."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def group_samples(
    rows: Iterable[Row], problems: Sequence[Problem]
) -> dict[str, list[Row]]:
    """``{problem id: its samples in order}``, in the problems' order."""
    groups: dict[str, list[Row]] = {p.id: [] for p in problems}
    for row in rows:
        if row.problem_id in groups:
            groups[row.problem_id].append(row)
    for samples in groups.values():
        samples.sort(key=lambda row: row.sample)
    return groups
