"""The command line: refusals, defaults, and what reaches a stage."""

import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from helpers import cli
from helpers.base import REPO_ROOT, LabError, RunDir, load_recipe

STAGES = (
    "solutions",
    "distill",
    "sft",
    "merge",
    "dpo",
    "evaluate",
    "report",
    "course",
)


@pytest.fixture
def run_cli(tmp_path, monkeypatch):
    """Call ``mathslm`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture
def calls(monkeypatch):
    """Record what a stage is called with instead of running it."""
    seen = []

    def fake_import(name):
        stage = name.removeprefix("helpers.")

        def run(*args, **kwargs):
            seen.append((stage, args, kwargs))
            return {"kept": 3, "loss": 0.123456}

        return types.SimpleNamespace(**{f"run_{stage}": run})

    monkeypatch.setattr(cli, "import_module", fake_import)
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_every_command_has_help(run_cli, stage):
    result = run_cli(stage, "--help")
    assert result.exit_code == 0
    assert "--run-dir" in result.output and "--tier" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sft --tier pockt", "Did you mean 'pocket'?"),
        ("sft --tier nowhere.yaml", "No recipe file at nowhere.yaml"),
        ("sft --set sft.learnin_rate=1", "Did you mean 'learning_rate'?"),
        ("sft --set sft.epochs=many", "'sft.epochs'"),
        ("sft --set nonsense", "section.key=value"),
        ("sft --bogus", "No such option"),
        ("sft --smoke-steps 0", "--smoke-steps"),
        ("sft --smoke-steps few", "--smoke-steps"),
        ("sfd", "No such command"),
        ("dpo --variant publishd", "Did you mean 'published'?"),
        ("merge --variant nosuch", "no DPO variant 'nosuch'"),
        ("merge --model foo", "--model"),
        ("merge --model sft --variant published", "Variants are of DPO"),
        ("evaluate --model dp", "Did you mean 'dpo'?"),
        ("evaluate --benchmark esy", "Did you mean 'easy'?"),
        ("report", "There is no run in"),
        ("course --from 99", "99"),
        ("course -p SEED", "NAME=VALUE"),
    ],
)
def test_wrong_input_is_one_message_and_exit_2(
    run_cli, calls, arguments, message
):
    result = run_cli(*arguments.split())
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert calls == [], "a stage was reached"


def test_refusals_load_nothing_heavy():
    code = (
        "import sys\n"
        "from helpers.cli import app\n"
        "try:\n"
        "    app(['sft', '--tier', 'pockt'])\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 2, stop.code\n"
        "heavy = {'torch', 'transformers', 'papermill', 'pandas', 'sympy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=REPO_ROOT,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert "Did you mean 'pocket'?" in done.stderr


@pytest.mark.parametrize("stage", ["distill", "sft", "merge", "dpo"])
def test_stage_modules_are_commands_too(stage):
    done = subprocess.run(
        [sys.executable, "-m", f"helpers.{stage}", "--tier", "pockt"],
        capture_output=True,
        text=True,
        cwd=REPO_ROOT,
    )
    assert done.returncode == 2
    assert "Did you mean 'pocket'?" in done.stderr


def test_a_foreign_folder_is_refused_and_kept(run_cli, calls, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    result = run_cli("sft", "--run-dir", "mine")
    assert result.exit_code == 2 and "not empty" in result.stderr
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_options_reach_the_stage(run_cli, calls, tmp_path):
    result = run_cli(
        *"sft --tier pocket --run-dir here --force --smoke-steps 5".split(),
        *"--set sft.epochs=1 --set sft.learning_rate=1e-4".split(),
    )
    assert result.exit_code == 0, result.output
    ((stage, (recipe, run), options),) = calls
    assert stage == "sft" and options == {"force": True, "smoke_steps": 5}
    assert (recipe.sft.epochs, recipe.sft.learning_rate) == (1, 1e-4)
    assert run.path.resolve() == tmp_path / "here"
    assert "0.1235" in result.stdout


def test_default_folder_is_runs_and_the_tier(run_cli, calls, tmp_path):
    assert run_cli("distill").exit_code == 0
    assert (tmp_path / "runs" / "pocket" / "recipe.yaml").is_file()


def test_a_run_folder_keeps_its_own_recipe(run_cli, calls, tmp_path):
    recipe = load_recipe("pocket", ["seed=7", "name=seven"])
    RunDir.open(tmp_path / "seven", recipe)
    assert run_cli("distill", "--run-dir", "seven").exit_code == 0
    assert calls[0][1][0] == recipe
    refused = run_cli("distill", "--run-dir", "seven", "--tier", "pocket")
    assert refused.exit_code == 2 and "seed: 7" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "stage", "tag"),
    [
        ("merge", "merge", "sft"),
        ("merge --model dpo", "merge", "dpo"),
        ("merge --variant published", "merge", "dpo-published"),
    ],
)
def test_merge_names_its_adapter(run_cli, calls, arguments, stage, tag):
    assert run_cli(*arguments.split()).exit_code == 0
    assert calls[0][0] == stage and calls[0][1][2] == tag


@pytest.mark.parametrize("name", ["seven", "pocket"])
def test_course_takes_the_run_folders_own_recipe(
    run_cli, monkeypatch, tmp_path, name
):
    """Also a shipped one: it was begun with settings of its own."""
    from pathlib import Path

    from helpers import course

    seen = []

    def record(*args, **options):
        seen.append(args)

    monkeypatch.setattr(course, "run_course", record)
    sets = [f"name={name}", "seed=7"]
    RunDir.open(tmp_path / name, load_recipe("pocket", sets))
    assert run_cli("course", "--run-dir", name).exit_code == 0
    ((asked, _),) = seen
    assert Path(asked).as_posix() == f"{name}/recipe.yaml"
    assert load_recipe(tmp_path / asked).seed == 7


def test_evaluate_prints_scores_with_their_interval(run_cli, calls, tmp_path):
    run = RunDir.open(tmp_path / "runs" / "pocket", load_recipe("pocket"))
    with run.stage("evaluate/base", {}) as record:
        record["metrics"] = {"easy": {"k": 86, "n": 200}}
    result = run_cli(*"evaluate --model base --benchmark easy".split())
    assert result.exit_code == 0, result.output
    assert calls[0][1][2] == ("base",)
    assert calls[0][2]["benchmarks"] == ["easy"]
    assert "86/200" in result.stdout and "95 % CI" in result.stdout


def test_evaluate_prints_what_several_samples_give(run_cli, calls, tmp_path):
    run = RunDir.open(tmp_path / "runs" / "pocket", load_recipe("pocket"))
    row = {
        "problems": 60,
        "samples": 4,
        "avg": [0.25, 0.2, 0.3],
        "pass": {"4": [0.5, 0.4, 0.6]},
        "majority": 20,
        "best_of": 18,
    }
    with run.stage("evaluate-t1/base", {}) as record:
        record["metrics"] = {"hard": row}
    result = run_cli(
        *"evaluate --model base --set evaluate.n=4".split(),
        *"--set evaluate.temperature=1".split(),
    )
    assert result.exit_code == 0, result.output
    for text in ("avg@4 25.0 %", "pass@4 50.0 %", "20/60", "18/60"):
        assert text in result.stdout


def test_report_writes_markdown_on_request(run_cli, tmp_path):
    folder = tmp_path / "runs" / "pocket"
    RunDir.open(folder, load_recipe("pocket"))
    assert run_cli("report").exit_code == 0
    assert not (folder / "report.md").exists()
    assert run_cli("report", "--markdown").exit_code == 0
    assert (folder / "report.md").is_file()


def test_report_leaves_the_stored_recipe_alone(run_cli, tmp_path):
    recipe = load_recipe("pocket", ["sft.epochs=1"])
    folder = tmp_path / "runs" / "pocket"
    RunDir.open(folder, recipe)
    before = (folder / "recipe.yaml").read_text()
    result = run_cli("report")
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").is_file()
    assert (folder / "recipe.yaml").read_text() == before


def test_ctrl_c_ends_with_130(run_cli, monkeypatch):
    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "open_shared", stop)
    result = run_cli("sft")
    assert result.exit_code == 130 and "carries on" in result.stderr


def test_markup_in_a_message_is_shown_as_it_is(run_cli, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise LabError("bad value [red]x[/red]", fix="see [1]")

    monkeypatch.setattr(cli, "open_shared", refuse)
    assert "[red]x[/red]" in run_cli("sft").stderr


def test_doctor_prints_its_lines(run_cli):
    result = run_cli("doctor")
    assert "[OK]" in result.stdout and "tier pocket" in result.stdout
    assert result.exit_code == ("[FAIL]" in result.stdout)
