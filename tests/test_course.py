"""The course runner, on tiny notebooks that need no model."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from helpers import course
from helpers.base import LabError, list_recipes, load_recipe

PARAMETERS = """\
TIER: str = "pocket"
RUN_DIR: str = "runs/none"
RUN_MODE: str = "auto"  # "auto" | "run" | "replay"
SEED: int = 42
OVERRIDES: list = []
"""
RECORD = """\
import json, pathlib, sys
folder = pathlib.Path(RUN_DIR)
seen = dict(tier=TIER, mode=RUN_MODE, seed=SEED, overrides=OVERRIDES,
            python=sys.executable, prefix=sys.prefix)
(folder / "seen.json").write_text(json.dumps(seen))
"""


def write_notebook(path, *sources, parameters=PARAMETERS):
    """A notebook with a parameters cell and these code cells."""
    cell = nbformat.v4.new_code_cell(parameters)
    cell.metadata["tags"] = ["parameters"]
    cells = [cell, *(nbformat.v4.new_code_cell(s) for s in sources)]
    spec = {"name": "python3", "display_name": "x", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": spec}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


@pytest.fixture
def quiet():
    """A console that keeps what it prints."""
    return Console(record=True, width=100, file=io.StringIO())


@pytest.fixture
def notebooks(tmp_path):
    """00 records what it is given; 01 adds one file."""
    folder = tmp_path / "notebooks"
    write_notebook(folder / "00_record.ipynb", RECORD)
    write_notebook(
        folder / "01_more.ipynb",
        "import pathlib\n(pathlib.Path(RUN_DIR) / 'more').touch()",
    )
    return folder


def run(folder, tmp_path, console=None, **options):
    """run_course on these notebooks, 00 to 01 unless told."""
    options = {"first": "00", "last": "01"} | options
    return course.run_course(
        "pocket", tmp_path / "run", console=console, folder=folder, **options
    )


@pytest.mark.slow
def test_course_passes_parameters_and_runs_in_this_python(
    notebooks, tmp_path, quiet, monkeypatch
):
    """Even where a user's kernel named python3 is something else."""
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    wrong = [str(tmp_path / "no-such-python"), "{connection_file}"]
    spec.write_text(
        json.dumps({"argv": wrong, "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    page = run(
        notebooks,
        tmp_path,
        quiet,
        parameters={
            "SEED": 7,
            "RUN_MODE": "run",
            "OVERRIDES": ["dpo.epochs=2"],
        },
        overrides=["sft.epochs=1"],
    )
    seen = json.loads((tmp_path / "run" / "seen.json").read_text())
    assert seen == {
        "tier": "pocket",
        "mode": "run",
        "seed": 7,
        "overrides": ["sft.epochs=1", "dpo.epochs=2"],
        "python": sys.executable,
        "prefix": sys.prefix,
    }
    assert page == tmp_path / "run" / "report.html"
    assert "<html" in page.read_text()
    done = tmp_path / "run" / "notebooks"
    names = {"00_record.ipynb", "01_more.ipynb", "timings.json"}
    assert {p.name for p in done.iterdir()} == names
    timings = json.loads((done / "timings.json").read_text())
    executed = nbformat.read(done / "01_more.ipynb", as_version=4)
    duration = executed.metadata.papermill["duration"]
    assert timings["01_more"] == pytest.approx(duration, abs=0.01)
    assert "00_record done in" in quiet.export_text()


@pytest.mark.slow
def test_failed_cell_is_reported_and_a_second_run_carries_on(
    notebooks, tmp_path, quiet
):
    bad = "raise ValueError('the sum is wrong')"
    write_notebook(notebooks / "00_record.ipynb", bad)
    with pytest.raises(course.NotebookError) as failed:
        run(notebooks, tmp_path, quiet)
    executed = tmp_path / "run" / "notebooks" / "00_record.ipynb"
    assert "ValueError: the sum is wrong" in str(failed.value)
    assert str(executed) in str(failed.value)
    assert failed.value.exit_code == 1
    assert executed.is_file()
    assert not (tmp_path / "run" / "more").exists(), "01 ran after a failure"
    write_notebook(notebooks / "00_record.ipynb", RECORD)
    run(notebooks, tmp_path, quiet)
    assert (tmp_path / "run" / "more").exists()


@pytest.mark.slow
def test_laberror_in_a_cell_keeps_its_remedy(notebooks, tmp_path, quiet):
    source = (
        "from helpers.base.errors import LabError\n"
        "raise LabError('No pairs.', 'all were right', 'raise sampling.n')"
    )
    write_notebook(notebooks / "00_record.ipynb", source)
    with pytest.raises(course.NotebookError) as failed:
        run(notebooks, tmp_path, quiet, last="00")
    assert "Do this: raise sampling.n" in str(failed.value)


@pytest.mark.slow
def test_dead_kernel_is_reported(notebooks, tmp_path, quiet):
    dying = (
        "import os, sys\n"
        "os.write(sys.__stderr__.fileno(), b'out of memory\\n')\n"
        "os._exit(137)"
    )
    write_notebook(notebooks / "00_record.ipynb", dying)
    with pytest.raises(course.NotebookError, match="process died") as failed:
        run(notebooks, tmp_path, quiet, last="00")
    assert str(tmp_path / "run" / "notebooks") in str(failed.value)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent as SIGINT")
def test_ctrl_c_leaves_no_kernel_and_the_run_can_be_repeated(
    notebooks, tmp_path, quiet
):
    waiting = (
        "import os, pathlib, time\n"
        "flag = pathlib.Path(RUN_DIR) / 'pid'\n"
        "first = not flag.exists()\n"
        "flag.write_text(str(os.getpid()))\n"
        "time.sleep(600 if first else 0)\n" + RECORD
    )
    write_notebook(notebooks / "00_record.ipynb", waiting)
    code = (
        # a test started in the background of a shell inherits "ignore"
        "import signal; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from pathlib import Path; from helpers import cli, "
        "course; course.run_course.__kwdefaults__['folder'] = "
        f"Path({str(notebooks)!r}); cli.app(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "course", "--to", "01"]
    command += ["--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    flag = tmp_path / "run" / "pid"
    while not (flag.is_file() and flag.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    kernel = int(flag.read_text())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Stopped" in said and "Traceback" not in said
    assert not psutil.pid_exists(kernel)
    run(notebooks, tmp_path, quiet)
    assert (tmp_path / "run" / "more").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RUN_MOD": "run"}, "Did you mean 'RUN_MODE'"),
        ({"run_dir": "x"}, "No notebook has a parameter 'run_dir'"),
        ({"TIER": "t4"}, "--tier"),
        ({"RUN_DIR": "x"}, "--run-dir"),
        ({"OVERRIDES": "sft.epochs=1"}, "--set"),
        ({"OVERRIDES": ["sft.epoch=1"]}, "Did you mean 'epochs'"),
    ],
)
def test_unknown_parameters_are_refused_before_anything_runs(
    notebooks, tmp_path, given, message
):
    with pytest.raises(LabError, match=message):
        run(notebooks, tmp_path, parameters=given)
    assert not (tmp_path / "run").exists()


def test_unknown_tier_key_and_number_are_refused(notebooks, tmp_path):
    with pytest.raises(LabError, match="Did you mean 'epochs'"):
        run(notebooks, tmp_path, overrides=["sft.epoch=1"])
    with pytest.raises(LabError, match="numbered '07'"):
        run(notebooks, tmp_path, last="07")
    with pytest.raises(LabError, match="comes after"):
        run(notebooks, tmp_path, first="01", last="00")
    with pytest.raises(LabError, match="no notebooks in"):
        run(tmp_path / "nowhere", tmp_path)


def test_notebooks_are_found_by_number(notebooks):
    both = course.find_notebooks("0", "1", notebooks)
    assert [p.name[:2] for p in both] == ["00", "01"]
    assert course.find_notebooks("01", "01", notebooks) == both[1:]


def test_notebook_without_parameters_cell_is_refused(tmp_path):
    path = tmp_path / "00_bare.ipynb"
    cells = [nbformat.v4.new_code_cell("1 + 1")]
    spec = {"name": "python3", "display_name": "x", "language": "python"}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}),
        path,
    )
    with pytest.raises(LabError, match="no cell tagged 'parameters'"):
        course.read_known_parameters(path)


