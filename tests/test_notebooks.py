"""What every notebook promises, and one whole run of the course."""

import ast
import importlib
import importlib.util
import io
import itertools
import json
import re
import statistics
from pathlib import Path

import nbformat
import pytest
import yaml
from rich.console import Console

from helpers.base import REPO_ROOT, load_recipe
from helpers.grading import read_graded

FOLDER = REPO_ROOT / "notebooks"
PUBLISHED = REPO_ROOT / "data" / "published"
COURSE = ("00", "01", "02", "03", "04", "05", "07")
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
PARAMETERS = {"TIER", "RUN_DIR", "RUN_MODE", "SEED", "OVERRIDES"}
every_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda p: p.stem
)


def load_pairing():
    """notebooks/pair.py as a module."""
    spec = importlib.util.spec_from_file_location("pair", FOLDER / "pair.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    """A notebook, checked against its schema."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def list_cells(notebook, kind):
    """Cells of one kind that hold something."""
    cells = [c for c in notebook.cells if c.cell_type == kind]
    return [c for c in cells if c.source.strip()]


def list_outputs(notebook):
    """Every output of every code cell."""
    return [o for c in list_cells(notebook, "code") for o in c.outputs]


# --- form ----------------------------------------------------------------


def test_the_course_is_complete_and_paired():
    sources = {p.stem for p in (FOLDER / "source").glob("[0-9][0-9]_*.py")}
    assert {p.stem for p in NOTEBOOKS} == sources
    assert set(COURSE) <= {name[:2] for name in sources}


@every_notebook
def test_notebook_is_in_step_with_its_source(path):
    pair = load_pairing()
    assert pair.is_in_step(FOLDER / "source" / f"{path.stem}.py"), (
        "run: python notebooks/pair.py sync"
    )


def test_making_all_notebooks_begins_in_an_empty_folder(tmp_path):
    """Stages that an earlier run finished would only be loaded."""
    pair, folder = load_pairing(), tmp_path / "pocket"
    pair.put_aside(folder)
    for number in (1, 2):
        folder.mkdir()
        pair.put_aside(folder)
        assert not folder.exists() and (tmp_path / f"pocket-{number}").is_dir()


@every_notebook
def test_kernel_is_plain_python3(path):
    kernel = read(path).metadata["kernelspec"]
    assert kernel["name"] == "python3"
    assert kernel["display_name"].startswith("Python 3")
    assert kernel["language"] == "python"


@every_notebook
def test_parameters_cell(path):
    """One, typed, at most ten lines, nothing derived in it."""
    cells = list_cells(read(path), "code")
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", ())]
    (cell,) = tagged
    assert len(cell.source.splitlines()) <= 10
    body = ast.parse(cell.source).body
    assert all(isinstance(node, ast.AnnAssign) for node in body)
    assert {node.target.id for node in body} >= PARAMETERS
    for node in body:
        ast.literal_eval(node.value)


@every_notebook
def test_code_cells_are_short_and_narrow(path):
    cells = list_cells(read(path), "code")
    lengths = [len(c.source.splitlines()) for c in cells]
    assert max(lengths) <= 40
    assert statistics.median(lengths) <= 8
    wide = [x for c in cells for x in c.source.splitlines() if len(x) > 76]
    assert not wide, wide[:3]


@every_notebook
def test_models_come_through_the_session(path):
    """A replay has no model; ``session.load`` knows that."""
    for cell in list_cells(read(path), "code"):
        assert "load_model(" not in cell.source
        assert not re.search(r"(?<!session\.)\bmake_engine\(", cell.source)


SETUP = "from helpers.session import start\n"


@every_notebook
def test_setup_is_one_short_cell(path):
    """The code cell after the parameters, its beginning alike everywhere."""
    cells = [c.source for c in list_cells(read(path), "code")]
    setup = [s for s in cells if SETUP in s]
    assert setup == [cells[1]]
    common = list_cells(read(NOTEBOOKS[0]), "code")[1].source
    assert setup[0].partition(SETUP)[0] == common.partition(SETUP)[0]
    fetch, _, opening = setup[0].partition(SETUP)
    assert len([line for line in fetch.splitlines() if line]) < 10
    assert len(opening.strip().splitlines()) <= 10
    assert f'notebook="{path.stem}"' in opening


@every_notebook
def test_cells_do_not_tell_a_replay_from_a_run(path):
    """``session.run`` and ``session.recorded`` know; a learner need not."""
    for cell in list_cells(read(path), "code"):
        found = re.search(
            r"session\.(mode|recall|release)|RUN_MODE\s*[=!]=", cell.source
        )
        assert not found, found[0]


FACES = (
    *("base", "grading", "problems", "planner", "results", "models"),
    *("sampling", "stages"),
)
# What a person starts, and the experiments that notebooks 02 and 04 show.
TOPS = ("session", "doctor", "experiments")
# A stage is one file: a notebook may open it (sft.build_trainer).
STAGE_FILES = ("dpo", "sft")


@every_notebook
def test_imports_are_from_the_faces(path):
    for cell in list_cells(read(path), "code"):
        for module, name in list_own_imports(cell.source):
            room, _, inner = module.removeprefix("helpers.").partition(".")
            if room in TOPS:
                continue
            assert room in FACES and not inner, f"{module} is inside a room"
            face = importlib.import_module(module)
            known = (*face.__all__, *(STAGE_FILES if room == "stages" else ()))
            known += ("plots",) if room == "results" else ()
            assert name in known, f"{module} has no public {name}"


def list_own_imports(source):
    """``[(module, name)]`` of what a cell imports from the package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "helpers":
                    yield alias.name, ""
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] == "helpers":
                for alias in node.names:
                    yield node.module, alias.name


@every_notebook
def test_text_cells_are_merged(path):
    """A thought is a paragraph or a short list, not a row of cells."""
    kinds = [c.cell_type for c in read(path).cells if c.source.strip()]
    pairs = list(itertools.pairwise(kinds))
    assert pairs.count(("markdown", "markdown")) <= 2


@every_notebook
def test_three_exercises(path):
    assert count_exercises(read(path)) >= 3


def count_exercises(notebook):
    """Numbered or bulleted items, or headings, under "Exercises"."""
    text = "\n".join(c.source for c in list_cells(notebook, "markdown"))
    parts = re.split(r"(?im)^##+ .*\bexercises?\b.*$", text)
    if len(parts) == 2:
        below = re.split(r"(?m)^## ", parts[1])[0]
        return len(re.findall(r"(?m)^(?:\d+\.|[-*]|###+) ", below))
    return len(parts) - 1


@every_notebook
def test_badge_leads_to_this_notebook(path):
    first = list_cells(read(path), "markdown")[0].source
    link = re.search(
        r"colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/[\w.-]+/"
        r"([\w./-]+\.ipynb)",
        first,
    )
    assert link, "the first cell has no Colab badge"
    assert link[1] == path.relative_to(REPO_ROOT).as_posix()


@every_notebook
def test_links_inside_the_repository_exist(path):
    for cell in list_cells(read(path), "markdown"):
        for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
            name = target.partition("#")[0]
            if name and not re.match(r"[a-z]+:", name):
                assert (path.parent / name).exists(), target


# --- code that has run, and runs everywhere ------------------------------


@every_notebook
def test_every_code_cell_has_run_without_error(path):
    notebook = read(path)
    for cell in list_cells(notebook, "code"):
        assert cell.execution_count, f"not executed: {cell.source[:60]!r}"
    errors = [o for o in list_outputs(notebook) if o.output_type == "error"]
    assert not errors
    counts = [c.execution_count for c in list_cells(notebook, "code")]
    assert counts == sorted(counts), "cells were run out of order"


@every_notebook
def test_outputs_name_no_machine(path):
    """No home folder of who ran it, no kernel warnings left over."""
    text = "\n".join(output_texts(read(path)))
    found = re.search(r"(?<![\w.])/(home|Users|root|tmp)/[\w.-]+", text)
    assert not found, found[0]
    assert "TqdmWarning" not in text


@every_notebook
def test_no_shell_background_no_login_no_install(path):
    for cell in list_cells(read(path), "code"):
        for line in cell.source.splitlines():
            assert not re.match(r"\s*!.*&\s*$", line), line
            assert not re.search(r"\b(notebook_)?login\(", line), line
            assert not re.search(r"\bwandb\b", line), line
            assert not re.match(r"\s*[!%]\s*pip\b", line), line


@every_notebook
def test_figures_have_alt_text(path):
    for output in list_outputs(read(path)):
        for image in missing_alt(output):
            pytest.fail(f"a figure without alt text: {image[:80]}")


def missing_alt(output):
    """Images of one output that say nothing to a screen reader."""
    data, meta = output.get("data", {}), output.get("metadata", {})
    for kind in data:
        told = meta.get(kind, {})
        if kind.startswith("image/") and not str(told.get("alt", "")).strip():
            yield kind
    page = data.get("text/html", "")
    for tag in re.findall(r"<img\b[^>]*>", page):
        if not re.search(r'\balt="[^"]+"', tag):
            yield tag


# --- numbers in prose ----------------------------------------------------

NUMBER = r"(?<![\w.,])[-−+]?\d[\d,]*(?:\.\d+)?"
UNITS = {
    "%": r"\s*%|\s*percent\b",
    "points": r"\s*(?:percentage )?points?\b",
    "s": r"\s*(?:s|sec|secs|seconds?)\b",
    "min": r"\s*(?:min|mins|minutes?)\b",
    "h": r"\s*(?:h|hours?)\b",
    "GB": r"\s*(?:GB|GiB|MB|MiB|TB)\b",
    "USD": r"\s*(?:USD|dollars?)\b",
    "tok/s": r"\s*(?:tok|tokens)(?:/s| per second)",
    "count": r"/\d+\b",
}
QUANTITY = re.compile(
    "|".join(
        f"(?P<n{i}>{NUMBER})(?:{unit})"
        for i, unit in enumerate(UNITS.values())
    )
    + r"|\$(?P<usd>\d[\d,]*(?:\.\d+)?)(?![\w$]*\$)"
)
# Quantities that no run measures: (unit, number) and why it may stand there.
ALLOWED = {
    ("%", 95.0): "the confidence level used everywhere",
    ("%", 5.0): "its complement, the level of the tests",
    ("%", 0.0): "the end of the scale",
    ("%", 100.0): "the end of the scale",
    ("%", 50.0): "a coin",
}


def read_quantities(text):
    """``[(unit, number, as written)]`` of the measured-looking numbers."""
    text = re.sub(r"```.*?```", " ", text, flags=re.S)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    found = []
    for match in QUANTITY.finditer(text):
        (group, digits), *_ = [
            (k, v) for k, v in match.groupdict().items() if v is not None
        ]
        unit = "USD" if group == "usd" else list(UNITS)[int(group[1:])]
        number = float(digits.replace(",", "").replace("−", "-"))
        found.append((unit, number, match[0].strip()))
    return found


def output_texts(notebook):
    """All text that the code cells printed or displayed."""
    for output in list_outputs(notebook):
        if output.output_type == "stream":
            yield output.text
        for kind, data in output.get("data", {}).items():
            if kind.startswith("text/"):
                yield re.sub(r"<[^>]+>", " ", data)


def rendered_quantities(notebook):
    """Quantities that the notebook itself shows in an output."""
    out = set()
    for text in output_texts(notebook):
        out |= {(unit, n) for unit, n, _ in read_quantities(text)}
    return out


def published_numbers():
    """Every number in data/published, and the names to credit."""
    numbers, names = set(), set()
    for path in sorted(PUBLISHED.glob("*.json")):
        data = json.loads(path.read_text("utf-8"))
        names |= {path.stem.lower(), data["published_by"].lower()}
        stack = [data]
        while stack:
            item = stack.pop()
            if isinstance(item, dict):
                stack += item.values()
            elif isinstance(item, list):
                stack += item
            elif isinstance(item, int | float):
                numbers.add(float(item))
    return numbers, names


def find_unbacked(text, rendered, published, names):
    """Quantities of a text that neither a run nor a source stands behind.

    A published figure needs its credit in the same cell: the word
    "published" or the name of the project.
    """
    credit = "published" in text.lower()
    credit = credit or any(name in text.lower() for name in names)
    for unit, number, written in read_quantities(text):
        if (unit, number) in ALLOWED or (unit, number) in rendered:
            continue
        if credit and number in published:
            continue
        yield written


@every_notebook
def test_numbers_in_prose_are_backed(path):
    notebook = read(path)
    rendered = rendered_quantities(notebook)
    published, names = published_numbers()
    for cell in list_cells(notebook, "markdown"):
        bad = list(find_unbacked(cell.source, rendered, published, names))
        assert not bad, f"{bad} in: {cell.source[:200]}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SFT reaches 43.2 % here", [("%", 43.2)]),
        ("86/200 were right", [("count", 86)]),
        ("it takes 3 minutes and 1.5 GB", [("min", 3), ("GB", 1.5)]),
        ("that is 12 seconds", [("s", 12)]),
        ("a gain of +6.4 points", [("points", 6.4)]),
        ("1,200 tok/s for $26.33", [("tok/s", 1200), ("USD", 26.33)]),
        ("3.5 h at 93 USD", [("h", 3.5), ("USD", 93)]),
        ("step 3 of 4, seed 42, LoRA r=16", []),
        ("$p = 5$ and $x < 7$ in a formula", []),
        ("section 2.1 has the 7B model", []),
    ],
)
def test_checker_sees_measured_numbers(text, found):
    assert [(unit, n) for unit, n, _ in read_quantities(text)] == found


def test_checker_wants_a_run_or_a_credit():
    def check(text, rendered=()):
        return list(find_unbacked(text, set(rendered), {79.5}, {"math-slm"}))

    assert check("it fell to 79.5 %") == ["79.5 %"]
    assert check("it fell to 79.5 % (published by others)") == []
    assert check("math-slm saw 79.5 %") == []
    assert check("math-slm saw 78.5 %") == ["78.5 %"]
    assert check("it fell to 79.5 %", [("%", 79.5)]) == []
    assert check("it took 79.5 s", [("%", 79.5)]) == ["79.5 s"]
    assert check("the 95 % interval") == []


def test_checker_sees_missing_alt_text():
    bare = {"data": {"image/png": "x"}, "metadata": {}}
    told = {
        "data": {"image/png": "x"},
        "metadata": {"image/png": {"alt": "a"}},
    }
    page = {"data": {"text/html": '<img src="a"><img alt="b" src="c">'}}
    assert list(missing_alt(bare)) == ["image/png"]
    assert list(missing_alt(told)) == []
    assert list(missing_alt(page)) == ['<img src="a">']


# --- the course runs -----------------------------------------------------


def shrink(recipe):
    """Overrides that make the whole course a matter of a minute or two."""
    benchmarks = [
        b.model_dump(mode="json") | {"n": 8}
        for b in recipe.evaluate.benchmarks
    ]
    shown = yaml.safe_dump(benchmarks, default_flow_style=True, width=10_000)
    return [
        "data.n_problems=24",
        "harvest.min_pairs=0",
        "harvest.min_distinct_fraction=0",
        "sft.epochs=1",
        "sft.min_steps_per_epoch=0",
        "dpo.max_steps=3",
        "dpo.noop_margin=0",
        "dpo_variants.published.max_steps=3",
        f"evaluate.benchmarks={shown.strip()}",
        "course.dev=16",
        "course.sweep=8",
        "course.seeding=8",
        "course.samples=2",
    ]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The course from 00 to 07 on a few problems."""
    from helpers.course import run_course

    if not (REPO_ROOT / "data/pocket/model/model.safetensors").is_file():
        pytest.skip("data/pocket/model is not there")
    folder = tmp_path_factory.mktemp("course") / "run"
    console = Console(file=io.StringIO())
    overrides = shrink(load_recipe("pocket"))
    options = {"console": console, "overrides": overrides}
    page = run_course("pocket", folder, **options)
    return folder, page, options


@pytest.mark.slow
def test_course_runs_and_leaves_its_artefacts(small_run):
    folder, page, _ = small_run
    assert page == folder / "report.html" and page.stat().st_size > 10_000
    timings = json.loads((folder / "notebooks/timings.json").read_text())
    assert [name[:2] for name in timings] == list(COURSE)
    for name, seconds in timings.items():
        notebook = read(folder / "notebooks" / f"{name}.ipynb")
        assert notebook.metadata.papermill["duration"] == pytest.approx(
            seconds, abs=0.01
        )
        kinds = {o.output_type for o in list_outputs(notebook)}
        assert "error" not in kinds
    done = {json.loads(p.read_text())["stage"] for p in list_stages(folder)}
    assert done >= {
        "distill",
        "sft",
        "merge/sft",
        "dpo",
        "merge/dpo",
        "evaluate/base",
        "evaluate/sft",
        "evaluate/dpo",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    for tag in ("base", "sft", "dpo"):
        for name, row in metrics[f"evaluate/{tag}"].items():
            rows = read_graded(folder / "eval" / tag / f"{name}.jsonl")
            assert len(rows) == row["n"] == 8
            assert sum(r.correct for r in rows) == row["k"]


@pytest.mark.slow
def test_a_second_run_loads_what_is_finished(small_run):
    from helpers.course import run_course

    folder, _, options = small_run
    before = {p: p.read_bytes() for p in list_stages(folder)}
    run_course("pocket", folder, first="03", last="03", **options)
    assert {p: p.read_bytes() for p in list_stages(folder)} == before


NO_MODEL = """\
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.models.llama.modeling_llama":
            raise RuntimeError("a replay loads no model")


sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize(
    ("tier", "first", "last"),
    [
        pytest.param("pocket", "02", "05", marks=pytest.mark.slow),
        pytest.param("smol", "04", "05", marks=pytest.mark.long),
    ],
)
def test_a_record_replays_without_a_model(
    tier, first, last, tmp_path, monkeypatch
):
    """In kernels that cannot import the model's code."""
    from helpers.course import choose_quick, run_course

    if not (REPO_ROOT / "data/measured" / tier / "run").is_dir():
        pytest.skip(f"no run of tier {tier} is recorded")
    (tmp_path / "sitecustomize.py").write_text(NO_MODEL, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    recipe = load_recipe(tier)
    page = run_course(
        tier,
        tmp_path / "run",
        first=first,
        last=last,
        parameters={"RUN_MODE": "replay"},
        overrides=choose_quick(recipe, []) if recipe.quick else [],
        console=Console(file=io.StringIO()),
    )
    assert page.stat().st_size > 10_000
    executed = sorted((tmp_path / "run" / "notebooks").glob("*.ipynb"))
    assert len(executed) == int(last) - int(first) + 1
    for path in executed:
        shown = "\n".join(output_texts(read(path)))
        assert re.search(r"recorded", shown), f"{path.stem} does not say so"
    record = REPO_ROOT / "data/measured" / tier / "run"
    ours, theirs = (
        json.loads((folder / "metrics.json").read_text("utf-8"))
        for folder in (tmp_path / "run", record)
    )
    assert ours["evaluate/sft"] == theirs["evaluate/sft"]


def list_stages(folder):
    """Records of the finished stages."""
    return sorted(Path(folder, "stages").glob("*.json"))
