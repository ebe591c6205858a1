"""Mixes keep all their sources; test problems are found in training data."""

import random
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from problem_rows import ROWS, write_rows
from shared_data import outside

from helpers.base import LabError, Problem
from helpers.problems import Source, decontaminate, load_mix, load_problems
from helpers.problems.contamination import (
    ContaminationIndex,
    mask_numbers,
    split_words,
    text_key,
)

PARTS = {"numina-qwq": 20, "gsm8k-train": 12, "gsm-hard": 4}
THINGS = ("apples", "boats", "coins", "drums", "eels", "forks")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing of these tests stays in the user's cache of data sets."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def tell(i, number=7):
    """A word problem of its own for every i."""
    first, second = THINGS[i % 6], THINGS[i // 6 % 6]
    return (
        f"Person {chr(97 + i % 26)}{chr(97 + i // 26)} keeps {number} {first} "
        f"in a box and lends {number + 3} {second} to a friend who never "
        "gives any of them back; how many things does the person own at last?"
    )


@pytest.fixture
def three_sources(tmp_path, monkeypatch):
    """The three schemas of the T4 paper; every third answer is wrong."""
    row = ROWS["numina-qwq"][0]
    qwq = [
        row | {"prompt": f"Prompt {i}?", "correct": i % 3 > 0}
        for i in range(45)
    ]
    train = [
        {"question": f"Question {i}?", "answer": f"So.\n#### {i}"}
        for i in range(30)
    ]
    hard = [
        {"input": tell(i, 90_000 + i), "code": "return 1", "target": float(i)}
        for i in range(10)
    ]
    test = [{"question": tell(i), "answer": f"#### {i}"} for i in range(10)]
    write_rows(tmp_path / "numina-qwq.jsonl", qwq)
    write_rows(tmp_path / "gsm8k_train.jsonl", train)
    write_rows(tmp_path / "gsmhardv2.jsonl", hard)
    write_rows(tmp_path / "gsm8k_test.jsonl", test)
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(tmp_path))
    return qwq, train, hard


# --- the T4 paper ----------------------------------------------------------


def load_as_the_paper_did(tables):
    """Its loader: join the tables, then choose the fields of all rows by
    the first one; rows without them are skipped with a print."""
    from datasets import Dataset, concatenate_datasets

    parts = [Dataset.from_list(rows) for rows in tables]
    data = concatenate_datasets(parts).shuffle(seed=42)
    first = data[0]
    pairs = (("prompt", "response"), ("question", "answer"))
    ask, say = next(p for p in pairs if p[0] in first and p[1] in first)
    return [
        row
        for row in data
        if isinstance(row[ask], str) and isinstance(row[say], str)
    ]


def test_the_papers_loader_loses_two_sources_of_three(three_sources):
    kept = load_as_the_paper_did(three_sources)
    assert len(kept) == 45
    assert all(row["problem_id"] is not None for row in kept)
    assert sum(not row["correct"] for row in kept) == 15


def test_our_mix_keeps_all_three_and_says_so(three_sources):
    mix = load_mix(PARTS, seed=42)
    kept = {name: report.kept for name, report in mix.reports.items()}
    assert kept == PARTS
    assert len(mix.problems) == sum(PARTS.values())
    sources = [p.source for p in mix.problems]
    assert {name: sources.count(name) for name in PARTS} == PARTS
    assert sources != sorted(sources), "not shuffled"
    report = mix.reports["numina-qwq"]
    assert set(report.dropped["filter"]) == {"not marked correct"}
    assert all(
        int(p.id.split("-")[-1]) % 3
        for p in mix.problems[:5]
        if p.source == "numina-qwq"
    )
    text = str(mix)
    assert all(name in text for name in PARTS) and "not marked" in text


