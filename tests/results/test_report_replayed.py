"""The report of a replayed run: everything in it says where it was made."""

from __future__ import annotations

import json

import pytest
from bs4 import BeautifulSoup
from conftest import make_tokenizer

from helpers.base import (
    Completion,
    RunDir,
    read_json,
    write_json,
    write_records,
)
from helpers.problems import load_problems
from helpers.replay import record_run, take_stage
from helpers.results import plots, read_results, write_report
from helpers.results.report import build_sections
from tools.lm_eval import export_lm_eval

THERE = {"processor": "Far Chip", "cores": 64, "commit": "c0ffee"}
NOTE = "recorded on 2020-02-03, Far Chip, 64 cores"
STAGES = (
    *("sft", "dpo", "merge/sft", "evaluate/base", "evaluate/sft"),
    *("evaluate-t1/base", "evaluate-t1/sft"),
)


def make_rows(run: RunDir, tag: str, n: int = 1) -> list[Completion]:
    """n samples of every problem of the benchmark, by and by more right."""
    (bench,) = run.recipe.evaluate.benchmarks
    return [
        Completion(
            problem_id=problem.id,
            sample=j,
            prompt="?",
            response="so 2" if (i + j) % 3 > (tag == "base") else f"so {j}7",
            gold="2",
            finish_reason="stop",
            tokens=5,
            mean_logprob=-0.1,
            seed=1,
        )
        for i, problem in enumerate(load_problems(bench.path, bench.n))
        for j in range(n)
    ]


def finish(run: RunDir, stage: str) -> None:
    """A finished stage with made-up outputs."""
    kind, _, tag = stage.partition("/")
    names = {
        "sft": "sft/log.jsonl",
        "dpo": "dpo/log.jsonl",
        "merge": f"{tag}/merge_fidelity.json",
        "evaluate": f"eval/{tag}/bench.jsonl",
        "evaluate-t1": f"eval/{tag}/bench.t1.jsonl",
    }
    with run.stage(stage, {"model": "m"}) as record:
        record["outputs"] = [names[kind]]
        path = run.file(names[kind])
        if kind.startswith("evaluate"):
            rows = make_rows(run, tag, 1 if kind == "evaluate" else 2)
            write_records(path, rows)
        elif kind == "merge":
            write_json(path, {"cosine": 1.0, "norm_kept": 1.0})
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text('{"step": 1, "loss": 1.0}\n')


@pytest.fixture
def replayed(tmp_path, tiny_recipe, monkeypatch) -> RunDir:
    """A run of the tiny recipe, taken from a record of another machine."""
    monkeypatch.setattr("helpers.base.run.DATA_DIR", tmp_path / "shipped")
    kept = RunDir.open(tmp_path / "kept", tiny_recipe)
    for stage in STAGES:
        finish(kept, stage)
    made = read_json(kept.file("manifest.json")) | THERE
    made["created"] = "2020-02-03T04:05:06+00:00"
    write_json(kept.file("manifest.json"), made)
    record_run(kept, STAGES)
    run = RunDir.open(tmp_path / "run", tiny_recipe)
    for stage in STAGES:
        if not stage.startswith("merge/"):
            assert take_stage(run, stage, replay=True)
    return run


def read_section(run: RunDir, key: str) -> tuple[str, str]:
    """The head of the page, and one section of it, as texts."""
    page = BeautifulSoup(
        write_report(run, make_tokenizer).read_text("utf-8"), "html.parser"
    )
    parts = (page.find(class_="lead"), page.find(id=key))
    head, section = (" ".join(part.get_text().split()) for part in parts)
    return head, section


def test_head_and_manifest_are_those_of_the_record(replayed):
    head, section = read_section(replayed, "manifest")
    here = read_json(replayed.file("manifest.json"))
    assert head.endswith(NOTE)
    for text in (f"Manifest, {NOTE}", "c0ffee", "2020-02-03T04:05:06+00:00"):
        assert text in section
    assert here["created"] not in section and "run of" not in head
    assert "Replayed, not computed here:" in section


def test_merge_reports_and_ledger_come_from_the_record(replayed):
    results = read_results(replayed)
    whats = [gap.what for gap in results.gaps]
    assert "the merge report of sft" not in whats
    assert "the merge report of dpo" in whats, "it was never recorded"
    assert "the ledger of time per phase" not in whats
    assert [phase["phase"] for phase in results.ledger] == list(STAGES)
    for stage in (*STAGES, "merge/sft"):
        assert results.provenance(stage) == f"{NOTE} (replayed)"


def test_every_figure_says_that_it_was_replayed(replayed, monkeypatch):
    notes: dict[str, set[str]] = {}

    def spy(name, draw):
        def drawn(*args, **options):
            notes.setdefault(name, set()).add(options.get("note"))
            return draw(*args, **options)

        return drawn

    for name in [name for name in dir(plots) if name.startswith("plot_")]:
        monkeypatch.setattr(plots, name, spy(name, getattr(plots, name)))
    build_sections(read_results(replayed), make_tokenizer)
    theirs = notes["plot_accuracy_grid"]  # ours, and the published one
    assert len(theirs) == 2 and f"{NOTE} (replayed)" in theirs
    shown = {"plot_paired", "plot_outcomes", "plot_caps", "plot_pass_at_k"}
    assert shown <= notes.keys()
    for name in notes.keys() - {"plot_accuracy_grid"}:
        assert notes[name] == {f"{NOTE} (replayed)"}, name


def test_a_record_that_was_made_again_is_not_taken_for_the_old(
    replayed, tmp_path
):
    path = tmp_path / "shipped" / "measured" / "tiny" / "run" / "manifest.json"
    write_json(path, read_json(path) | {"created": "2021-01-01T00:00:00"})
    results = read_results(replayed)
    assert results.describe_origin() == NOTE
    assert results.replayed.manifest["commit"] == "c0ffee"
    assert results.replayed.manifest["created"] == "2020-02-03"
    assert results.merges == {} and results.ledger == []


def test_a_mixed_folder_names_both_machines(replayed):
    finish(replayed, "merge/sft")
    head, section = read_section(replayed, "manifest")
    here = read_json(replayed.file("manifest.json"))
    assert f"run of {here['created'][:10]}" in head
    assert head.endswith(f"replayed stages: {NOTE}")
    assert here["created"] in section and "c0ffee" in section
    results = read_results(replayed)
    assert [phase["phase"] for phase in results.ledger] == ["merge/sft"]
    assert NOTE not in results.provenance("merge/sft")
    both = results.provenance("evaluate/base", "merge/sft").splitlines()
    assert both[0] == f"{NOTE} (replayed)" and len(both) == 2


def test_exported_scores_name_the_code_that_made_them(replayed):
    export_lm_eval(read_results(replayed))
    (path,) = replayed.file("lm_eval", "sft").glob("results_*.json")
    assert json.loads(path.read_text("utf-8"))["git_hash"] == "c0ffee"
