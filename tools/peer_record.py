"""Record what each grader says about our labelled cases, for notebook 01.

    python -m tools.peer_record

Every installed grader gets every case, one answer at a time in a process of
its own (:mod:`tools.peers`). That takes a good while, because some hang on
hostile answers until their deadline. What is finished stays in
``build/peers.jsonl``: a run that was stopped goes on from there, and after a
change of the suite only the new cases are graded by the peers. Ours is
graded anew each time.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm

from helpers.base import (
    DATA_DIR,
    REPO_ROOT,
    LabError,
    describe_machine,
    load_recipe,
    read_json,
    write_json,
)
from helpers.grading import GRADER_VERSION, Case, read_cases
from helpers.results import Proportion, proportion
from tools.peers import (
    DEADLINE_S,
    GRADERS,
    OURS,
    PeerVerdict,
    find_python,
    run_peer,
)

SUITE = REPO_ROOT / "tests" / "grading_cases.jsonl"
RECORD = DATA_DIR / "measured" / "grading" / "peers.json"
STORE = REPO_ROOT / "build" / "peers.jsonl"
COMMAND = "python -m tools.peer_record"
CHUNK = 200  # cases graded between two writes to the store
LETTERS = {
    "accepted": "1",
    "refused": "0",
    "no verdict": "n",
    "deadline": "t",
    "worker died": "d",
}
ERROR = "e"
# What decides about a grader's verdicts, beside its own package.
_PACKAGES = {
    "": (),
    "math_verify": ("math-verify", "latex2sympy2_extended", "sympy"),
    "trl": ("trl", "math-verify", "latex2sympy2_extended", "sympy"),
    "lm_eval": ("lm_eval", "math-verify", "sympy"),
}
_ASK_VERSIONS = (
    "import sys, importlib.metadata as m; "
    "print(*map(m.version, sys.argv[1:]), sep='\\n')"
)

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class PeerRecord:
    """The verdicts of all graders on the suite.

    Attributes:
        manifest: when, where, which versions, which suite.
        verdicts: ``verdicts[grader][case id]`` is a letter: "1" accepted,
            "0" refused, "n" no verdict, "t" past the deadline, "d" the
            process died, "e" an exception.
    """

    manifest: dict[str, Any]
    verdicts: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Score:
    """Verdicts against labels; a case without verdict is not accepted.

    ``false_accepts`` is a share of the false answers, ``false_rejects`` one
    of the true answers; ``hangs`` and ``errors`` are counts.
    """

    right: Proportion
    false_accepts: Proportion
    false_rejects: Proportion
    hangs: int
    errors: int


def hash_cases(cases: Sequence[Case]) -> str:
    """Short hash of what decides a measurement: text, gold and label."""
    rows = [[c.id, c.response, c.gold, c.label, c.kind] for c in cases]
    return _hash(json.dumps(rows))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def name_letter(verdict: PeerVerdict) -> str:
    """The letter of a verdict, as the record keeps it."""
    return LETTERS.get(verdict.outcome, ERROR)


def list_graders() -> list[str]:
    """Names of the graders that can run here, ours first."""
    return [name for name in GRADERS if find_python(name) is not None]


def score_grader(cases: Sequence[Case], letters: Mapping[str, str]) -> Score:
    """Measure one grader on the labelled cases that it has graded.

    Raises:
        LabError: no true or no false case is among them.
    """
    seen = [case for case in cases if case.id in letters]
    accepted = {case.id: letters[case.id] == "1" for case in seen}
    wrong = [accepted[c.id] for c in seen if not c.label]
    true = [accepted[c.id] for c in seen if c.label]
    found = [letters[case.id] for case in seen]
    return Score(
        right=proportion(sum(true) + len(wrong) - sum(wrong), len(seen)),
        false_accepts=proportion(sum(wrong), len(wrong)),
        false_rejects=proportion(len(true) - sum(true), len(true)),
        hangs=found.count("t"),
        errors=found.count("d") + found.count(ERROR),
    )


def list_right(
    cases: Sequence[Case], letters: Mapping[str, str]
) -> dict[str, bool]:
    """Whether the verdict agrees with the label, by case id."""
    return {
        c.id: (letters[c.id] == "1") == bool(c.label)
        for c in cases
        if c.id in letters
    }


def load_record(path: str | Path = RECORD) -> PeerRecord:
    """Read the recorded verdicts.

    Raises:
        LabError: there is no record.
    """
    if not Path(path).is_file():
        raise LabError(
            f"There is no {path}.",
            why="the other graders have not been run on the suite",
            fix=f"run: {COMMAND}",
        )
    data = read_json(path)
    verdicts = {
        name: {id: letters[i] for id, letters in data["verdicts"].items()}
        for i, name in enumerate(data["graders"])
    }
    return PeerRecord(data["manifest"], verdicts)


def list_changes(record: PeerRecord, cases: Sequence[Case]) -> list[str]:
    """What has changed since a record was made; empty when it holds."""
    found = []
    if record.manifest["grader"] != GRADER_VERSION:
        found.append(
            f"the grader is {GRADER_VERSION}, "
            f"the record is of {record.manifest['grader']}"
        )
    if record.manifest["suite"] != hash_cases(cases):
        found.append(
            f"the suite has changed: {len(cases)} cases now, "
            f"{len(record.verdicts[OURS])} recorded"
        )
    return found


@functools.cache
def find_versions(name: str) -> dict[str, str]:
    """Versions of the packages that decide about a grader's verdicts."""
    packages = _PACKAGES[GRADERS[name][1]]
    own = {"helpers.grading": GRADER_VERSION} if name == OURS else {}
    python = find_python(name)
    if python:
        command = [python, "-c", _ASK_VERSIONS, *packages]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True
        )
        return own | dict(zip(packages, done.stdout.split(), strict=True))
    return own | {p: importlib.metadata.version(p) for p in packages}


