"""The house rules: versions agree, floors hold, files named exist."""

import ast
import functools
import importlib
import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from helpers.cli import app

ROOT = Path(__file__).resolve().parent.parent
HELPERS = ROOT / "helpers"
ROOMS = (
    "base",
    "grading",
    "problems",
    "planner",
    "results",
    "models",
    "sampling",
    "stages",
)
COMMAND = re.compile(r"(?:\S*[/\\])?(?:mathslm|python -m helpers) +(.+)")
FORBIDDEN = {
    "an absolute path of one machine": re.compile(
        "(?<![\\w.])/" + "(home|Users|root|work|farm)" + r"/[\w.-]+"
    ),
    "a registry's host": re.compile(
        "|".join(
            re.escape(name + "." + end)
            for name, end in (
                ("pypi", "org"),
                ("pythonhosted", "org"),
                ("npmjs", "org"),
                ("pytorch", "org/whl"),
            )
        )
    ),
}
TEXT = {
    ".py",
    ".md",
    ".ipynb",
    ".yaml",
    ".yml",
    ".toml",
    ".txt",
    ".json",
    ".cff",
    ".html",
    "",
}


def run_git(*arguments):
    """Lines of a git command, or None outside a repository."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.splitlines() if done.returncode == 0 else None


@functools.cache
def list_files():
    """Files that are, or would be, committed."""
    names = run_git("ls-files", "-co", "--exclude-standard")
    if names is None:
        pytest.skip("not a git checkout")
    return [p for p in (ROOT / name for name in names) if p.is_file()]


@functools.cache
def read_project():
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@functools.cache
def read_pins():
    """``{name: version}`` of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [x.split("==") for x in lines if x and not x.startswith("#")]
    return {normalise(name): version for name, version in pairs}


def normalise(name):
    """The form in which distribution names are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def list_modules():
    """Every module of the package, as paths."""
    return sorted(p for p in HELPERS.rglob("*.py") if p.is_file())


def read_imports(path):
    """Names of all modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


# --- packaging -----------------------------------------------------------


def default_and_dev():
    """The requirements that constraints.txt must pin."""
    project = read_project()["project"]
    names = project["dependencies"] + project["optional-dependencies"]["dev"]
    return [Requirement(text) for text in names]


def test_constraints_pin_what_the_project_needs():
    pins = read_pins()
    for need in default_and_dev():
        version = pins.get(normalise(need.name))
        assert version, f"{need.name} is not in constraints.txt"
        assert need.specifier.contains(version), f"{need} != {version}"


def test_constraints_are_exact_and_portable():
    for name, version in read_pins().items():
        assert re.fullmatch(r"[\w.]+", version), f"{name}: local version"
    assert read_pins()["torch"] == "2.13.0"
    heavy = {"nvidia", "vllm", "reasoning-gym"}
    assert not {n for n in read_pins() if n.split("-")[0] in heavy}


def test_this_environment_is_the_tested_one():
    """CI and `make test` run what constraints.txt says."""
    if not (Path(sys.prefix) / ".installed-dev").is_file():
        pytest.skip("not an environment made by make")
    for need in default_and_dev():
        if need.marker and not need.marker.evaluate():
            continue
        found = importlib.metadata.version(need.name).split("+")[0]
        assert found == read_pins()[normalise(need.name)], need.name