def test_defaults_are_not_injected(notebooks):
    known = course.read_known_parameters(notebooks / "00_record.ipynb")
    same = {"TIER": "pocket", "OVERRIDES": [], "SEED": 42}
    assert course.choose_parameters(same, known) == {}
    other = same | {"SEED": 7, "RUN_DIR": "elsewhere", "UNKNOWN": 1}
    chosen = {"SEED": 7, "RUN_DIR": "elsewhere"}
    assert course.choose_parameters(other, known) == chosen


def test_quick_is_the_recipes_own_short_form(capsys):
    recipe = load_recipe("smol")
    sets = course.choose_quick(recipe, ["course.dev=7"])
    short = load_recipe("smol", sets)
    assert short.data.n_problems < recipe.data.n_problems
    assert sum(b.n for b in short.evaluate.benchmarks) < sum(
        b.n for b in recipe.evaluate.benchmarks
    )
    assert short.course.dev == 7, "what is given on the command line wins"
    assert (
        f"data.n_problems={short.data.n_problems}" in capsys.readouterr().out
    )
    with pytest.raises(LabError, match="'pocket' has no quick form"):
        course.choose_quick(load_recipe("pocket"), None)


@pytest.mark.parametrize("name", list_recipes())
def test_every_quick_form_is_a_valid_recipe(name):
    recipe = load_recipe(name)
    if recipe.quick:
        load_recipe(name, course.choose_quick(recipe, None))


