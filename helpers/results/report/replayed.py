"""What of a run folder was taken from a record, and where that was made.

A stage that was replayed carries a note: when, on which machine and with
which code it was recorded. A report must not pass such a stage off as this
machine's, so header, manifest, merge reports and ledger come from the record
as well, as long as it is still the one that the notes name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.base import (
    LabError,
    RunDir,
    fits,
    make_note,
    read_json,
    record_folder,
)


@dataclass
class Replayed:
    """The replayed stages of a run folder.

    ``notes`` are keyed by stage; ``live`` says whether other stages were
    computed here. ``source`` is the record, None when it is gone or was made
    again since; ``manifest`` is then what the notes tell.
    """

    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    live: bool = True
    source: Path | None = None
    manifest: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """``recorded on …``, of every record that something came from."""
        return describe_notes(self.notes.values())

    def find(self, stage: str, *parts: str) -> Path | None:
        """A file of the record, which belongs to a replayed stage."""
        if self.source is None or stage not in self.notes:
            return None
        path = self.source.joinpath(*parts)
        return path if path.is_file() else None

    def read_ledger(self) -> list[dict[str, Any]]:
        """Time per phase in the record, of what was taken from it."""
        if self.source is None or not (self.source / "ledger.json").is_file():
            return []
        phases = read_json(self.source / "ledger.json")["phases"]
        return [one for one in phases if one["phase"] in self.notes]


def describe_notes(notes: Iterable[dict[str, Any]]) -> str:
    """When and where; each date and machine once."""
    told = (f"recorded on {one['date']}, {one['machine']}" for one in notes)
    return "; ".join(dict.fromkeys(told))


def read_replayed(run: RunDir) -> Replayed:
    """The notes of the folder's stages, and the record that they name."""
    out = Replayed(live=False)
    for path in sorted(run.file("stages").glob("*.json")):
        try:
            stage = read_json(path)
        except LabError:  # a damaged one is none that can be trusted
            stage = {}
        if note := stage.get("recorded"):
            out.notes[stage.get("stage", path.stem)] = note
        else:
            out.live = True
    if not out.notes:
        return Replayed()
    note = list(out.notes.values())[-1]
    out.source = _find_source(run, note)
    if out.source:
        out.manifest = read_json(out.source / "manifest.json")
    else:
        names = {"created": "date", "processor": "machine", "commit": "commit"}
        out.manifest = {k: note[v] for k, v in names.items() if v in note}
    return out


def _find_source(run: RunDir, note: dict[str, Any]) -> Path | None:
    """The tier's record, if the note is about it and no later one."""
    source = record_folder(run.recipe.name)
    if not (source / "manifest.json").is_file():
        return None
    made = make_note(read_json(source / "manifest.json"))
    same = note.items() <= made.items() and fits(source, run.recipe)
    return source if same else None
