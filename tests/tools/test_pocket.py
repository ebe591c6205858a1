"""The pocket problem sets: right, disjoint, reproducible; styles as told."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import islice
from random import Random

import pytest

from helpers.base import DATA_DIR, Problem, read_records
from helpers.grading import grade as grading
from tools.pocket import stories, styles

SIZES = {
    "easy": 200,
    "main": 500,
    "hard": 60,
    "shifted": 500,
    "dev": 400,
    "train": 3000,
}
TESTS = ("easy", "main", "hard", "shifted")


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Problem]]:
    return {
        name: read_records(DATA_DIR / "pocket" / f"{name}.jsonl", Problem)
        for name in SIZES
    }


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+|[^\s\w]", text.lower())


def ngrams(text: str, n: int = 8) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def calculate(expression: str) -> Fraction:
    """The value of a sum, difference, product, quotient with brackets."""
    if inner := re.search(r"\(([^()]+)\)", expression):
        value = calculate(inner[1])
        text = expression[: inner.start()] + str(value)
        return calculate(text + expression[inner.end() :])
    total = Fraction(0)
    products = r"([+-]?) ?(\d+(?: [*/] \d+)*)"
    for sign, product in re.findall(products, expression):
        value = Fraction(1)
        for op, number in re.findall(r"([*/]?) ?(\d+)", product):
            value = value / int(number) if op == "/" else value * int(number)
        total += -value if sign == "-" else value
    return total


def test_sizes_and_ids(sets):
    assert {name: len(rows) for name, rows in sets.items()} == SIZES
    ids = [row.id for rows in sets.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_no_text_is_in_two_sets(sets):
    seen = Counter(
        " ".join(words(row.problem)) for rows in sets.values() for row in rows
    )
    assert [text for text, count in seen.items() if count > 1] == []


def find_leaks(
    rows: list[Problem], others: list[Problem]
) -> list[tuple[str, str]]:
    """(id, id of the other) where nine tenths of a row's 8-grams recur.

    Templates share their wording, so single 8-grams recur; a row counts as
    leaked when nine tenths of them stand in one other problem.
    """
    where = defaultdict(set)
    for row in others:
        for gram in ngrams(row.problem):
            where[gram].add(row.id)
    leaked = []
    for row in rows:
        grams = ngrams(row.problem)
        hits = Counter(i for gram in grams for i in where.get(gram, ()))
        for other, count in hits.most_common(1):
            if count >= 0.9 * len(grams):
                leaked.append((row.id, other))
    return leaked


@pytest.mark.parametrize("name", TESTS)
def test_no_test_problem_is_inside_a_training_problem(sets, name):
    assert find_leaks(sets[name], sets["train"] + sets["dev"]) == []


def test_overlap_check_finds_a_planted_leak(sets):
    """A test problem in capitals, with a sentence before, is still found."""
    row = next(r for r in sets["main"] if len(ngrams(r.problem)) > 20)
    text = "Read this with care. " + row.problem.upper()
    planted = row.model_copy(update={"id": "planted", "problem": text})
    found = find_leaks(sets["main"], [*sets["train"], planted])
    assert found == [(row.id, "planted")]


def test_shifted_wordings_never_occur_in_train(sets):
    """The first four words of a shifted story open no training problem."""
    train = {tuple(words(r.problem)[:4]) for r in sets["train"]}
    own = [
        r
        for r in sets["shifted"]
        if r.source in ("tank", "lift", "team", "boxes")
    ]
    assert own
    assert not [r.id for r in own if tuple(words(r.problem)[:4]) in train]


def test_gold_answers_grade_themselves(sets):
    for name, rows in sets.items():
        right = [grading.is_equivalent(r.answer, r.answer) for r in rows]
        assert all(right), name


def test_a_constant_answer_scores_near_nothing(sets):
    """-7 is the gold of no problem, so a constant answer gets 0 %."""
    for rows in sets.values():
        assert not any(grading.is_equivalent("-7", r.answer) for r in rows)


def test_solutions_end_in_the_answer(sets):
    for rows in sets.values():
        for row in rows:
            last = row.solution.splitlines()[-1]
            assert re.search(rf"= {row.answer}\b", last), row.id


@pytest.mark.parametrize("kind", ["TRAINED", "HELD_OUT"])
def test_every_story_is_right(kind):
    for name, make in getattr(stories, kind).items():
        for seed in range(120):
            story = make(Random(seed), 1 + seed % 6)
            for step in story.steps:
                assert calculate(step.left) == step.value, (name, seed)
            assert calculate(story.expression) == story.answer, (name, seed)
            assert story.steps[-1].value == story.answer
            assert story.answer >= 0


def test_styles_mark_or_hide_the_answer():
    """Boxed and hashed styles carry the last step's value; slips move it."""
    rng = Random(1)
    for seed in range(200):
        story = stories.TRAINED["shop"](Random(seed), 4)
        for style in ("steps", "prose", "one_line", "bare", "rambling"):
            text = styles.RENDERERS[style](rng, story, list(story.steps))
            assert grading.extract_answer(text) == str(story.answer)
        slipped = styles._slip(rng, list(story.steps))
        assert slipped != list(story.steps)


def test_unmarked_style_hides_some_answers():
    story = stories.TRAINED["shop"](Random(3), 4)
    texts = {
        styles.RENDERERS["unmarked"](Random(s), story, list(story.steps))
        for s in range(30)
    }
    right = [
        grading.grade_response(t, str(story.answer)).correct for t in texts
    ]
    assert any(right) and not all(right)


def test_corpus_keeps_out_of_the_other_splits(sets):
    """Fresh pretraining documents share no text with any problem set."""
    pytest.importorskip("reasoning_gym", reason="extra 'build' not installed")
    from tools.pocket.corpus import iter_corpus

    held = {r.problem for rows in sets.values() for r in rows}
    docs = {problem for problem, _, _ in islice(iter_corpus(5), 3000)}
    assert not held & docs


@pytest.mark.slow
def test_rebuild_gives_the_shipped_files(tmp_path):
    pytest.importorskip("reasoning_gym", reason="extra 'build' not installed")
    from tools.pocket.build import build_sets

    build_sets(tmp_path)
    for name in SIZES:
        fresh = (tmp_path / f"{name}.jsonl").read_bytes()
        assert fresh == (DATA_DIR / "pocket" / f"{name}.jsonl").read_bytes()
