"""Registered problem sets: every row is kept, or counted with a reason."""

import json
import re
import warnings

import pytest
from problem_rows import ROWS, write_rows
from shared_data import outside
from typer.testing import CliRunner

from helpers.base import DATA_DIR, LabError
from helpers.cli import app
from helpers.experiments.options import out
from helpers.grading import parse_number
from helpers.problems import (
    SOURCES,
    Source,
    hash_problems,
    load_problems,
    load_source,
)
from helpers.problems.golds import RULES
from helpers.problems.load import STEPS
from helpers.problems.sources import GYM_FAMILIES

HUB = [name for name, source in SOURCES.items() if source.hub_id]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing of these tests stays in the user's cache of data sets."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A folder of local copies, named by MATHSLM_DATA_DIR."""
    folder = tmp_path / "copies"
    folder.mkdir()
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(folder))
    return folder


# --- the registry ----------------------------------------------------------


def test_rows_are_known_for_every_hub_set():
    assert set(ROWS) == set(HUB)


@pytest.mark.parametrize("name", SOURCES)
def test_an_entry_is_complete(name):
    source = SOURCES[name]
    assert source.name == name
    assert all(rule in RULES for _, rule in source.golds)
    assert source.rows or source.size
    assert bool(source.file) == name.startswith("pocket-")
    if source.revision:
        assert re.fullmatch("[0-9a-f]{40}", source.revision)


@pytest.mark.parametrize("name", HUB)
def test_the_published_fields_are_read(name, copies):
    row, text, gold = ROWS[name]
    write_rows(copies / f"{name}.jsonl", [row])
    problems, report = load_source(name)
    assert [(p.problem, p.answer) for p in problems] == [(text, gold)]
    assert report.steps == dict.fromkeys(STEPS, 1)
    assert not report.n_dropped
    if SOURCES[name].rows:
        assert "instead of the published" in str(report)


@pytest.mark.parametrize("name", HUB)
def test_a_changed_schema_is_refused_by_name(name, copies):
    source = SOURCES[name]
    for lost in {source.problem, *source.uses}:
        row = dict(ROWS[name][0])
        row[lost + "_v2"] = row.pop(lost)
        write_rows(copies / f"{name}.jsonl", [row])
        with pytest.raises(LabError) as error:
            load_source(name)
        assert "schema" in error.value.what and lost in error.value.what
        assert lost + "_v2" in error.value.why


def test_a_lost_gold_column_is_a_changed_schema(copies):
    write_rows(copies / "gsm-hard.jsonl", [{"input": "a", "result": 1.0}])
    with pytest.raises(LabError, match=r"gsm-hard: the schema .* target"):
        load_problems("gsm-hard")


# --- every row is accounted for -------------------------------------------


GOOD = {"question": "How many apples?", "answer": "#### 3"}
BAD = {
    "schema: 1 × no question": {"question": None, "answer": "#### 1"},
    "schema: 1 × question is empty": {"question": " ", "answer": "#### 1"},
    "gold: 1 × no answer": {"question": "a", "answer": None},
    "gold: 1 × no #### in the answer": {"question": "b", "answer": "5"},
    "gold: 1 × the answer is empty": {"question": "c", "answer": "####"},
    "gold: 1 × the answer is not a number": {
        "question": "d",
        "answer": "#### five or so",
    },
    "duplicates: 1 × the same problem is in gsm8k-train (": {
        "question": "how many  apples",
        "answer": "#### 3",
    },
    "duplicates: 1 × the same problem is in gsm8k-train, with another": {
        "question": "How many apples!",
        "answer": "#### 4",
    },
}


def test_each_bad_row_is_counted_and_named(copies):
    write_rows(copies / "gsm8k_train.jsonl", [GOOD, *BAD.values()])
    problems, report = load_source("gsm8k-train")
    assert [p.id for p in problems] == ["gsm8k-train-0"]
    text = str(report)
    for place, reason in enumerate(BAD, 1):
        assert reason in text
        assert f"gsm8k-train-{place}" in text
    assert report.steps["read"] == 9
    assert report.n_dropped == 8
    with pytest.warns(UserWarning, match="9 of 9 rows read, 1 kept"):
        assert load_problems("gsm8k-train") == problems


