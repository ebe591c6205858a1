"""Worked solutions as training rows: formats, the account, lost sources."""

from __future__ import annotations

import json

import pytest
from problem_rows import write_rows
from typer.testing import CliRunner

from helpers.base import (
    LabError,
    Problem,
    RunDir,
    SftRow,
    load_recipe,
    read_json,
    read_records,
    write_records,
)
from helpers.base.run import fits, record_folder
from helpers.cli import app
from helpers.course import choose_quick
from helpers.grading import grade_response
from helpers.models import render_prompt
from helpers.problems import (
    BadSolution,
    hash_problems,
    load_problems,
    write_worked,
)
from helpers.problems.worked import open_boxes
from helpers.stages import list_against, run_solutions


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing of these tests stays in the user's cache of data sets."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def make(solution, answer="18", source="orca-math"):
    """A problem with this worked solution."""
    return Problem(
        id="p", problem="?", answer=answer, source=source, solution=solution
    )


# --- formats ---------------------------------------------------------------

GSM8K = "He has 9*2=<<9*2=18>>18 pens.\nSo 18.\n#### 18"
FORMATS = {
    "gsm8k, boxed": (
        make(GSM8K, source="gsm8k-train"),
        "boxed",
        "He has 9*2=18 pens.\nSo 18.\nThe answer is \\boxed{18}.",
    ),
    "gsm8k, hash": (
        make(GSM8K, source="gsm8k-train"),
        "hash",
        "He has 9*2=18 pens.\nSo 18.\n#### 18",
    ),
    "numina, boxed": (
        make("Thus $\\boxed{18}$.", source="numina-cot"),
        "boxed",
        "Thus $\\boxed{18}$.",
    ),
    "numina, hash": (
        make("Thus $x = \\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        "hash",
        "Thus $x = \\frac{1}{2}$.\n#### \\frac{1}{2}",
    ),
    "prose": (
        make("  Nine and nine.  \n"),
        "boxed",
        "Nine and nine.\nThe answer is \\boxed{18}.",
    ),
}


@pytest.mark.parametrize("case", FORMATS)
def test_each_set_comes_to_one_form(case):
    problem, mark, want = FORMATS[case]
    text = write_worked(problem, mark)
    assert text == want
    assert grade_response(text, problem.answer).correct


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (make(None), "no worked solution"),
        (make(" \n"), "no worked solution"),
        (make("No mark here.", source="gsm8k-train"), "no ####"),
        (make("#### 18", source="gsm8k-train"), "nothing but the answer"),
    ],
)
def test_what_is_no_solution_is_named(problem, message):
    with pytest.raises(BadSolution, match=message):
        write_worked(problem, "boxed")


def test_boxes_are_opened_with_their_braces():
    text = "a \\boxed{\\frac{1}{2}} b \\boxed {3} c \\boxed{4"
    assert open_boxes(text) == "a \\frac{1}{2} b 3 c \\boxed{4"


@pytest.mark.parametrize("mark", ["boxed", "hash"])
def test_pocket_solutions_are_all_right_for_the_grader(mark):
    problems = load_problems("pocket-train", 300)
    texts = [write_worked(p, mark) for p in problems]
    grades = [
        grade_response(t, p.answer)
        for t, p in zip(texts, problems, strict=True)
    ]
    assert sum(g.correct for g in grades) == len(problems)


def test_reasoning_gym_comes_with_worked_solutions():
    pytest.importorskip("reasoning_gym")
    (problem,) = load_problems("reasoning-gym:gsm_symbolic", 1)
    text = write_worked(problem, "hash")
    assert text.count("####") == 1
    assert grade_response(text, problem.answer).correct


# --- the stage -------------------------------------------------------------


def write_pool(folder, n=40, wrong=()):
    """Sums with worked solutions; some of them are wrong or long."""
    rows = []
    for i in range(n):
        result = 1000 + i + (7 if i in wrong else 0)
        talk = f"{i} plus a thousand is {result}."
        rows.append(
            Problem(
                id=f"w{i}",
                problem=f"What do you get for {i} and a thousand?",
                answer=str(1000 + i),
                solution=f"{talk}\nSo it is \\boxed{{{result}}}.",
            )
        )
    path = folder / "worked.jsonl"
    write_records(path, rows)
    return str(path)


def adapt(tmp_path, **changes):
    """The tiny recipe with worked solutions."""
    sets = [f"solutions={json.dumps(changes)}", "sft.max_length=400"]
    return load_recipe(tmp_path / "tiny.yaml", sets)


