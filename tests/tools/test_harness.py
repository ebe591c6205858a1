"""Our greedy evaluation beside lm-evaluation-harness, problem by problem.

The real harness runs the same model on the same prompts with a task of its
own (a YAML file written here), its own ``HFLM`` and its own counting; the
verdict on a response is our grader's, called by the task. It needs a Python
that has ``lm_eval``: name it in ``MATHSLM_PEERS_PYTHON``. What that Python
lacks (torch, transformers) is taken from the one that runs this test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from helpers.base import REPO_ROOT, Problem, RunDir, load_recipe, write_records
from helpers.problems import load_problems

pytestmark = pytest.mark.slow

CAP, N_GSM8K, N_POCKET = 96, 60, 40
TASK = "mathslm_check"
# Runs in the harness' Python. Ours comes last on its path, so that its own
# packages win.
DRIVER = """
import json, sys
sys.path += json.loads(sys.argv[1])
sys.argv = ["lm_eval", *sys.argv[2:]]
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""
UTILS = """
from helpers.grading import grade_response


def process_results(doc, results):
    grade = grade_response(results[0], doc["gold"])
    return {"exact_match": float(grade.correct)}
"""


@pytest.fixture(scope="module")
def harness() -> str:
    """A Python that has lm_eval."""
    python = os.environ.get("MATHSLM_PEERS_PYTHON", sys.executable)
    code = "import lm_eval, sys; print(sys.version_info[:2])"
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        pytest.skip("no lm_eval: name a Python in MATHSLM_PEERS_PYTHON")
    if done.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip(f"lm_eval's Python is {done.stdout.strip()}, not ours")
    return python