def test_the_account_adds_up(copies):
    """Whatever the rows: read = kept + dropped, and no step adds rows."""
    kinds = [GOOD, *BAD.values()]
    rows = [
        kinds[i * 7 % 9] | {"answer": f"#### {i}"} if i % 2 else kinds[i % 9]
        for i in range(300)
    ]
    rows = [
        row | {"question": row["question"] and f"{row['question']} {i % 40}"}
        for i, row in enumerate(rows)
    ]
    write_rows(copies / "gsm8k_train.jsonl", rows)
    for n in (None, 1, 5):
        problems, report = load_source("gsm8k-train", n, seed=n)
        assert report.kept == len(problems)
        assert report.kept + report.n_dropped == report.steps["read"]
        counts = [report.steps[step] for step in STEPS]
        assert counts == sorted(counts, reverse=True)
    assert report.steps["read"] < 300, "reading goes on without need"


def test_nothing_left_says_at_which_step(copies):
    row = ROWS["numina-qwq"][0] | {"correct": False}
    write_rows(copies / "numina-qwq.jsonl", [row])
    with pytest.raises(LabError) as error:
        load_problems("numina-qwq")
    assert "'filter'" in error.value.what
    assert "1 × not marked correct" in error.value.why


@pytest.mark.parametrize(
    "answer", [float("nan"), True, {"a": 1}, "{", "x" * 999]
)
def test_odd_golds_are_no_answers(answer, copies):
    from helpers.problems.golds import BadGold, read_gold

    with pytest.raises(BadGold):
        read_gold(SOURCES["olympiadbench"], {"answer": answer})


@pytest.mark.parametrize(
    "answer", [r"336^\circ", r"336^{\circ}", r"336 ^ \circ", "336°", "336 °"]
)
def test_an_angle_in_degrees_is_a_number(answer, copies):
    """AIME 2025 has one; without it 29 of its 30 problems were left."""
    from helpers.grading import grade_response

    row = ROWS["aime-2025"][0]
    write_rows(copies / "aime-2025.jsonl", [row | {"answer": answer}])
    problems, report = load_source("aime-2025")
    assert [p.answer for p in problems] == [answer]
    assert not report.n_dropped
    for said in ("336", answer, r"336^\circ"):
        assert grade_response(rf"\boxed{{{said}}}", answer).correct, said
        assert grade_response(rf"\boxed{{{answer}}}", said).correct, said
    assert not grade_response(r"\boxed{335}", answer).correct


@pytest.mark.parametrize("answer", [r"^\circ", r"x^\circ", r"3^\circ C", "°"])
def test_a_degree_sign_makes_no_number(answer, copies):
    row = ROWS["aime-2025"][0]
    write_rows(copies / "aime-2025.jsonl", [row | {"answer": answer}])
    with pytest.raises(LabError, match="no row is left") as error:
        load_source("aime-2025")
    assert "not a number" in error.value.why


def test_mathnet_keeps_text_with_a_final_answer(copies):
    row = ROWS["mathnet"][0]
    rows = [
        row,
        row | {"id": "b", "problem_markdown": "See ![fig](image_1.png)."},
        row | {"id": "c", "problem_markdown": "Prove it.", "final_answer": ""},
    ]
    write_rows(copies / "mathnet.jsonl", rows)
    problems, report = load_source("mathnet")
    assert [p.id for p in problems] == ["mathnet-a1"]
    assert report.dropped["filter"] == {
        "needs an image": 1,
        "no final answer": 1,
    }


# --- where rows come from --------------------------------------------------