def test_conda_file_is_the_same_set():
    project = read_project()["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert conda["name"] == project["name"]
    (pip,) = [d["pip"] for d in conda["dependencies"] if isinstance(d, dict)]
    plain = [d for d in conda["dependencies"] if isinstance(d, str)]
    python = next(d for d in plain if d.startswith("python"))
    wanted = SpecifierSet(project["requires-python"])
    ours = SpecifierSet(python.removeprefix("python"))
    versions = [f"3.{minor}" for minor in range(8, 20)]
    assert set(ours.filter(versions)) <= set(wanted.filter(versions))
    assert "3.11" in ours, "constraints.txt was made with 3.11"
    assert pip[0] == "-c constraints.txt" and pip[-1] == "-e ."
    extra = {normalise(Requirement(d).name) for d in pip[1:-1]}
    extra |= {normalise(d) for d in plain if not d.startswith("python")}
    assert extra <= set(read_pins()) | {"pip"}, "unpinned in environment.yml"


def test_every_import_is_a_declared_dependency():
    """Also those inside functions; extras are named by their module."""
    project = read_project()["project"]
    optional = project["optional-dependencies"]
    declared = [*project["dependencies"], *optional["build"]]
    for extra in ("gpu", "vllm", "zero3", "smol", "peers"):
        declared += optional[extra]
    names = {normalise(Requirement(text).name) for text in declared}
    owner = importlib.metadata.packages_distributions()
    # math-verify's parser, and what papermill and accelerate bring for sure
    names |= {"latex2sympy2-extended", "nbformat", "nbclient", "traitlets"}
    names |= {"jupyter-client", "huggingface-hub", "pandas"}
    for path in list_modules():
        for dotted in read_imports(path):
            first = dotted.split(".")[0]
            if first in sys.stdlib_module_names or first == "helpers":
                continue
            found = {normalise(n) for n in owner.get(first, [first])}
            assert found & names, f"{path.name} imports {first}: undeclared"


def test_console_script_and_version():
    project = read_project()
    assert project["project"]["scripts"] == {"mathslm": "helpers.cli:app"}
    from helpers import __version__

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert str(citation["version"]) == __version__
    assert citation["license"] == project["project"]["license"]
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## {__version__}" in changes
    licence = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in licence and "END OF TERMS" in licence


def test_package_data_is_declared():
    """Every file in helpers that is no module travels with the package."""
    globs = read_project()["tool"]["setuptools"]["package-data"]["helpers"]
    shipped = {p for pattern in globs for p in HELPERS.glob(pattern)}
    for path in list_files():
        if path.is_relative_to(HELPERS) and path.suffix != ".py":
            assert path in shipped, f"{path} is not in package-data"


# --- make and CI ---------------------------------------------------------


def read_make():
    """``{target: recipe lines}`` of the Makefile."""
    targets, current = {}, None
    for line in (ROOT / "Makefile").read_text("utf-8").splitlines():
        if match := re.match(r"([\w$()./-]+):(?!=)", line):
            current = targets.setdefault(match[1], [])
        elif line.startswith("\t") and current is not None:
            current.append(line.strip())
    return targets


def test_make_targets_are_thin():
    targets = read_make()
    for name in ("course", "test", "test-long", "notebooks", "report", "lint"):
        assert name in targets, name
        assert len(targets[name]) == 1, f"{name} is not one thin line"


def test_ci_runs_the_readme_test_command_then_the_long_lane():
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert ci.startswith("#!/usr/bin/env bash")
    assert "set -euo pipefail" in ci
    commands = re.findall(r"^make (.+) </dev/null$", ci, re.M)
    assert commands == ["test", "test-long"]
    assert "make test" in (ROOT / "README.md").read_text("utf-8")


# --- rooms ---------------------------------------------------------------


def test_nothing_is_loose_but_what_a_person_starts():
    loose = {path.stem for path in HELPERS.glob("*.py")}
    starters = {"session", "replay", "course", "doctor", "cli"}
    assert loose <= starters | {"__init__", "__main__"}
    packages = {path.parent.name for path in HELPERS.glob("*/__init__.py")}
    assert packages <= {*ROOMS, "experiments", "cli"}


def test_the_order_of_the_rooms_is_a_contract():
    """lint-imports checks it, lazy imports included; `make lint` runs that."""
    contracts = read_project()["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    rooms = [x.removeprefix("helpers.") for x in reversed(layers)]
    assert tuple(rooms[: len(ROOMS)]) == ROOMS
    assert "lint-imports" in " ".join(read_make()["lint"])


def test_the_rooms_faces_load_no_torch():
    """All of them in one fresh process, and grading by itself."""
    for names in (["grading"], ROOMS):
        code = (
            f"import sys, importlib\nfor name in {[*names]!r}:\n"
            "    importlib.import_module(f'helpers.{name}')\n"
            "    for heavy in ('torch', 'transformers', 'datasets', 'trl'):\n"
            "        assert heavy not in sys.modules, (name, heavy)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_faces_hand_out_what_they_promise():
    for name in ROOMS:
        room = importlib.import_module(f"helpers.{name}")
        lost = [word for word in room.__all__ if not hasattr(room, word)]
        assert not lost, f"helpers.{name}: {lost}"


def test_no_placeholders():
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    for path in list_modules():
        text = path.read_text("utf-8")
        assert not words.search(text), path
        assert "NotImplemented" + "Error" not in text, path


# --- texts ---------------------------------------------------------------


def read_text(path):
    """A committed text file, or None for a binary or a data file."""
    if path.suffix not in TEXT or path.stat().st_size > 5_000_000:
        return None
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return None


def test_no_forbidden_text():
    for path in list_files():
        text = read_text(path)
        for what, pattern in FORBIDDEN.items():
            found = text and pattern.search(text)
            assert not found, f"{path}: names {what}: {found[0]}"


def list_pages():
    """The committed markdown pages."""
    return [p for p in list_files() if p.suffix == ".md"]


def test_links_in_pages_lead_somewhere():
    for page in list_pages():
        text = page.read_text("utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (page.parent / name) if name else page
            assert path.exists(), f"{page.name}: {target}"
            if anchor and path.suffix == ".md":
                assert anchor in list_anchors(path), f"{page.name}: {target}"


def list_anchors(path):
    """Heading anchors of a page, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
    plain = [re.sub(r"[^\w\- ]", "", head).lower() for head in heads]
    return {head.strip().replace(" ", "-") for head in plain}


def test_files_named_in_the_readme_exist():
    """Names in backticks that look like paths, and make targets."""
    text = (ROOT / "README.md").read_text("utf-8")
    ignored = ("runs/", "report.html", ".venv")
    for name in re.findall(
        r"`([\w./-]+\.(?:py|ipynb|md|ya?ml|toml|txt))`", text
    ):
        if not name.startswith(ignored):
            assert list(ROOT.glob(name)) or list(ROOT.rglob(name)), name
    for target in re.findall(r"\bmake ([a-z][\w-]*)", read_code(text)):
        assert target in read_make(), f"make {target}"


def read_code(text):
    """What stands in code blocks and backticks of a page."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.S))


def test_commands_in_the_pages_are_accepted():
    """Each `mathslm …` line of a code block is parsed, not run."""
    from typer.main import get_command

    root = get_command(app)
    for page in list_pages():
        blocks = re.findall(r"```.*?```", page.read_text("utf-8"), re.S)
        for line in "\n".join(blocks).splitlines():
            match = COMMAND.match(line.strip())
            if match:
                name, *arguments = shlex.split(match[1], comments=True)
                assert name in root.commands, f"{page.name}: {line}"
                root.commands[name].make_context(name, arguments)