@pytest.fixture
def pool(tmp_path, tiny_recipe):
    """A file of forty worked problems."""
    return write_pool(tmp_path)


@pytest.fixture
def start(tmp_path):
    """Run the stage in a fresh folder; returns (metrics, rows, run)."""

    def begin(recipe, name="solved", **options):
        run = RunDir.open(tmp_path / name, recipe)
        metrics = run_solutions(recipe, run, **options)
        return metrics, read_records(run.file("solutions.jsonl"), SftRow), run

    return begin


def test_rows_are_prompts_as_asked_and_right_answers(
    tmp_path, pool, start, tokenizer
):
    recipe = adapt(tmp_path, mix={pool: 20})
    metrics, rows, _ = start(recipe)
    golds = {p.id: p for p in load_problems(pool)}
    assert metrics["rows"] == len(rows) == 20
    for row in rows:
        problem = golds[row.problem_id]
        asked = render_prompt(tokenizer, problem.problem, "plain")
        assert row.prompt == asked
        assert grade_response(row.completion, problem.answer).correct
        assert (row.source, row.run) == (pool, "solved")


def test_the_same_inputs_are_loaded_and_others_refused(
    tmp_path, pool, start, capsys
):
    recipe = adapt(tmp_path, mix={pool: 20})
    first, _, _ = start(recipe)
    assert start(recipe)[0] == first
    assert "loaded" in capsys.readouterr().out
    with pytest.raises(LabError, match="made from other inputs"):
        start(adapt(tmp_path, mix={pool: 10}))
    write_pool(tmp_path, 41)
    with pytest.raises(LabError, match="changed: set"):
        start(recipe)


def test_rows_are_for_the_model_that_the_run_settled_on(
    tmp_path, pool, tiny_model_dir, monkeypatch
):
    """A smaller model that took the base's place has its own template."""
    import shutil

    from transformers import AutoTokenizer

    from helpers.models import ladder
    from helpers.models import load as models
    from helpers.stages import trainer as training

    small = tmp_path / "small"
    shutil.copytree(tiny_model_dir, small)
    other = AutoTokenizer.from_pretrained(small)
    other.chat_template = "SMALL " + other.chat_template
    other.save_pretrained(small)
    recipe = adapt(tmp_path, mix={pool: 20})
    changes = {"ladder": True, "smaller": str(small)}
    model = recipe.model.model_copy(update=changes)
    recipe = recipe.model_copy(update={"model": model})
    step = ladder.LadderStep("float32", model=str(small))
    monkeypatch.setattr(
        models,
        "load_down_the_ladder",
        lambda *a, **k: ladder.LadderResult(None, step, []),
    )
    run = RunDir.open(tmp_path / "settled", recipe)
    run_solutions(recipe, run)
    rows = read_records(run.file("solutions.jsonl"), SftRow)
    assert {row.prompt[:6] for row in rows} == {"SMALL "}
    # what SFT asks of them once it has loaded that model
    tokenizer = models.load_tokenizer(small)
    training.check_rendered(tokenizer, (row.prompt for row in rows), "plain")
    stored = read_json(run.file("stages", "solutions.json"))
    assert stored["inputs"]["model"] == f"{small}@None"


def test_wrong_and_long_solutions_are_counted_out(
    tmp_path, tiny_recipe, start, capsys
):
    (tmp_path / "few").mkdir()
    pool = write_pool(tmp_path / "few", 40, wrong=(1, 2, 3))
    rows = load_problems(pool)
    rows[9].solution = "so " * 200 + rows[9].solution
    write_records(pool, rows)
    metrics, kept, _ = start(adapt(tmp_path, mix={pool: 40}))
    steps = metrics["sources"][pool]
    assert (steps["worked"], steps["graded"], steps["length"]) == (40, 37, 36)
    assert not {"w1", "w2", "w3", "w9"} & {row.problem_id for row in kept}
    told = capsys.readouterr().out
    assert "graded: 3 × wrong for the grader" in told
    assert "length: 1 × over sft.max_length=400 tokens" in told


