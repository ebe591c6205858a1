"""Append rows to a JSONL file so that a kill at any moment loses at most one.

What is read back by :mod:`helpers.base.records`.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from helpers.base.errors import LabError
from helpers.base.records import disk_errors

SYNC_SECONDS = 1.0
BLOCK = 1 << 16


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
