"""One function decides everywhere what is correct: ``helpers.grading``."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from helpers.base import Completion, SftRow, read_records, write_records
from helpers.grading import grade as grading
from helpers.grading.core import Verdict

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "helpers"
# What may know another grader: the one itself, and what it is compared with.
EXEMPT = ("grading", "peers")
# Modules that get verdicts, and what they may get them through.
NEEDS_VERDICTS = {
    "sampling": {"grade_many", "grade_response"},
    "grade_file": {"grade_many", "grade_response"},
    "rewards": {"grade_many", "grade_response"},
}
OTHER_GRADERS = {"math_verify", "latex2sympy2_extended"}
MARKERS = ("boxed", "fbox", "####", "<answer>")
SEARCHES = {
    "compile", "search", "match", "fullmatch", "finditer", "findall", "sub",
    "subn", "split", "rsplit", "partition", "rpartition", "find", "rfind",
    "index", "rindex", "startswith", "removeprefix",
}  # fmt: skip
# These build a grader in steps, to show why one needs more.
TEACHES_GRADING = "grading"


def list_sources():
    """Every module that must leave verdicts to helpers.grading."""
    return [
        path
        for path in sorted(HELPERS.rglob("*.py"))
        if path.relative_to(HELPERS).parts[0].removesuffix(".py") not in EXEMPT
    ]


def list_notebooks():
    """The texts of notebooks and labs, but for those about grading."""
    found = [*ROOT.glob("notebooks/source/*.py"), *ROOT.glob("labs/**/*.py")]
    return [
        p
        for p in sorted(found)
        if TEACHES_GRADING not in p.relative_to(ROOT).as_posix()
    ]


def find_own_grading(source):
    """What in a module decides about answers by itself, as lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        for name in names:
            if name.split(".")[0] in OTHER_GRADERS:
                found.append(f"line {node.lineno}: imports {name}")
        if isinstance(node, ast.Call) and called_name(node) in SEARCHES:
            for text in list_strings(node):
                if any(mark in text for mark in MARKERS):
                    found.append(f"line {node.lineno}: looks for {text!r}")
    return found


def called_name(call):
    """``re.search(…)`` and ``text.split(…)`` by their last name."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def list_strings(call):
    """Every piece of text in the arguments of a call."""
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return [
        node.value
        for value in values
        for node in ast.walk(value)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def read_grading_imports(path):
    """Names that a module takes from helpers.grading itself."""
    return {
        alias.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
        and node.module == "helpers.grading"
        for alias in node.names
    }


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from math_verify import parse", True),
        ("def f():\n    import math_verify.grader", True),
        ("BOX = re.compile(r'\\\\boxed\\{(.*?)\\}')", True),
        ("answer = text.split('####')[-1]", True),
        ("answer = text.rpartition('\\\\boxed{')[2]", True),
        ("tag = re.findall('<answer>' + '(.*)', text)", True),
        ("text = f'The answer is \\\\boxed{{{value}}}.'", False),
        ("from helpers.grading import grade_many", False),
        ("words = text.split(', ')", False),
    ],
)
def test_the_scan_sees_what_it_should(source, found):
    assert bool(find_own_grading(source)) is found


# Turn the marks of data sets into ours, in texts to train on; whether a text
# is right they ask the grader.
WRITERS = ("helpers/problems/worked.py",)


@pytest.mark.parametrize(
    "path",
    list_sources() + list_notebooks(),
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_no_other_module_decides_by_itself(path):
    found = find_own_grading(path.read_text("utf-8"))
    if path.relative_to(ROOT).as_posix() in WRITERS:
        found = [line for line in found if "looks for" not in line]
    assert not found, f"use helpers.grading instead: {found}"


def test_modules_that_need_verdicts_take_them_from_the_package():
    for name, allowed in NEEDS_VERDICTS.items():
        path = HELPERS / f"{name}.py"
        if path.is_file():
            assert read_grading_imports(path) & allowed, name


def test_correctness_is_stored_only_with_a_grade():
    """Who makes a Completion's ``correct`` must hold a verdict."""
    makers = [
        path.stem
        for path in list_sources()
        if "correct=" in path.read_text("utf-8")
        and "Completion(" in path.read_text("utf-8")
    ]
    assert makers == ["sampling"]


# --- by behaviour --------------------------------------------------------


class Saying:
    """An engine that gives every problem the same boxed answer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def describe(self):
        """Name itself, as every engine does."""
        return {"name": "saying"}

    def sample(self, requests):
        """Yield a wrong answer, numbered so that no two are alike."""
        from helpers.sampling.engine import SampledText

        for request in requests:
            text = f"try {request.sample}: \\boxed{{-5}}"
            yield SampledText(request, text, "stop", 9, -0.5)


@pytest.fixture(params=[False, True], ids=["as it is", "one function changed"])
def verdict(request, monkeypatch):
    """The verdict on a wrong answer: changed in one place, or not."""
    if request.param:
        monkeypatch.setattr(
            grading, "judge", lambda *_: Verdict(True, "changed")
        )
    return request.param


def test_sampling_harvest_and_evaluation_follow(
    tiny_recipe, run, tokenizer, verdict, monkeypatch
):
    from helpers.stages import distill, evaluate

    for module in (distill, evaluate):
        monkeypatch.setattr(
            module, "open_engine", lambda *_, **__: Saying(tokenizer)
        )
    metrics = distill.run_distill(tiny_recipe, run)
    rows = read_records(run.file("samples/distill.jsonl"), Completion)
    assert {row.correct for row in rows} == {verdict}
    kept = read_records(run.file("sft.jsonl"), SftRow)
    assert bool(kept) is verdict and metrics["sft_rows"] == len(kept)
    scores = evaluate.run_evaluate(tiny_recipe, run, ("base",))
    assert scores["base"]["bench"]["k"] == (8 if verdict else 0)
    loaded = evaluate.load_results(run, "base", "bench")
    assert {row.correct for row in loaded} == {verdict}


def test_reading_a_file_follows(run, verdict):
    from helpers.results import read_graded_file

    row = Completion(
        problem_id="sum-0", sample=0, prompt="p", response=r"\boxed{-5}",
        correct=not verdict, finish_reason="stop", tokens=3,
        mean_logprob=-1.0, seed=0, gold="1",
    )  # fmt: skip
    write_records(run.file("samples/distill.jsonl"), [row])
    (now,) = read_graded_file(run, "samples/distill.jsonl")
    assert now.correct is verdict


def test_grading_a_file_follows(tmp_path, verdict):
    from helpers.grading import read_cases
    from helpers.grading.files import grade_cases

    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"response": r"\boxed{-5}", "gold": "1"}))
    (grade,) = grade_cases(read_cases(path))
    assert grade.correct is verdict


def test_all_public_names_follow(verdict):
    assert grading.is_equivalent("-5", "1") is verdict
    assert grading.grade_response(r"\boxed{-5}", "1").correct is verdict
    *_, last = grading.explain_grade(r"\boxed{-5}", "1")
    assert last.outcome.startswith("yes" if verdict else "no")