def test_test_problems_are_kept_out(tmp_path, pool, start):
    recipe = adapt(tmp_path, mix={pool: 20})
    assert list_against(recipe) == (recipe.evaluate.benchmarks[0].path,)
    mixed = load_problems(recipe.evaluate.benchmarks[0].path)
    for problem in mixed:
        problem.id = f"leak-{problem.id}"
        problem.solution = f"It is {problem.answer}."
    both = tmp_path / "leaky.jsonl"
    write_records(both, [*load_problems(pool), *mixed])
    options = {"mix": {str(both): 48}, "templated": True}
    _, rows, _ = start(adapt(tmp_path, **options))
    assert len(rows) == 40
    assert not [r for r in rows if r.problem_id.startswith("leak")]


def test_a_source_without_solutions_stops_the_run(
    tmp_path, tiny_recipe, start, monkeypatch
):
    """The T4 paper asked for three sources and trained on one.

    gsm-hard comes with Python code and no worked solution: it must not be
    lost unseen, nor its code be taken for a solution.
    """
    copies = tmp_path / "copies"
    qwq = [
        {
            "prompt": f"Prompt {i}?",
            "response": f"I find \\boxed{{{i}}}.",
            "ground_truth": str(i),
            "correct": True,
        }
        for i in range(30)
    ]
    train = [
        {"question": f"Question {i}?", "answer": f"So {i}.\n#### {i}"}
        for i in range(30)
    ]
    hard = [
        {"input": f"Far {i}?", "code": "return 1", "target": float(i)}
        for i in range(10)
    ]
    copies.mkdir()
    write_rows(copies / "numina-qwq.jsonl", qwq)
    write_rows(copies / "gsm8k_train.jsonl", train)
    write_rows(copies / "gsmhardv2.jsonl", hard)
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(copies))
    three = {"numina-qwq": 20, "gsm8k-train": 12, "gsm-hard": 4}
    with pytest.raises(LabError, match="gsm-hard: 0 of 4 .* lost") as caught:
        start(adapt(tmp_path, mix=three), "three")
    assert "no worked solution" in str(caught.value)
    assert not (tmp_path / "three" / "solutions.jsonl").exists()
    two = {"numina-qwq": 20, "gsm8k-train": 12, "gsm-hard": 0}
    metrics, rows, _ = start(adapt(tmp_path, mix=two), "two")
    counts = {n: s["length"] for n, s in metrics["sources"].items()}
    assert counts == {"numina-qwq": 20, "gsm8k-train": 12}
    assert {row.source for row in rows} == set(counts)


def test_too_long_a_source_is_lost_too(tmp_path, pool, start):
    recipe = adapt(tmp_path, mix={pool: 20})
    short = recipe.model_copy(
        update={"sft": recipe.sft.model_copy(update={"max_length": 40})}
    )
    with pytest.raises(LabError, match=r"over sft\.max_length=40"):
        start(short)


def test_the_mark_is_the_one_that_the_prompt_asks_for(tmp_path, pool, start):
    sets = ["data.prompt_template=six-steps", "sft.max_length=500"]
    mix = json.dumps({pool: 8})
    recipe = load_recipe(
        tmp_path / "tiny.yaml", [*sets, f"solutions.mix={mix}"]
    )
    metrics, rows, _ = start(recipe, "hash")
    assert metrics["mark"] == "hash"
    assert all(r.completion.splitlines()[-1][:5] == "#### " for r in rows)
    odd = load_recipe(
        tmp_path / "tiny.yaml",
        [*sets, f"solutions.mix={mix}", "solutions.mark=boxed"],
    )
    with pytest.raises(LabError, match="'six-steps' asks for hash"):
        start(odd, "odd")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": {}}, "no source is left"),
        ({"mix": {"gsm8k-train": -1}}, "solutions.mix"),
        ({"mix": {"gsm8k-trian": 5}}, "Did you mean 'gsm8k-train'"),
        ({"mix": {"gsm8k": 5}}, "gsm8k is an evaluation set"),
    ],
)
def test_what_is_no_mix_is_refused(
    tmp_path, start, tiny_recipe, changes, message
):
    with pytest.raises(LabError, match=message):
        start(adapt(tmp_path, **changes), "odd")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": {"gsm8k-trian": 5}}, "Did you mean 'gsm8k-train'"),
        ({"mix": {"worked.jsonl": 5}, "against": ["no.jsonl"]}, "no.jsonl"),
    ],
)
def test_a_check_names_a_set_that_is_not_there(
    tmp_path, pool, start, changes, message, monkeypatch
):
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(tmp_path))
    recipe = adapt(tmp_path, **changes)
    run = RunDir.open(tmp_path / "checked", recipe)
    with pytest.raises(LabError, match=message):
        run_solutions(recipe, run, check=True)