def test_json_parquet_and_folders_are_copies_too(copies):
    import datasets

    rows = [GOOD | {"question": f"How many {i}?"} for i in range(4)]
    (copies / "gsm8k.json").write_text(json.dumps(rows))
    plain = load_source("gsm8k")[0]
    (copies / "gsm8k.json").unlink()
    datasets.Dataset.from_list(rows).to_parquet(copies / "gsm8k.parquet")
    assert load_source("gsm8k")[0] == plain
    (copies / "gsm8k.parquet").unlink()
    (copies / "gsm8k").mkdir()
    write_rows(copies / "gsm8k" / "a.jsonl", rows[:2])
    write_rows(copies / "gsm8k" / "b.jsonl", rows[2:])
    assert load_source("gsm8k")[0] == plain


def test_a_damaged_copy_is_one_message(copies):
    (copies / "gsm8k.jsonl").write_text('{"question": "a", "ans')
    with pytest.raises(LabError, match="gsm8k.jsonl cannot be read"):
        load_problems("gsm8k")


def test_without_copy_and_hub_the_message_names_the_file(copies):
    with pytest.raises(LabError, match="math-500.jsonl"):
        load_problems("math-500")


def make_repository(folder, **configs):
    """A data set repository on disk, as `datasets` reads one of the hub."""
    lines = ["---", "configs:"]
    folder.mkdir()
    for name, rows in configs.items():
        write_rows(folder / f"{name}.jsonl", rows)
        lines += [
            f"- config_name: {name}",
            "  data_files:",
            "  - split: test",
            f"    path: {name}.jsonl",
        ]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(folder)


def test_configs_are_joined(tmp_path):
    one = [{"question": f"One {i}?", "answer": str(i)} for i in range(3)]
    two = [{"question": f"Two {i}?", "answer": str(i)} for i in range(2)]
    hub_id = make_repository(tmp_path / "repo", first=one, second=two)
    source = Source(
        "joined",
        hub_id,
        split="test",
        configs=("first", "second"),
        problem="question",
        numeric=True,
        rows=5,
    )
    problems, report = load_source(source)
    assert [p.problem for p in problems] == [
        row["question"] for row in one + two
    ]
    assert report.total == 5 and not report.notes


@pytest.mark.parametrize("seed", [None, 3])
def test_a_stream_is_read_no_further_than_needed(tmp_path, seed):
    rows = [
        ROWS["numina-qwq"][0] | {"prompt": f"How many {i}?", "correct": i > 9}
        for i in range(50)
    ]
    hub_id = make_repository(tmp_path / "repo", main=rows)
    source = Source(
        "streamed",
        hub_id,
        split="test",
        configs=("main",),
        problem="prompt",
        golds=(("ground_truth", "text"),),
        keep="correct",
        uses=("correct",),
        stream=True,
    )
    problems, report = load_source(source, 20, seed=seed)
    assert len(problems) == 20 and report.total is None
    assert report.steps["read"] == 20 + report.n_dropped < 50
    assert all(f" {p.id.split('-')[1]}?" in p.problem for p in problems)
    again = load_source(source, 20, seed=seed)[0]
    assert again == problems
    if seed is None:
        assert problems[0].id == "streamed-10"


def test_pocket_sets_by_name_are_the_files(recwarn):
    if not (DATA_DIR / "pocket" / "main.jsonl").is_file():
        pytest.skip("data/pocket is not there")
    by_name = load_problems("pocket-main", 50)
    by_file = load_problems("pocket/main.jsonl", 50)
    same = [(p.id, p.problem, p.answer) for p in by_file]
    assert [(p.id, p.problem, p.answer) for p in by_name] == same
    assert not recwarn.list


@pytest.mark.parametrize("family", GYM_FAMILIES)
def test_reasoning_gym_families_have_plain_golds(family):
    pytest.importorskip("reasoning_gym")
    name = f"reasoning-gym:{family}"
    problems, report = load_source(name, 20, seed=1)
    assert len(problems) == 20
    assert not report.dropped["gold"]
    assert all(parse_number(p.answer) is not None for p in problems)
    assert load_source(name, 20, seed=1)[0] == problems
    assert load_source(name, 20, seed=2)[0] != problems