def test_one_field_mapping_for_all_is_refused_by_name(three_sources):
    """The paper's fields forced on the other sources."""
    wrong = {
        name: Source(
            name,
            "x/y",
            problem="prompt",
            golds=(("response", "prose"),),
            copies=copies,
        )
        for name, copies in (
            ("gsm8k-train", ("gsm8k_train",)),
            ("gsm-hard", ("gsmhardv2",)),
        )
    }
    for name, source in wrong.items():
        with pytest.raises(LabError, match=f"{name}: the schema"):
            load_mix(PARTS, seed=42, sources={name: source})


def test_python_code_is_not_taken_for_an_answer(three_sources):
    """The paper's guess for gsm-hard: its first two columns of text."""
    guess = Source(
        "gsm-hard",
        "x/y",
        problem="input",
        golds=(("code", "text"),),
        numeric=True,
        copies=("gsmhardv2",),
    )
    with pytest.raises(LabError, match="gsm-hard: no row .* 'gold'"):
        load_mix(PARTS, seed=42, sources={"gsm-hard": guess})


def test_a_joined_table_loses_the_rows_aloud(three_sources, tmp_path):
    """The union of the columns, read with the fields of one source."""
    qwq, train, _ = three_sources
    columns = dict.fromkeys([*qwq[0], *train[0]])
    union = [columns | row for row in (*train, *qwq)]
    write_rows(tmp_path / "gsm8k_train.jsonl", union)
    mix = load_mix({"gsm8k-train": 30}, seed=1)
    report = mix.reports["gsm8k-train"]
    lost = report.dropped["schema"]["no question"]
    assert lost == report.steps["read"] - 30 > 0
    assert f"{lost} × no question" in str(mix)
    with pytest.raises(LabError, match="30 of the 75"):
        load_mix({"gsm8k-train": 75}, seed=1)


def test_a_source_that_shrinks_is_lost(three_sources):
    parts = PARTS | {"gsm8k-train": 61}
    with pytest.raises(LabError, match="gsm8k-train: 30 of the 61"):
        load_mix(parts, seed=0)
    assert len(load_mix(parts, seed=0, least=0.4).problems) == 54


@pytest.mark.filterwarnings("ignore:gsm8k")
def test_training_on_gsm_hard_is_found_out(three_sources):
    with pytest.raises(LabError) as error:
        load_mix(PARTS, seed=42, against=["gsm8k"])
    assert "gsm-hard" in error.value.what
    assert "'decontamination'" in error.value.what
    assert "as in gsm8k" in error.value.why
    clean = {n: k for n, k in PARTS.items() if n != "gsm-hard"}
    mix = load_mix(clean, seed=42, against=["gsm8k"])
    assert "compared with gsm8k" in str(mix)


def test_the_same_problem_in_two_sources_counts_once(three_sources, tmp_path):
    rows = [{"question": f"Prompt {i}?", "answer": "#### 1"} for i in (1, 2)]
    rows += [{"question": "Quite another?", "answer": "#### 1"}]
    write_rows(tmp_path / "gsm8k_train.jsonl", rows)
    mix = load_mix({"numina-qwq": 30, "gsm8k-train": 1}, seed=0)
    assert mix.reports["gsm8k-train"].kept == 1
    texts = [text_key(p.problem) for p in mix.problems]
    assert len(texts) == len(set(texts))


def test_the_cap_is_counted(three_sources):
    mix = load_mix(PARTS, seed=42, cap=18)
    assert len(mix.problems) == 18
    kept = {name: report.kept for name, report in mix.reports.items()}
    sources = [p.source for p in mix.problems]
    assert kept == {name: sources.count(name) for name in PARTS}
    for name, report in mix.reports.items():
        assert report.kept + report.dropped["cap"].total() == PARTS[name]