class Store:
    """Finished verdicts on disk, one JSON line each; made to be resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, tuple[str, float]] = {}
        if path.is_file():
            for line in path.read_text("utf-8").splitlines():
                with suppress(ValueError):  # a killed run tore its last line
                    key, letter, seconds = json.loads(line)
                    self.rows[key] = letter, seconds

    def name_key(self, name: str, case: Case, deadline_s: float) -> str:
        """One verdict: which grader, in which versions, on which texts."""
        facts = [name, find_versions(name), deadline_s]
        return _hash(json.dumps([*facts, case.response, case.gold]))

    def add(self, verdicts: Mapping[str, PeerVerdict]) -> None:
        """Write verdicts down by their keys."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            for key, verdict in verdicts.items():
                row = name_letter(verdict), round(verdict.seconds, 4)
                file.write(json.dumps([key, *row]) + "\n")
                self.rows[key] = row


def grade_suite(
    name: str, cases: Sequence[Case], store: Store, deadline_s: float
) -> tuple[dict[str, str], float]:
    """Letters by case id, and the seconds inside the grader.

    Only what the store lacks is graded; a bar shows how far it is.
    """
    keys = {c.id: store.name_key(name, c, deadline_s) for c in cases}
    old = {} if name == OURS else store.rows
    todo = [case for case in cases if keys[case.id] not in old]
    done = len(cases) - len(todo)
    with tqdm(total=len(cases), initial=done, desc=name, unit="case") as bar:
        for start in range(0, len(todo), CHUNK):
            part = todo[start : start + CHUNK]
            pairs = [(case.response, case.gold) for case in part]
            found = run_peer(name, pairs, deadline_s, progress=False)
            part_keys = [keys[case.id] for case in part]
            store.add(dict(zip(part_keys, found, strict=True)))
            bar.update(len(part))
    rows = {c.id: store.rows[keys[c.id]] for c in cases}
    return (
        {id: letter for id, (letter, _) in rows.items()},
        sum(seconds for _, seconds in rows.values()),
    )


def check_no_loss(names: Sequence[str], path: Path) -> None:
    """Refuse to replace a record by one with fewer graders.

    Raises:
        LabError: a recorded grader is not installed here.
    """
    recorded = load_record(path).verdicts if path.is_file() else {}
    missing = [name for name in recorded if name not in names]
    if missing:
        raise LabError(
            f"{', '.join(missing)} cannot run here.",
            why=f"{path.name} has its verdicts, which would be lost",
            fix="install it (see the top of tools/peers.py), or add --fewer",
        )


def thin_out(cases: Sequence[Case], most: int) -> list[Case]:
    """At most so many cases, evenly from the whole suite."""
    step = len(cases) / min(most, len(cases))
    return [cases[int(i * step)] for i in range(min(most, len(cases)))]


@app.command()
def record(
    out: Path = RECORD,
    n: Annotated[
        int | None, typer.Option(min=1, help="Only so many, for a trial.")
    ] = None,
    deadline: float = DEADLINE_S,
    store: Path = STORE,
    fewer: Annotated[
        bool, typer.Option("--fewer", help="Some graders may be missing.")
    ] = False,
) -> None:
    """Grade the suite with every installed grader; write the record."""
    if n is not None and out == RECORD:
        raise LabError(
            "A trial is no record.",
            why="the record must hold every case",
            fix="name another file: --out build/peers-trial.json",
        )
    names = list_graders()
    if not fewer:
        check_no_loss(names, out)
    cases = read_cases(SUITE)
    cases = thin_out(cases, n) if n is not None else cases
    kept, letters, seconds = Store(store), {}, {}
    for name in names:
        letters[name], seconds[name] = grade_suite(name, cases, kept, deadline)
    verdicts = {
        case.id: "".join(letters[name][case.id] for name in names)
        for case in cases
    }
    manifest = describe_machine(load_recipe("pocket")) | {
        "grader": GRADER_VERSION,
        "suite": hash_cases(cases),
        "deadline_s": deadline,
        "graders": {name: find_versions(name) for name in names},
        "seconds": {name: round(s, 1) for name, s in seconds.items()},
    }
    for key in ("recipe", "seed"):  # nothing here depends on them
        del manifest[key]
    write_json(
        out, {"manifest": manifest, "graders": names, "verdicts": verdicts}
    )
    print(f"{len(cases)} cases, {len(names)} graders: {out}")


if __name__ == "__main__":
    try:
        app()
    except LabError as error:
        raise SystemExit(f"{error}") from None