def test_a_check_writes_nothing(tmp_path, pool, start):
    recipe = adapt(tmp_path, mix={pool: 20})
    run = RunDir.open(tmp_path / "solved", recipe)
    before = sorted(run.path.rglob("*"))
    assert run_solutions(recipe, run, check=True) == {}
    assert sorted(run.path.rglob("*")) == before
    metrics, _, _ = start(recipe)
    assert run_solutions(recipe, run, check=True) == metrics
    with pytest.raises(LabError, match="made from other inputs"):
        run_solutions(adapt(tmp_path, mix={pool: 10}), run, check=True)


def test_a_recipe_without_solutions_says_how(tiny_recipe, run):
    with pytest.raises(LabError, match="trains on its own samples"):
        run_solutions(tiny_recipe, run)


def test_a_problem_set_is_known_by_its_content(tmp_path, pool, monkeypatch):
    monkeypatch.delenv("MATHSLM_DATA_DIR", raising=False)
    assert hash_problems("gsm8k").startswith("openai/gsm8k@740312a")
    first = hash_problems(pool)
    write_pool(tmp_path, 41)
    assert hash_problems(pool) != first
    write_rows(
        tmp_path / "gsm8k.jsonl", [{"question": "?", "answer": "#### 1"}]
    )
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(tmp_path))
    assert len(hash_problems("gsm8k")) == 16


# --- the way through the course -------------------------------------------


@pytest.mark.slow
def test_sft_learns_the_solutions_and_is_sampled_then(tmp_path, pool, capsys):
    """Through the session, as notebook 02 starts on tier smol."""
    from helpers import session

    mix = json.dumps({pool: 36})
    found = session.start(
        tier=str(tmp_path / "tiny.yaml"),
        run_dir=tmp_path / "run",
        overrides=[
            f"solutions.mix={mix}",
            "sft.max_length=400",
            "sft.effective_batch=4",
            "sft.per_device_batch=4",
            "sft.min_steps_per_epoch=1",
            "sft.max_steps=4",
        ],
        makes=("distill",),
    )
    assert found.recipe.sampled_model == "sft"
    told = capsys.readouterr().out
    order = [told.index(f"{s}: not there yet") for s in ("sft", "merge/sft")]
    assert order[0] > 0 and "solutions: not there yet" in told
    from helpers.stages import run_distill

    run = found.run
    metrics = run_distill(found.recipe, run)
    assert metrics["samples"] == 18
    assert run.metrics()["sft"]["rows"] == 36
    assert run.metrics()["sft"]["sampling_loss"] is None
    stages = [p["phase"] for p in run.ledger()]
    assert stages == ["solutions", "sft", "merge/sft", "distill"]
    trial = run_distill(found.recipe, run, smoke_steps=2)
    assert trial["samples"] == 6


def test_distill_names_the_model_it_lacks(tmp_path, pool):
    from helpers.stages import run_distill

    recipe = adapt(tmp_path, mix={pool: 20})
    run = RunDir.open(tmp_path / "early", recipe)
    with pytest.raises(LabError, match="mathslm merge --model sft"):
        run_distill(recipe, run)


def test_sft_names_the_rows_it_lacks(tmp_path, pool):
    from helpers.stages import run_sft

    recipe = adapt(tmp_path, mix={pool: 20})
    run = RunDir.open(tmp_path / "early", recipe)
    with pytest.raises(LabError, match="mathslm solutions"):
        run_sft(recipe, run)


def test_the_command_writes_the_rows(tmp_path, pool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mix = json.dumps({pool: 12})
    arguments = ["solutions", "--tier", "tiny.yaml", "--run-dir", "out"]
    arguments += ["--set", f"solutions.mix={mix}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert len(read_records(tmp_path / "out/solutions.jsonl", SftRow)) == 12


def test_the_recorded_quick_run_is_the_recipes():
    """What a replay of tier smol wants is the quick form as it is now."""
    quick = choose_quick(load_recipe("smol"), [])
    assert fits(record_folder("smol"), load_recipe("smol", quick))
    metrics = read_json(record_folder("smol") / "metrics.json")
    asked = load_recipe("smol", quick).evaluate.benchmarks
    for tag in ("base", "sft", "dpo"):
        scores = metrics[f"evaluate/{tag}"]
        assert {b.name: scores[b.name]["n"] for b in asked} == {
            b.name: b.n for b in asked
        }
