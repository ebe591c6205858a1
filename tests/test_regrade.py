"""``mathslm regrade``: what it renews, what it leaves, what it says."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from helpers.base import (
    REPO_ROOT,
    Completion,
    LabError,
    PairRow,
    RunDir,
    SftRow,
    read_json,
    read_records,
    write_json,
    write_records,
)
from helpers.cli import app
from helpers.cli.grading import regrade
from helpers.grading import grade as grading

SAMPLES = "samples/distill.jsonl"


class Saying:
    """An engine that gives each problem a right, a wrong and a right one."""

    def __init__(self, tokenizer, golds):
        self.tokenizer, self.golds = tokenizer, golds

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def describe(self):
        """Name itself, as every engine does."""
        return {"name": "saying"}

    def sample(self, requests):
        """Yield the answers, with a number so that no two are alike."""
        from helpers.sampling.engine import SampledText

        for request in requests:
            gold = self.golds[request.problem_id]
            said = f"{gold}0" if request.sample == 1 else gold
            text = f"try {request.sample}: \\boxed{{{said}}}"
            yield SampledText(request, text, "stop", 9, -0.5)


@pytest.fixture
def done(tiny_recipe, run, tokenizer, problems, monkeypatch):
    """A finished distillation and evaluation of the tiny recipe."""
    from helpers.stages import distill, evaluate

    golds = {p.id: p.answer for p in problems}

    def give(*_args, **_options):
        return Saying(tokenizer, golds)

    monkeypatch.setattr(distill, "open_engine", give)
    monkeypatch.setattr(evaluate, "open_engine", give)
    distill.run_distill(tiny_recipe, run)
    evaluate.run_evaluate(tiny_recipe, run, ("base",))
    return run


def spoil(run, name, ids, version="0.1"):
    """What an older grader with a fault would have left of a file."""
    path = run.file(name)
    rows = read_records(path, Completion)
    for row in rows:
        row.grader = version
        if row.problem_id in ids:
            row.correct, row.reason = not row.correct, "a fault"
    write_records(path, rows)


def renew_stages(run):
    """Measures and harvest by the stored verdicts, as the stages would."""
    from helpers.stages import distill, evaluate

    rows = read_records(run.file("eval/base/bench.jsonl"), Completion)
    metrics = run.metrics()
    metrics["evaluate/base"]["bench"] = evaluate.summarize_results(rows)
    write_json(run.file("metrics.json"), metrics)
    problems = distill.load_training(run.recipe)[:6]
    samples = distill.group_samples(
        distill.iter_samples(run.file(SAMPLES)), problems
    )
    found = distill.harvest_pairs(
        samples, pick=run.recipe.harvest.pick, seed=run.recipe.seed,
        run_name="run",
    )  # fmt: skip
    metrics["distill"] |= distill.measure_samples(samples, found)
    write_json(run.file("metrics.json"), metrics)
    write_records(run.file("sft.jsonl"), found.iter_sft())
    write_records(run.file("pairs.jsonl"), found.iter_pairs())


@pytest.fixture
def spoiled(done):
    """The run as an older grader left it, and what it should become."""
    right = {
        name: done.file(name).read_bytes()
        for name in (
            SAMPLES, "eval/base/bench.jsonl", "sft.jsonl", "pairs.jsonl",
        )
    }  # fmt: skip
    metrics = done.metrics()
    spoil(done, SAMPLES, {"sum-1", "sum-4"})
    spoil(done, "eval/base/bench.jsonl", {"sum-0", "sum-2", "sum-3"})
    renew_stages(done)
    assert done.metrics() != metrics
    return done, right, metrics


def test_nothing_changes_when_the_grader_is_the_same(done):
    before = {p: p.read_bytes() for p in done.path.rglob("*") if p.is_file()}
    found = regrade.run_regrade(done)
    assert not any(change.changed for change in found.files)
    assert found.metrics == [] and found.aside is None
    assert not any(found.harvest) and found.no_harvest == ""
    after = {p: p.read_bytes() for p in done.path.rglob("*") if p.is_file()}
    assert after == before


def test_files_and_scores_are_renewed_and_the_harvest_is_compared(spoiled):
    run, right, metrics = spoiled
    trained = [run.file(n).read_bytes() for n in ("sft.jsonl", "pairs.jsonl")]
    old = run.metrics()["distill"]
    found = regrade.run_regrade(run)
    by_name = {change.name: change for change in found.files}
    assert sorted(by_name[SAMPLES].changed) == sorted(
        f"{i} #{s}" for i in ("sum-1", "sum-4") for s in range(3)
    )
    assert sorted(by_name["eval/base/bench.jsonl"].to_right) == [
        "sum-0", "sum-2", "sum-3",
    ]  # fmt: skip
    for name in (SAMPLES, "eval/base/bench.jsonl"):
        assert run.file(name).read_bytes() == right[name]
        assert found.aside.joinpath(name).is_file()
    now = run.metrics()
    assert now["evaluate/base"] == metrics["evaluate/base"]
    assert found.scores == [("base", "bench", 5, 8, 8)]
    # The harvest is what the model was trained on: history.
    assert [
        run.file(n).read_bytes() for n in ("sft.jsonl", "pairs.jsonl")
    ] == trained
    for name in ("sft_rows", "pairs", "sft_mean_logprob"):
        assert now["distill"][name] == old[name]
    assert now["distill"]["solve_rate"] == metrics["distill"]["solve_rate"]
    assert [one.other for one in found.harvest] == [2, 2]
    assert not found.harvest_written and found.stale == []


def test_harvest_writes_what_the_stage_would_have_written(spoiled):
    run, right, metrics = spoiled
    with run.stage("sft", {"rows": regrade.hash_file(run.file("sft.jsonl"))}):
        run.file("report.html").write_text("old")
    found = regrade.run_regrade(run, harvest=True)
    for name, text in right.items():
        assert run.file(name).read_bytes() == text, name
        assert found.aside.joinpath(name).read_bytes() != text
    assert run.metrics()["distill"] == metrics["distill"]
    assert any("mathslm sft --force" in line for line in found.stale)
    assert any("mathslm report" in line for line in found.stale)
    assert len(read_records(run.file("sft.jsonl"), SftRow)) == 6
    assert len(read_records(run.file("pairs.jsonl"), PairRow)) == 6


def sample_arms(run, temperatures=(0.7, 1.0)):
    """A finished seed experiment: two samples of six problems an arm."""
    from helpers.cli.sampling import seeding

    from helpers.problems import hash_problems

    problems = regrade.load_training(run.recipe)[:6]
    arms = seeding.list_arms(temperatures)
    for arm in arms:
        rows = [
            make_graded(problem, sample, problem.answer if sample else "no")
            for problem in problems
            for sample in range(2)
        ]
        write_records(run.file(arm.file), rows)
    inputs = {
        "n_problems": "6",
        "problems": hash_problems(run.recipe.data.train),
    }
    with run.stage(seeding.STAGE, inputs) as record:
        found = seeding.measure_arms(run, arms, problems)
        record["metrics"] = {arm.name: r.summary() for arm, r in found.items()}
    return arms


def make_graded(problem, sample, said):
    """One response, graded by the installed grader."""
    response = f"try {sample}: \\boxed{{{said}}}"
    grade = grading.grade_response(response, problem.answer)
    return Completion(
        problem_id=problem.id,
        sample=sample,
        prompt=problem.problem,
        response=response,
        grader=grading.GRADER_VERSION,
        gold=problem.answer,
        finish_reason="stop",
        tokens=9,
        mean_logprob=-0.5,
        seed=sample,
        **vars(grade),
    )


def test_the_seed_experiment_is_graded_again_too(done):
    arms = sample_arms(done)
    metrics, name = done.metrics(), arms[0].file
    right = done.file(name).read_bytes()
    assert regrade.run_regrade(done).metrics == []
    spoil(done, name, {"sum-1", "sum-4"})
    spoilt = done.metrics()
    spoilt["seeding"][arms[0].name]["right"] = 0
    write_json(done.file("metrics.json"), spoilt)
    found = regrade.run_regrade(done)
    assert done.file(name).read_bytes() == right
    assert found.aside.joinpath(name).is_file()
    assert found.metrics == ["seeding"] and found.stale == []
    assert done.metrics() == metrics


@pytest.mark.parametrize("lost", ["problems", "a file"])
def test_measures_of_seeds_that_cannot_be_made_again_are_left(done, lost):
    arms = sample_arms(done)
    before = done.metrics()["seeding"]
    spoil(done, arms[0].file, {"sum-1"})
    if lost == "problems":
        write_records(done.recipe.data.train, [])
    else:
        done.file(arms[1].file).unlink()
    found = regrade.run_regrade(done)
    assert done.metrics()["seeding"] == before
    assert any("the measures of seeding" in line for line in found.stale)
    assert any("mathslm regrade" in line for line in found.stale)


@pytest.mark.parametrize("at", ["second file", "metrics", "harvest"])
def test_a_stop_at_any_moment_loses_nothing(spoiled, monkeypatch, at):
    run, right, metrics = spoiled
    before = run.metrics()

    def stop(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if at == "second file":
            real, seen = regrade.regrade_file, []

            def once(*args):
                if seen:
                    stop()
                seen.append(args)
                return real(*args)

            patch.setattr(regrade, "regrade_file", once)
        elif at == "metrics":
            patch.setattr(regrade, "write_json", stop)
        else:
            patch.setattr(regrade, "measure_samples", stop)
        with pytest.raises(KeyboardInterrupt):
            regrade.run_regrade(run)
    assert run.metrics() == before
    for name in (SAMPLES, "eval/base/bench.jsonl"):
        rows = read_records(run.file(name), Completion)
        assert len({row.grader for row in rows}) == 1
    assert not run.file(".lock.json").exists()
    regrade.run_regrade(run)
    assert run.metrics()["evaluate/base"] == metrics["evaluate/base"]
    for name in (SAMPLES, "eval/base/bench.jsonl"):
        assert run.file(name).read_bytes() == right[name]


def test_an_unfinished_run_is_graded_again_without_measures(spoiled):
    run, right, _ = spoiled
    for name in ("metrics.json", "sft.jsonl", "pairs.jsonl"):
        run.file(name).unlink()
    shutil.rmtree(run.file("stages"))
    found = regrade.run_regrade(run)
    assert run.file(SAMPLES).read_bytes() == right[SAMPLES]
    assert found.harvest == [] and run.metrics() == {}


@pytest.mark.parametrize(
    ("spoil_it", "reason"),
    [
        (lambda run: run.file("pairs.jsonl").unlink(), "no pairs.jsonl"),
        (
            lambda run: write_records(run.recipe.data.train, []),
            "is not the file it was made from",
        ),
    ],
)
def test_a_harvest_that_cannot_be_made_again_is_left(done, spoil_it, reason):
    spoil(done, SAMPLES, {"sum-1"})
    spoil_it(done)
    old = done.metrics()["distill"]
    found = regrade.run_regrade(done, harvest=True)
    assert reason in found.no_harvest and found.harvest == []
    assert done.metrics()["distill"] == old
    rows = read_records(done.file(SAMPLES), Completion)
    assert {row.grader for row in rows} == {grading.GRADER_VERSION}


# --- the command ---------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, ["regrade", *map(str, arguments)])


def test_the_command_says_what_changed(spoiled, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    run = spoiled[0]
    result = call(run.path)
    assert result.exit_code == 0, result.output
    assert f"0.1 → {grading.GRADER_VERSION}" in result.stdout
    assert "base on bench: 5/8 (" in result.stdout
    assert "→ 8/8 (" in result.stdout
    assert "metrics.json: renewed for distill, evaluate/base" in result.stdout
    assert "eval/base/bench.jsonl: sum-" in result.stdout
    assert "and 1 more" in result.stdout  # six changed samples, five listed
    assert "mathslm regrade --harvest" in result.stdout
    again = call("--run-dir", run.path)
    assert "Nothing changed: every verdict is what it was." in again.stdout
    anew = call("--run-dir", run.path, "--harvest")
    assert "were written anew" in anew.stdout


def test_wrong_calls_are_refused(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["nowhere"], "There is no run in nowhere"),
        ([], "There is no run in"),
        (["a", "--run-dir", "b"], "Two run folders"),
        ([run.path], "holds no graded response"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2 and message in result.stderr
        assert "Traceback" not in result.output


def test_a_run_in_use_is_left_alone(spoiled):
    run, _, _ = spoiled
    before = run.file(SAMPLES).read_bytes()
    code = (
        "import sys, time\n"
        "from helpers.base.lock import hold_lock\n"
        "with hold_lock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(
        command, cwd=REPO_ROOT, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline().strip() == b"held"
        with pytest.raises(LabError, match="in use"):
            regrade.run_regrade(run)
        holder.kill()
    assert run.file(SAMPLES).read_bytes() == before


def test_no_torch_is_loaded(done):
    code = (
        "import sys\n"
        "from helpers.cli import app\n"
        "try:\n"
        "    app(['regrade', sys.argv[1]])\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    checked = subprocess.run(
        [sys.executable, "-c", code, str(done.path)],
        capture_output=True,
        text=True,
        cwd=REPO_ROOT,
    )
    assert checked.returncode == 0, checked.stderr


def test_the_recorded_run_can_be_graded_again(tmp_path):
    """A copy of the record: its stages' metrics follow its verdicts."""
    source = REPO_ROOT / "data" / "measured" / "pocket" / "run"
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("recipe.yaml", "manifest.json", "metrics.json"):
        shutil.copy2(source / name, folder / name)
    shutil.copytree(source / "eval" / "base", folder / "eval" / "base")
    from helpers.base import load_recipe

    run = RunDir.open(folder, load_recipe(folder / "recipe.yaml"))
    found = regrade.run_regrade(run)
    scores = read_json(folder / "metrics.json")["evaluate/base"]
    for change in found.files:
        rows = read_records(run.file(change.name), Completion)
        name = change.name.rpartition("/")[2].removesuffix(".jsonl")
        if "." in name:
            continue  # several samples a problem: other measures
        assert scores[name]["k"] == sum(row.correct for row in rows)