@pytest.fixture(scope="module")
def gsm8k() -> list[Problem]:
    """The first problems of GSM8K's test set."""
    shared = os.environ.get("MATHSLM_SHARED", REPO_ROOT.parent / "shared")
    path = Path(shared) / "benchmarks" / "gsm8k_test.jsonl"
    if not path.is_file():
        pytest.skip("GSM8K is not here: set MATHSLM_SHARED")
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return [
        Problem(
            id=f"gsm8k-{i}",
            problem=row["question"],
            answer=row["answer"].rpartition("####")[2].strip(),
            source="gsm8k",
        )
        for i, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def ours(tmp_path_factory, pocket_model, gsm8k):
    """Our run on problems that fit the context; its folder and rows."""
    from helpers.models import load_tokenizer, render_prompt
    from helpers.results import load_results
    from helpers.stages import run_evaluate

    tokenizer = load_tokenizer(pocket_model)

    def fits(problem: Problem) -> bool:
        prompt = render_prompt(tokenizer, problem.problem, "plain")
        return len(tokenizer(prompt)["input_ids"]) + CAP < 500

    folder = tmp_path_factory.mktemp("ours")
    chosen = [p for p in gsm8k if fits(p)][:N_GSM8K]
    # The small model solves none of GSM8K, so some of its own kind too.
    chosen += load_problems("pocket/main.jsonl", N_POCKET)
    path = folder / "problems.jsonl"
    write_records(path, chosen)
    raw = {
        "extends": "pocket",
        "evaluate": {
            "benchmarks": [
                {"name": TASK, "path": str(path), "n": len(chosen)}
            ],
            "main": TASK,
            "max_new_tokens": CAP,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw))
    recipe = load_recipe(folder / "recipe.yaml")
    run = RunDir.open(folder / "run", recipe)
    run_evaluate(recipe, run, ("base",))
    return run, load_results(run, "base", TASK)


def write_task(folder: Path, rows) -> None:
    """The harness' own task: the prompts as they are, our grader."""
    docs = folder / "docs.jsonl"
    lines = [
        {"id": r.problem_id, "prompt": r.prompt, "gold": r.gold} for r in rows
    ]
    docs.write_text("".join(json.dumps(x) + "\n" for x in lines), "utf-8")
    (folder / "utils.py").write_text(UTILS, "utf-8")
    text = f"""
task: {TASK}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {docs.as_posix()}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{gold}}}}"
process_results: !function utils.process_results
generation_kwargs: {{until: [], max_gen_toks: {CAP}, do_sample: false}}
num_fewshot: 0
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""
    (folder / f"{TASK}.yaml").write_text(text, "utf-8")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, harness, pocket_model, ours):
    """The harness' page of results and its lines, by document id."""
    folder = tmp_path_factory.mktemp("theirs")
    write_task(folder, ours[1])
    path = [str(REPO_ROOT), sysconfig.get_paths()["purelib"]]
    command = [harness, "-c", DRIVER, json.dumps(path), "run"]
    command += ["--model", "hf", "--tasks", TASK, "--device", "cpu"]
    command += ["--model_args", f"pretrained={pocket_model},dtype=float32"]
    command += ["--include_path", str(folder), "--batch_size", "16"]
    command += ["--output_path", str(folder / "out"), "--log_samples"]
    environment = dict(
        os.environ,
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_HOME=str(folder / "cache"),
        PYTHONPATH="",
    )
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (page,) = (folder / "out").rglob("results_*.json")
    (lines,) = (folder / "out").rglob(f"samples_{TASK}_*.jsonl")
    rows = [json.loads(x) for x in lines.read_text("utf-8").splitlines()]
    return json.loads(page.read_text("utf-8")), rows


def test_same_responses_and_verdicts_problem_by_problem(ours, theirs):
    _, rows = ours
    page, lines = theirs
    assert len(lines) == len(rows) == N_GSM8K + N_POCKET
    found = {line["doc"]["id"]: line for line in lines}
    for row in rows:
        line = found[row.problem_id]
        assert line["arguments"]["gen_args_0"]["arg_0"] == row.prompt
        assert line["resps"] == [[row.response]], row.problem_id
        assert line["exact_match"] == float(row.correct), row.problem_id
    right = sum(row.correct for row in rows)
    assert 0 < right < len(rows)
    score = page["results"][TASK]["exact_match,none"]
    assert score == pytest.approx(right / len(rows))


def test_our_export_is_a_file_like_theirs(ours, theirs):
    """The same fields of the same kinds, scores and hashes."""
    from helpers.results import read_results
    from tools.lm_eval import export_lm_eval

    run, _ = ours
    page, lines = theirs
    export_lm_eval(read_results(run))
    (path,) = run.file("lm_eval", "base").glob("results_*.json")
    ours_page = json.loads(path.read_text("utf-8"))
    (path,) = run.file("lm_eval", "base").glob("samples_*.jsonl")
    ours_lines = [json.loads(x) for x in path.read_text("utf-8").splitlines()]
    score, other = ours_page["results"][TASK], page["results"][TASK]
    assert score.keys() == other.keys()
    for key in ("exact_match,none", "exact_match_stderr,none", "sample_len"):
        assert score[key] == pytest.approx(other[key])
    for key in ("n-shot", "higher_is_better", "n-samples"):
        assert ours_page[key] == page[key]
    lacking = page.keys() - ours_page.keys()
    # what describes the process of the harness itself
    assert all(
        key.startswith(("tokenizer_", "pretty_env", "upper_", "lm_eval_"))
        or key in ("eot_token_id", "max_length")
        for key in lacking
    ), lacking
    by_prompt = {line["prompt_hash"]: line for line in lines}
    for line in ours_lines:
        twin = by_prompt[line["prompt_hash"]]
        assert line.keys() == twin.keys()
        for key, value in line.items():
            assert type(value) is type(twin[key]), key
        for key in ("target", "target_hash", "resps", "metrics", "filter"):
            assert line[key] == twin[key], key
        assert line["exact_match"] == twin["exact_match"]


def test_the_harness_reads_our_export(ours, harness):
    """Its own table of a page of results, made from ours."""
    run, rows = ours
    done = subprocess.run(
        [sys.executable, "-m", "tools.lm_eval", str(run.path)],
        capture_output=True,
        text=True,
        cwd=REPO_ROOT,
    )
    assert done.returncode == 0, done.stderr
    (path,) = run.file("lm_eval", "base").glob("results_*.json")
    code = (
        "import json, sys; from lm_eval.utils import make_table; "
        "print(make_table(json.load(open(sys.argv[1], encoding='utf-8'))))"
    )
    done = subprocess.run(
        [harness, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    share = sum(row.correct for row in rows) / len(rows)
    (line,) = [x for x in done.stdout.splitlines() if TASK in x]
    cells = [cell.strip() for cell in line.split("|")]
    assert f"{share:g}" in cells and "exact_match" in cells
