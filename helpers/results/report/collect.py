"""Read a run folder for the report; whatever is absent is named, not fatal."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from helpers.base import LabError, Record, RunDir, Tag, read_json, read_records
from helpers.grading import GradedCompletion
from helpers.results.plots import recorded_on
from helpers.results.report.page import Block, Section, escape, write_code
from helpers.results.report.replayed import (
    Replayed,
    describe_notes,
    read_replayed,
)
from helpers.results.scores import (
    list_temperatures,
    load_samples,
    read_graded_file,
    result_name,
)

T = TypeVar("T")
MAIN_TAGS = ("base", "sft", "dpo")
Groups = dict[str, list[GradedCompletion]]


@dataclass
class Gap:
    """A part of the report that is not there, and what makes it."""

    what: str
    command: str = ""
    why: str = ""


@dataclass
class Results:
    """All that the report shows of one run folder.

    ``evals[tag][benchmark]`` are the graded completions, one a problem;
    ``sampled[benchmark, temperature][tag]`` are several samples a problem;
    ``logs`` and ``merges`` are keyed by tag. ``gaps`` names what is missing.
    ``manifest`` is this machine's; what was replayed has that of its record.
    """

    run: RunDir
    evals: dict[str, dict[str, list[GradedCompletion]]] = field(
        default_factory=dict
    )
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    merges: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[GradedCompletion] = field(default_factory=list)
    sampled: dict[tuple[str, float], dict[str, Groups]] = field(
        default_factory=dict
    )
    metrics: dict[str, Any] = field(default_factory=dict)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    replayed: Replayed = field(default_factory=Replayed)
    gaps: list[Gap] = field(default_factory=list)

    def command(self, text: str) -> str:
        """A command line that continues this run."""
        return f"mathslm {text} --run-dir {self.run.path}"

    def provenance(self, *stages: str) -> str:
        """When and where stages ran; says so when they were replayed."""
        notes = self.replayed.notes
        told = (
            f"{describe_notes([notes[stage]])} (replayed)"
            if stage in notes
            else recorded_on(self.manifest)
            for stage in stages
        )
        return "\n".join(dict.fromkeys(told))

    def manifest_of(self, stage: str) -> dict[str, Any]:
        """The manifest of the run that made a stage."""
        taken = stage in self.replayed.notes
        return self.replayed.manifest if taken else self.manifest

    def describe_origin(self) -> str:
        """When and where the run was made, for the head of the page."""
        own = [str(self.manifest.get("processor") or "")]
        if self.manifest.get("created"):
            own.insert(0, f"run of {self.manifest['created'][:10]}")
        if self.replayed.notes:
            told = self.replayed.describe()
            live = self.replayed.live
            own = [*own, f"replayed stages: {told}"] if live else [told]
        return " · ".join(part for part in own if part)

    def list_sampled(self) -> list[tuple[str, float]]:
        """The benchmarks and temperatures of several samples, in order."""
        names = [b.name for b in self.run.recipe.evaluate.benchmarks]
        return sorted(self.sampled, key=lambda key: (names.index(key[0]), key))

    def list_gaps(self) -> Section:
        """What is missing, each with the command that makes it."""
        lines = [
            f"- {escape(gap.what)}"
            + (f" ({escape(gap.why)})" if gap.why else "")
            + (f": {write_code(gap.command)}" if gap.command else "")
            for gap in self.gaps
        ]
        return Section("gaps", "Missing parts", [Block("\n".join(lines))])

    def gap(self, what: str, command: str = "", why: str = "") -> None:
        """Note a missing part once."""
        text = self.command(command) if command else ""
        self.gaps.append(Gap(what, text, why))


def read_results(run: RunDir) -> Results:
    """Everything the run folder holds, and the list of what it lacks."""
    out = Results(run)
    out.manifest = (
        _try(out, lambda: read_json(run.file("manifest.json"))) or {}
    )
    out.replayed = _try(out, lambda: read_replayed(run)) or Replayed()
    out.metrics = _try(out, run.metrics) or {}
    _read_samples(out)
    for tag in _tags(run):
        _read_evals(out, tag)
        _read_sampled(out, tag)
    _read_logs(out)
    _read_merges(out)
    out.ledger = _try(out, run.ledger) or []
    out.ledger = out.ledger or _try(out, out.replayed.read_ledger) or []
    if not out.ledger:
        out.gap("the ledger of time per phase", "course")
    return out


def _tags(run: RunDir) -> list[str]:
    """base, sft, dpo, then every other model that was evaluated."""
    folder = run.file("eval")
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    return [*MAIN_TAGS, *(name for name in found if name not in MAIN_TAGS)]


def _read_samples(out: Results) -> None:
    name = "samples/distill.jsonl"
    if not out.run.file(name).is_file():
        out.gap("the harvest of self-distillation", "distill")
        return
    out.samples = _try(out, lambda: read_graded_file(out.run, name)) or []


def _read_evals(out: Results, tag: str) -> None:
    for bench in out.run.recipe.evaluate.benchmarks:
        name = result_name(tag, bench.name)
        command = f"evaluate --model {tag} --benchmark {bench.name}"
        if not out.run.file(name).is_file():
            if tag in MAIN_TAGS:
                out.gap(f"scores of {tag} on {bench.name}", command)
            continue
        rows = _try(out, lambda name=name: read_graded_file(out.run, name))
        if not rows:
            out.gap(f"scores of {tag} on {bench.name}", command)
            continue
        # one line a problem; of a repeated problem the last line counts
        rows = list({row.problem_id: row for row in rows}.values())
        out.evals.setdefault(tag, {})[bench.name] = rows
        if len(rows) < bench.n:
            out.gap(
                f"the rest of {bench.name} for {tag}",
                command,
                why=f"{len(rows)} of {bench.n} problems are there",
            )


def _read_sampled(out: Results, tag: str) -> None:
    for bench in out.run.recipe.evaluate.benchmarks:
        for temperature in list_temperatures(out.run, tag, bench.name):

            def read(name=bench.name, t=temperature) -> Groups:
                return load_samples(out.run, tag, name, temperature=t)

            if found := _try(out, read):
                place = (bench.name, temperature)
                out.sampled.setdefault(place, {})[tag] = found


def _training_tags(run: RunDir) -> list[str]:
    folders = sorted(p.name for p in run.path.glob("dpo-*") if p.is_dir())
    return ["sft", "dpo", *folders]


def _stage_command(stage: str, tag: str) -> str:
    """``merge --model dpo --variant published`` and the like."""
    options = Tag.parse(tag).options
    return f"merge --model {options}" if stage == "merge" else options


def _read_logs(out: Results) -> None:
    for tag in _training_tags(out.run):
        path = out.run.file(tag, "log.jsonl")
        if not path.is_file():
            command = _stage_command("train", tag)
            out.gap(f"the training log of {tag}", command)
            continue
        rows = _try(out, lambda path=path: read_records(path, Record)) or []
        out.logs[tag] = [row.model_dump() for row in rows]


def _read_merges(out: Results) -> None:
    for tag in _training_tags(out.run):
        path = out.run.file(tag, "merge_fidelity.json")
        taken = out.replayed.find(tag, tag, path.name)
        if taken and not path.is_file():
            # no stage of its own: merged weights are in no record
            out.replayed.notes[f"merge/{tag}"] = out.replayed.notes[tag]
            path = taken
        if not path.is_file():
            command = _stage_command("merge", tag)
            out.gap(f"the merge report of {tag}", command)
            continue
        report = _try(out, lambda path=path: read_json(path))
        if report:
            out.merges[tag] = report


def _try(out: Results, read: Callable[[], T]) -> T | None:
    """Read a part; a damaged one becomes a gap, a torn line a gap too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return read()
        except LabError as error:
            out.gaps.append(Gap(error.what, why=error.why or error.fix))
            return None
        finally:
            out.gaps.extend(Gap(str(w.message)) for w in caught)
