"""Published figures: they hold together, and their verdicts follow."""

from __future__ import annotations

import json
import statistics

import pytest

from helpers.base import LabError
from helpers.results import load_published, stats
from helpers.results.published import PUBLISHED_DIR, Published

NAMES = sorted(path.stem for path in PUBLISHED_DIR.glob("*.json"))
MATH_SLM, OPEN_RS, T4 = "math-slm", "open-rs", "t4-paper"


def score(name: str, model: str, benchmark: str) -> stats.Proportion:
    found = load_published(name).grid()[model][benchmark]
    return stats.proportion(found.k, found.n)


def test_all_files_load_and_are_credited():
    assert set(NAMES) == {MATH_SLM, OPEN_RS, T4, "eulerforge"}
    for name in NAMES:
        published = load_published(name)
        assert published.name == name
        assert published.credit.startswith("published by ")
        for source in published.sources.values():
            assert source["where"] in published.credit


# The verdicts as reviewed, one line a comparison: points, Newcombe interval,
# p of the pooled z-test, of Fisher's test, smallest paired p, the flips up to
# which a paired result could be significant, and the verdict in words. Each
# number is compared at the precision it is printed with.
VERDICTS = """
math-slm|GSM8K|base|sft|-5.5|-13.0|2.0|.15|.19|.001|25|need the JSONs
math-slm|MATH-500|base|sft|13.8|8.0|19.5|3.5e-6|4.6e-6||any|real
math-slm|AIME 2024+2025|base|sft|6.7|-3.8|17.7|.19|.32|.12|never|noise
math-slm|MathNet|base|sft|10.4|4.8|15.9|2.8e-4|3.6e-4||any|real
math-slm|GSM8K|sft|dpo|1.5|-6.3|9.3|.71|.80|.25|never|noise
math-slm|MATH-500|sft|dpo|0.0|-5.4|5.4|1|1|1|never|no evidence
math-slm|AIME 2024+2025|sft|dpo|0.0|-12.1|12.1|1|1|1|never|uninformative
math-slm|MathNet|sft|dpo|1.0|-4.9|6.9|.74|.79|.062|never|noise
math-slm|GSM8K|base|dpo|-4.0|-11.4|3.4|.29|.35|.008|12|need the JSONs
t4-paper|GSM8K|mistral-base|mistral-ft|8.0|-11.2|26.4|.42|.55|.12|never|noise
t4-paper|GSM8K|tinyllama-base|tinyllama-ft|40.0|25.7|53.8|6e-7|2e-7||any|real
t4-paper|GSM8K|tinyllama-ft|mistral-ft|14.0|-5.4|32.0|.16|.23|.016|9|undecided
open-rs|AIME24|base|Open-RS3|16.7|-7.6|38.4|.18|.29|.062|never|noise, picked
open-rs|AMC23|base|Open-RS2|17.5|-2.4|35.7|.08|.14|.016|9|weak, picked
open-rs|MATH-500|base|Open-RS2|2.6|-1.9|7.1|.26|.30|2e-4|37|undecided
open-rs|OlympiadBench|base|Open-RS2|9.2|3.9|14.4|7e-4|9e-4||any|real, if
open-rs|Minerva|base|Open-RS2|4.0|-3.5|11.6|.30|.34|.001|25|undecided
""".split("\n")[1:-1]
# How the words of the review begin, and what the code calls that.
KINDS = {
    "real": "real",
    "noise": "noise",
    "no evidence": "noise",
    "uninformative": "noise",
    "need the JSONs": "open",
    "undecided": "open",
    "weak": "open",
}


def agrees(p_value: float, printed: str) -> bool:
    """True when ``p_value``, rounded as ``printed`` is, is that number."""
    digits = printed.split("e")[0].lstrip("0.").replace(".", "")
    return float(f"{p_value:.{len(digits)}g}") == float(printed)


@pytest.mark.parametrize("line", VERDICTS)
def test_verdict_follows_from_the_counts(line):
    name, bench, a, b, points, low, high, z, fisher, best, up, words = (
        line.split("|")
    )
    before, after = score(name, a, bench), score(name, b, bench)
    claim = stats.judge_claim(before, after)
    for got, printed in zip(claim.change, (points, low, high), strict=False):
        assert f"{100 * got:.1f}" == printed
    assert agrees(claim.z_p, z)
    assert agrees(claim.fisher_p, fisher)
    bound = claim.bound
    flips = bound.significant_up_to
    if up == "any":
        assert flips == bound.max_flips
    else:
        assert flips == (None if up == "never" else int(up))
        assert agrees(bound.smallest_p, best)
    assert claim.flips.split(" ")[0] == up
    (kind,) = {v for k, v in KINDS.items() if words.startswith(k)}
    assert claim.verdict == kind
    text = claim.sentence(a, b, bench)
    told = "Not distinguishable from noise at this n." in text
    assert told == (kind == "noise")
    assert ("A real change" in text) == (kind == "real")
    assert ("results per problem are needed" in text) == (kind == "open")


def test_a_flip_bound_says_how_many_flips_were_possible():
    claim = stats.judge_claim(
        score(MATH_SLM, "base", "GSM8K"), score(MATH_SLM, "sft", "GSM8K")
    )
    assert claim.flips == "25 of at most 71"
    with pytest.raises(LabError, match="500 problems, the other over 200"):
        stats.judge_claim(
            score(MATH_SLM, "base", "MATH-500"),
            score(MATH_SLM, "base", "GSM8K"),
        )