def test_the_seed_decides(three_sources):
    first = load_mix(PARTS, seed=1).problems
    assert load_mix(PARTS, seed=1).problems == first
    assert load_mix(PARTS, seed=2).problems != first


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ({}, {}, "names no source"),
        ({"gsm8k": 5}, {}, r"evaluation set[\s\S]*gsm8k-train"),
        ({"gsm8k-train": 0}, {}, "0 problems"),
        ({"gsm8k-trian": 5}, {}, "Did you mean 'gsm8k-train'"),
        (PARTS, {"cap": 2}, "no room for 3 sources"),
        (PARTS, {"against": ["gsm9k"]}, "Did you mean 'gsm8k'"),
    ],
)
def test_what_is_no_mix_is_refused(three_sources, parts, options, message):
    with pytest.raises(LabError, match=message):
        load_mix(parts, seed=0, **options)


def test_files_can_be_part_of_a_mix(three_sources, tmp_path):
    own = tmp_path / "own.jsonl"
    write_rows(
        own,
        [
            {"id": f"o{i}", "problem": f"Mine {i}?", "answer": "2"}
            for i in "ab"
        ],
    )
    mix = load_mix({"gsm8k-train": 3, str(own): 2}, seed=0)
    assert {"oa", "ob"} < {p.id for p in mix.problems}
    with pytest.raises(LabError, match="evaluation set"):
        load_mix({"pocket/main.jsonl": 2}, seed=0)


# --- decontamination -------------------------------------------------------


def make(name, text):
    return Problem(id=name, problem=text, answer="0")


def find(text, reference, **options):
    index = ContaminationIndex({"test": [make("r", reference)]}, **options)
    hit = index.find(make("p", text))
    return hit and hit.kind


STORY = tell(0)


def test_layout_cannot_hide_a_copy():
    assert find(STORY.upper().replace(" ", "\n  "), STORY) == "same text"
    assert find("$2+3$ = ?", "2 + 3 = ?") == "same text"
    assert find("2 - 3 = ?", "2 + 3 = ?") is None


def test_changed_numbers_are_seen_through():
    text = "Ann has 3 cats, 4 dogs and 5 eels. She sells 2 cats for 9 each."
    other = re.sub(r"\d", lambda m: str(1000 * int(m[0]) + 7), text)
    assert find(other, text) == "same but for the numbers"
    assert find(other, text, masked=False) is None


def test_rows_of_numbers_are_no_evidence():
    assert find("Add 1 2 3 4 5 6 7 8 9 10", "Add 9 8 7 6 5 4 3 2 1 0") is None


def test_long_texts_need_thirteen_words():
    words = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(100)]
    short, long = " ".join(words[:40]), " ".join(words)
    twelve = "so then " + " ".join(words[10:22]) + " and so on"
    thirteen = "so then " + " ".join(words[10:23]) + " and so on"
    assert find(twelve, short) == "shared words"
    assert find(twelve, long) is None
    assert find(thirteen, long) == "shared words"


def test_empty_references_are_refused():
    with pytest.raises(LabError, match="'test' is empty"):
        ContaminationIndex({"test": []})


def test_the_report_adds_up():
    test = [make(f"t{i}", tell(i)) for i in range(5)]
    rows = [make("a", tell(1)), make("b", tell(2, 50)), make("c", "Why?")]
    clean, report = decontaminate(rows, ContaminationIndex({"test": test}))
    assert [p.id for p in clean] == ["c"]
    assert report.hits + len(clean) == report.rows == 3
    assert "2 of 3 problems overlap" in str(report)
    assert "(2 of its 5 problems are met)" in str(report)


def test_a_problem_in_two_sets_is_counted_for_both():
    """The second set said "none", as if it were clean."""
    near = tell(1).replace("in a box", "in the box")
    sets = {
        "first": [make("f", tell(1))],
        "second": [make("s", tell(1))],
        "third": [make("t", tell(1, 50))],
        "fourth": [make("u", near)],
        "other": [make("o", "How many ways are there to do nothing?")],
    }
    index = ContaminationIndex(sets)
    rows = [make("a", tell(1)), make("b", "Why?")]
    clean, report = decontaminate(rows, index)
    assert [p.id for p in clean] == ["b"] and report.hits == 1
    lines = str(report).splitlines()
    assert lines[0] == "1 of 2 problems overlap"
    for name in ("first", "second"):
        text = f"  {name}: 1 same text (1 of its 1 problems are met)"
        assert text in lines
    for name in ("third", "fourth"):
        text = f"  {name}: 1 shared words (1 of its 1 problems are met)"
        assert text in lines
    assert "  other: none (0 of its 1 problems are met)" in lines
    assert index.find(rows[0]).reference_set == "first"