def test_parameter_values_are_yaml():
    pairs = ["SEED=7", "FLAG=true", "RUN_MODE=replay", "LIST=[1, 2]", "E=a=b"]
    assert course.read_parameters(pairs) == {
        "SEED": 7,
        "FLAG": True,
        "RUN_MODE": "replay",
        "LIST": [1, 2],
        "E": "a=b",
    }
    for wrong in ("SEED", "=7", "A B=1"):
        with pytest.raises(LabError, match="NAME=VALUE"):
            course.read_parameters([wrong])


def test_run_folder_is_named_relative_inside_the_clone(tmp_path):
    inside = course.REPO_ROOT / "runs" / "x"
    assert course.name_folder(inside) == "runs/x"
    assert Path(course.name_folder(tmp_path)) == tmp_path.resolve()


def test_a_recipe_file_is_named_so_that_a_kernel_finds_it(
    notebooks, tmp_path, monkeypatch
):
    """A kernel starts in the clone's root, wherever the course was called."""
    (tmp_path / "mine.yaml").write_text("extends: pocket\nname: mine\n")
    monkeypatch.chdir(tmp_path)
    seen = []

    def stop(source, target, parameters, console):
        seen.append(parameters["TIER"])
        raise KeyboardInterrupt

    monkeypatch.setattr(course, "run_notebook", stop)
    with pytest.raises(KeyboardInterrupt):
        course.run_course(
            "mine.yaml", tmp_path / "run", last="01", folder=notebooks
        )
    assert seen == [(tmp_path / "mine.yaml").resolve().as_posix()]


seconds = st.floats(0.01, 1e5)


@settings(deadline=None)
@given(elapsed=seconds, done=seconds, rest=seconds)
def test_estimate_scales_with_the_pace_so_far(elapsed, done, rest):
    total = done + rest
    left = course.estimate_left(elapsed, done, total)
    assert left >= 0
    if done > total / 20:
        assert left == pytest.approx(elapsed * rest / done, rel=1e-3, abs=1)


def test_estimate_starts_from_the_recorded_times():
    assert course.estimate_left(0.0, 0.0, 90.0) == 90.0
    assert course.estimate_left(30.0, 0.0, 90.0) == 60.0
    assert course.estimate_left(200.0, 0.0, 90.0) == 0.0


def test_cells_weigh_what_they_took():
    code = nbformat.v4.new_code_cell("1")
    assert course.get_weight(nbformat.v4.new_markdown_cell("x")) == 0
    assert course.get_weight(code) == 1
    code.metadata["papermill"] = {"duration": 12.5}
    assert course.get_weight(code) == 12.5
    assert course.show_time(75.2) == "0:01:15"
