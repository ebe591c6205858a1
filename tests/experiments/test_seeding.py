"""Seed schemes: what they change, and nothing else."""

from itertools import combinations
from random import Random

import pytest

from helpers.base import Completion, LabError, read_records
from helpers.experiments import seeding
from helpers.grading import GradedCompletion
from helpers.sampling import SampleRequest, derive_seed


def make_row(problem, sample, response, correct=False):
    return GradedCompletion(
        problem_id=problem,
        sample=sample,
        prompt=f"{problem}?",
        response=response,
        extracted=None,
        correct=correct,
        reason="",
        finish_reason="stop",
        tokens=3,
        mean_logprob=-1.0,
        seed=1,
    )


def make_request(problem, sample):
    return SampleRequest(
        problem, sample, "?", derive_seed(7, problem, sample), 1.0, 1.0, 8
    )


REQUESTS = [make_request(f"p{i}", j) for i in range(5) for j in range(4)]


def test_the_schemes_give_the_seeds_they_promise():
    one = list(seeding.reseed(REQUESTS, "one seed", 42))
    number = list(seeding.reseed(REQUESTS, "seed + number", 42))
    own = list(seeding.reseed(REQUESTS, "own seeds", 42))
    assert {r.seed for r in one} == {42}
    assert all(r.seed == 42 + r.sample for r in number)
    assert own == REQUESTS
    assert len({r.seed for r in own}) == len(REQUESTS)
    with pytest.raises(ValueError, match="no seed scheme"):
        list(seeding.reseed(REQUESTS, "none", 42))


def count_openings(groups):
    """The two chances by going through all pairs, the slow way."""
    rows = [row for group in groups for row in group]
    tally = {True: [0, 0], False: [0, 0]}
    for a, b in combinations(rows, 2):
        if a.problem_id == b.problem_id:
            continue
        cell = tally[a.sample == b.sample]
        cell[0] += seeding.open_with(a.response) == seeding.open_with(
            b.response
        )
        cell[1] += 1
    return tuple(same / every for same, every in tally.values())


def test_shared_openings_against_counting_all_pairs():
    draw = Random(3)
    groups = [
        [
            make_row(f"p{i}", j, f"{draw.choice('abc')} {draw.choice('xy')} z")
            for j in range(4)
        ]
        for i in range(6)
    ]
    assert seeding.share_openings(groups) == pytest.approx(
        count_openings(groups)
    )


def test_an_arm_of_copies_and_an_arm_of_different_texts():
    copies = {
        f"p{i}": [make_row(f"p{i}", j, "same", i > 0) for j in range(4)]
        for i in range(3)
    }
    report = seeding.measure_arm(copies, seed=1)
    assert report.distinct.value == report.distinct.high == 0.25
    assert (report.mixed.k, report.pairs.k) == (0, 0)
    assert (report.right, report.samples) == (8, 12)
    assert report.alike == report.unlike == 1
    different = {
        f"p{i}": [make_row(f"p{i}", j, f"{i} {j}", j < 2) for j in range(4)]
        for i in range(3)
    }
    report = seeding.measure_arm(different, seed=1)
    assert report.distinct.value == 1
    assert (report.mixed.k, report.pairs.k) == (3, 3)
    compared = seeding.compare_mixed(copies, different)
    assert (compared.only_after, compared.only_before) == (3, 0)
    with pytest.raises(ValueError, match="two problems"):
        seeding.measure_arm({"p0": copies["p0"]}, seed=1)


@pytest.mark.slow
def test_the_experiment_on_a_model(tiny_recipe, run):
    """All arms, their files, resuming, and what a shared stream does."""
    metrics = seeding.run_seeding(tiny_recipe, run, problems=8)
    assert len(metrics) == 6
    n = tiny_recipe.sampling.n
    for arm in seeding.list_arms():
        path = run.file(arm.file)
        assert len(read_records(path, Completion)) == 8 * n
        assert metrics[arm.name]["samples"] == 8 * n
    for t in ("0.7", "1"):
        copied = metrics[f"one seed, T = {t}"]
        assert copied["distinct"][0] == pytest.approx(1 / n)
        assert copied["mixed"] == copied["pairs"] == 0
        own = metrics[f"own seeds, T = {t}"]
        assert own["distinct"][0] > copied["distinct"][0]
    # Part of one arm lost: only that is drawn again, and comes out the same.
    path = run.file(seeding.list_arms()[-1].file)
    before = read_texts(path)
    lines = path.read_text("utf-8").split("\n")
    path.write_text("".join(line + "\n" for line in lines[:3]), "utf-8")
    run.file("stages", "seeding.json").unlink()
    again = seeding.run_seeding(tiny_recipe, run, problems=8)
    assert again.keys() == metrics.keys()
    assert read_texts(path) == before


def read_texts(path):
    """What does not depend on rounding."""
    return {
        (row.problem_id, row.sample): (row.seed, row.response)
        for row in read_records(path, Completion)
    }


def test_bad_settings_are_refused_before_a_model_loads(tiny_recipe, run):
    with pytest.raises(LabError, match="problems were asked for"):
        seeding.run_seeding(tiny_recipe, run, problems=10**6)
    one = tiny_recipe.model_copy(
        update={"sampling": tiny_recipe.sampling.model_copy(update={"n": 1})}
    )
    with pytest.raises(LabError, match="sampling.n=1"):
        seeding.run_seeding(one, run, problems=8)