def test_changed_numbers_are_counted_for_every_set():
    text = "Ann has 3 cats, 4 dogs and 5 eels. She sells 2 cats for 9 each."
    other = re.sub(r"\d", "77", text)
    sets = {name: [make(name, text)] for name in "ab"}
    hits = ContaminationIndex(sets).find_all(make("p", other))
    assert [(hit.reference_set, hit.kind) for hit in hits] == [
        ("a", "same but for the numbers"),
        ("b", "same but for the numbers"),
    ]


@pytest.mark.filterwarnings("ignore:gsm8k", "ignore:math-500")
def test_a_mix_names_every_set_that_a_row_is_in(three_sources, tmp_path):
    row = ROWS["math-500"][0] | {"problem": "Question 3?"}
    write_rows(tmp_path / "math500_test.jsonl", [row])
    test = [{"question": f"Question {i}?", "answer": "#### 1"} for i in (3, 4)]
    write_rows(tmp_path / "gsm8k_test.jsonl", test)
    sets = ["gsm8k", "math-500"]
    mix = load_mix({"gsm8k-train": 28}, seed=0, against=sets)
    assert mix.reports["gsm8k-train"].dropped["decontamination"] == {
        "same text as in gsm8k and same text as in math-500": 1,
        "same text as in gsm8k": 1,
    }


words = st.lists(st.sampled_from("abcdefgh12"), min_size=1, max_size=30)


@given(words, words)
def test_a_hit_is_never_imagined(text, reference):
    """Against a plain search for the runs that the tests speak of."""
    text, reference = " ".join(text), " ".join(reference)
    kind = find(text, reference)
    if text_key(text) == text_key(reference):
        assert kind == "same text"
        return

    def runs(words, n):
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    ours, theirs = split_words(text), split_words(reference)
    shared = bool(runs(ours, 8) & runs(theirs, 8))
    assert (kind == "shared words") == shared
    if kind == "same but for the numbers":
        n = min(13, len(ours))
        assert runs(mask_numbers(ours), n) & runs(mask_numbers(theirs), n)


@given(words)
def test_every_problem_contains_itself(text):
    assert find(" ".join(text), " ".join(text)) == "same text"


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(outside("benchmarks")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {n: load_problems(n) for n in ("gsm8k", "gsm8k-train")}


def renumber(text, rng):
    """As gsm-hard does, but every number: large ones in their place."""
    return re.sub(
        r"\d[\d,]*(?:\.\d+)?", lambda _: str(rng.randint(10**4, 10**7)), text
    )


@pytest.mark.parametrize("seed", range(2))
def test_gsm_hard_is_caught_in_gsm8k_test(real, seed):
    rng = random.Random(seed)
    hard = [
        make(f"hard-{i}", renumber(p.problem, rng))
        for i, p in enumerate(real["gsm8k"])
    ]
    index = ContaminationIndex({"gsm8k": real["gsm8k"]})
    clean, report = decontaminate(hard, index)
    assert not clean
    assert report.counts["gsm8k", "same but for the numbers"] > 0
    plain = ContaminationIndex({"gsm8k": real["gsm8k"]}, masked=False)
    assert len(decontaminate(hard, plain)[0]) > 0, "masking finds nothing new"


def test_gsm8k_train_is_not_mistaken_for_its_test(real):
    index = ContaminationIndex({"gsm8k": real["gsm8k"]})
    clean, report = decontaminate(real["gsm8k-train"], index)
    assert len(clean) / report.rows > 0.98
    assert report.counts["gsm8k", "same text"] == 0