def test_selection_is_said_in_words():
    text = stats.say_selection(21, stats.proportion(14, 30), 0.288)
    assert "best of 21 would reach 45 % on average" in text
    assert "14/30 or more with a chance of 46 %" in text
    assert text.endswith("Not distinguishable from noise at this n.")
    text = stats.say_selection(2, stats.proportion(29, 30), 0.288)
    assert "noise" not in text


def test_published_averages_are_those_of_the_grid():
    published = load_published(MATH_SLM)
    for model, row in published.grid().items():
        mean = statistics.mean(s.percent for s in row.values())
        said = published.fact(f"average.{model}").value
        assert mean == pytest.approx(said, abs=0.0501)


def test_ledger_and_harvest_add_up():
    published = load_published(MATH_SLM)
    rows = published.table("ledger").rows
    assert sum(row["usd"] for row in rows) == published.fact("run.usd").value
    rate = published.fact("run.usd_per_hour").value
    for row in rows:
        if row["minutes"]:
            cost = row["minutes"] / 60 * rate
            assert cost == pytest.approx(row["usd"], abs=0.5)
    hours = published.fact("run.hours").value
    assert hours * rate == pytest.approx(92.16, abs=0.01)
    runs = published.table("harvest").rows
    used = published.fact("harvest.pairs_used").value
    assert sum(run["pairs"] for run in runs) == used
    # only runs 1 and 3 make up the SFT rows; run 2 is silently unused
    kept = runs[0]["sft_rows"] + runs[2]["sft_rows"]
    assert kept == published.fact("harvest.sft_rows_used").value
    shares = [100 * run["pairs"] / run["problems"] for run in runs]
    assert [round(share, 1) for share in shares] == [5.4, 24.9, 22.4]


def test_checkpoints_scatter_no_more_than_luck():
    published = load_published(OPEN_RS)
    rows = published.table("checkpoints").rows
    assert len(rows) == published.fact("checkpoints.evaluated").value == 21
    for key, n, spread, mean in (
        ("aime24", 30, 0.067, 0.300),
        ("amc23", 40, 0.064, 0.681),
    ):
        shares = [row[key] / n for row in rows]
        assert statistics.mean(shares) == pytest.approx(mean, abs=5e-4)
        assert statistics.stdev(shares) == pytest.approx(spread, abs=6e-4)
        luck = (mean * (1 - mean) / n) ** 0.5
        assert statistics.stdev(shares) < luck
    best = {key: max(row[key] for row in rows) for key in ("aime24", "amc23")}
    assert best == {"aime24": 14, "amc23": 32}
    reach, expected = stats.best_of(21, best["aime24"], 30, 0.288)
    assert (round(reach, 2), round(expected, 2)) == (0.46, 0.45)
    reach, expected = stats.best_of(21, best["amc23"], 40, 0.629)
    assert (round(reach, 2), round(expected, 2)) == (0.29, 0.77)


def test_best_checkpoints_are_the_published_models():
    published = load_published(OPEN_RS)
    rows = published.table("checkpoints").rows
    cells = {(row["experiment"], row["step"]): row for row in rows}
    for number, step in ((1, 100), (2, 50), (3, 50)):
        row, told = cells[number, step], published.grid()[f"Open-RS{number}"]
        assert row["aime24"] == told["AIME24"].k
        assert row["math500"] == told["MATH-500"].k
        assert row["amc23"] == told["AMC23"].k


@pytest.mark.parametrize(
    ("before", "after", "n"),
    [
        (0.795, 0.81, 11057),
        (0.34, 0.35, 35472),
        (0.85, 0.795, 757),
        (0.05, 0.117, 267),
        (0.46, 0.54, 613),
        (0.6, 0.738, 182),
    ],
)
def test_problems_that_would_have_been_needed(before, after, n):
    assert stats.n_needed(before, after) == n


def test_unknown_names_are_refused_with_a_hint():
    with pytest.raises(LabError, match="Did you mean 'math-slm'"):
        load_published("math_slm")
    published = load_published(MATH_SLM)
    with pytest.raises(LabError, match=r"Did you mean 'dpo\.beta'"):
        published.fact("dpo.betas")
    with pytest.raises(LabError, match="ledger, harvest"):
        published.table("nothing like it")


def change(path, value):
    """The math-slm file with one entry replaced."""
    data = json.loads((PUBLISHED_DIR / "math-slm.json").read_text())
    *parents, last = path
    node = data
    for key in parents:
        node = node[key]
    node[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("scores", 0, "k"), 171, "171/200 is not 85.0 %"),
        (("scores", 0, "source"), "hearsay", "no source 'hearsay'"),
        (("scores", 0, "benchmark"), "MATH-500", "300|not"),
        (("facts", "dpo.beta"), {"value": 0.1}, "Field required"),
        (("tables", "ledger", "rows"), [], "at least 1"),
        (("tables", "ledger", "rows"), [{"a": 1}, {"b": 1}], "columns"),
        (("extra",), 1, "not permitted"),
        (("sources", "writeup"), {"title": "t"}, "a title and a place"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused(
    tmp_path, path, value, message
):
    bad = change(path, value)
    if path == ("scores", 0, "benchmark"):
        bad["scores"][0] |= {"k": 425, "n": 500}
        message = "two scores on one benchmark"
    (tmp_path / "math-slm.json").write_text(json.dumps(bad))
    with pytest.raises(LabError, match=message):
        load_published("math-slm", tmp_path)


def test_every_number_names_its_place():
    for name in NAMES:
        published: Published = load_published(name)
        parts = [*published.scores, *published.facts.values()]
        for part in (*parts, *published.tables.values()):
            assert part.where.strip()