# --- the real sets ---------------------------------------------------------


REAL = {"gsm8k": 1319, "gsm8k-train": 7473, "math-500": 500}


@pytest.mark.parametrize("name", REAL)
def test_real_sets_load_in_full(name, monkeypatch):
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(outside("benchmarks")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a dropped row would warn
        problems = load_problems(name)
    assert len(problems) == REAL[name] == SOURCES[name].rows
    assert len({p.id for p in problems}) == len(problems)
    if name.startswith("gsm8k"):
        for p in problems:
            assert p.solution.endswith(f"#### {p.answer}"), p.id
    else:
        for p in problems:
            assert "\\boxed" in p.solution, p.id
            assert p.id.startswith("math-500-test/"), p.id


def test_real_boxes_give_the_published_answers(monkeypatch):
    """The rule for sets without an answer field, on a set that has one."""
    from helpers.grading import is_equivalent
    from helpers.problems.golds import read_gold

    monkeypatch.setenv("MATHSLM_DATA_DIR", str(outside("benchmarks")))
    source = Source("boxed", golds=(("solution", "boxed"),))
    problems = load_problems("math-500")
    wrong = []
    for p in problems:
        gold, _ = read_gold(source, {"solution": p.solution})
        if gold != p.answer and not is_equivalent(gold, p.answer):
            wrong.append((p.id, gold, p.answer))
    assert not wrong


# --- refusals and the command ----------------------------------------------


def test_wrong_names_and_counts(copies):
    with pytest.raises(LabError, match="Did you mean 'gsm8k'"):
        load_problems("gsm8")
    with pytest.raises(LabError, match="reasoning-gym:chain_sum"):
        load_problems("reasoning-gym:chain_sums")
    write_rows(copies / "gsm8k.jsonl", [GOOD])
    with pytest.raises(LabError, match="1 usable problems, 2 were asked"):
        load_problems("gsm8k", 2)
    with pytest.raises(LabError, match="0 problems of gsm8k"):
        load_problems("gsm8k", 0)


def run(*arguments):
    return CliRunner().invoke(app, ["problems", *arguments])


def test_the_command_lists_every_set(monkeypatch):
    monkeypatch.setattr(out, "_width", 250)
    shown = run()
    assert shown.exit_code == 0
    for name, source in SOURCES.items():
        assert name in shown.output and source.hub_id in shown.output


@pytest.mark.filterwarnings("ignore:gsm8k")
def test_the_command_checks_a_set(copies, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    write_rows(copies / "gsm8k_train.jsonl", [GOOD, *BAD.values()])
    write_rows(copies / "gsm8k.jsonl", [GOOD])
    shown = run("gsm8k-train", "--against", "gsm8k")
    assert shown.exit_code == 0, shown.output
    assert all(reason in shown.output for reason in BAD)
    assert "1 of 1 problems overlap" in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("gsm9k", "Did you mean 'gsm8k'?"),
        ("gsm8k --against math-50", "Did you mean 'math-500'?"),
        ("--against gsm8k", "need the name of a set"),
        ("nowhere.jsonl", "no file"),
        ("gsm8k", "MATHSLM_DATA_DIR"),
    ],
)
def test_the_command_refuses_in_one_message(arguments, message, monkeypatch):
    monkeypatch.delenv("MATHSLM_DATA_DIR", raising=False)
    shown = run(*arguments.split())
    assert shown.exit_code == 2
    assert message in shown.stderr and "Traceback" not in shown.output


def test_a_set_to_be_made_needs_its_maker(monkeypatch):
    """Also where only its state is asked for, as the stages do."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for ask in (hash_problems, load_problems):
        with pytest.raises(LabError, match="reasoning-gym, which is not"):
            ask("reasoning-gym:chain_sum")
