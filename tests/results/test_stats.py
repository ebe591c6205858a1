"""Statistics: against the libraries, published examples, and invariants."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar

from helpers.base import LabError
from helpers.results import Proportion, compare, compare_counts, stats

counts = st.integers(0, 30)
# A busy machine must not fail a test: no deadline, no speed check.
unhurried = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_score_prints_count_percent_and_interval():
    assert str(stats.proportion(170, 200)) == (
        "170/200 (85.0 %, 95 % CI 79.4–89.3)"
    )


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 50), (7, 60), (50, 50)])
def test_wilson_is_scipys_wilson(k, n):
    score = stats.proportion(k, n)
    expected = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
    assert score.low == pytest.approx(expected.low, abs=1e-12)
    assert score.high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= score.low <= score.p <= score.high <= 1


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_what_is_no_score_is_refused(k, n):
    with pytest.raises(LabError, match="not a score"):
        stats.proportion(k, n)


def test_compare_counts_the_four_cells():
    before = {"a": True, "b": True, "c": False, "d": False, "e": False}
    after = {"e": True, "d": False, "c": True, "b": False, "a": True}
    one = compare(before, after)
    cells = (one.both, one.only_before, one.only_after, one.neither)
    assert cells == (1, 1, 2, 1)
    assert one.n == 5 and one.diff == pytest.approx(0.2)
    assert str(one.before) == str(Proportion(2, 5))
    assert str(one.after) == str(Proportion(3, 5))
    keys = list(before)
    lists = [before[k] for k in keys], [after[k] for k in keys]
    assert compare(*lists) == one


def test_mismatched_problem_ids_are_named():
    with pytest.raises(LabError) as caught:
        compare({"p1": True, "p2": True}, {"p2": True, "p9": False})
    assert "only before: p1" in str(caught.value)
    assert "only after: p9" in str(caught.value)
    many = {f"q{i}": True for i in range(40)}
    with pytest.raises(LabError, match=r"40 in all"):
        compare(many, {})
    with pytest.raises(LabError, match="2 results against 1"):
        compare([True, False], [True])
    with pytest.raises(LabError, match="no problem"):
        compare([], [])
    with pytest.raises(TypeError):
        compare({"a": True}, [True])


@unhurried
@given(counts, counts)
def test_mcnemar_is_the_exact_binomial_test(lost, won):
    if lost + won:
        expected = scipy_stats.binomtest(lost, lost + won).pvalue
    else:
        expected = 1.0
    assert stats.mcnemar_p(lost, won) == pytest.approx(expected)


def test_tango_interval_matches_the_literature():
    # Airway hyper-responsiveness before and after stem cell transplantation
    # (Bentur et al. 2009; n = 21, discordant 1 and 7): Fagerland, Lydersen
    # and Laake, Statistics in Medicine 33 (2014), give -0.517 to -0.026.
    low, high = stats.tango_interval(7, 1, 21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


@unhurried
@given(counts, counts, st.integers(1, 60))
def test_tango_interval_inverts_the_asymptotic_mcnemar_test(lost, won, rest):
    n = lost + won + rest
    low, high = stats.tango_interval(lost, won, n)
    assert -1 <= low <= (won - lost) / n <= high <= 1
    mirrored = stats.tango_interval(won, lost, n)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)
    if lost + won:
        table = [[0, lost], [won, 0]]
        test = mcnemar(table, exact=False, correction=False)
        assert (test.pvalue < 0.05) == (not low <= 0 <= high)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_tango_interval_at_the_edges(n):
    low, high = stats.tango_interval(0, n, n)
    assert high == 1 and -1 <= low < 1
    low, high = stats.tango_interval(0, 0, n)
    assert low == pytest.approx(-high) and high > 0


def test_tango_interval_covers_the_truth():
    rng = random.Random(5)
    n, cells = 120, ("both", "lost", "won", "neither")
    weights, runs, hits = (0.5, 0.06, 0.12, 0.32), 300, 0
    for _ in range(runs):
        drawn = rng.choices(cells, weights, k=n)
        lost, won = drawn.count("lost"), drawn.count("won")
        low, high = stats.tango_interval(lost, won, n)
        hits += low <= 0.06 <= high
    # 95 % of 300 with four standard errors of slack
    slack = 4 * math.sqrt(0.95 * 0.05 / runs)
    assert abs(hits / runs - 0.95) < slack


@unhurried
@given(counts, counts, counts, counts)
def test_verdict_needs_interval_and_exact_test(both, lost, won, neither):
    if not both + lost + won + neither:
        return
    one = compare_counts(both, lost, won, neither)
    text = one.sentence("base", "sft", "main")
    decided = one.p_value < 0.05 and not one.low <= 0 <= one.high
    assert (one.verdict != "undecided") == decided
    assert one.smallest_p <= one.p_value + 1e-12
    if one.low <= 0 <= one.high and lost + won:
        assert "Not distinguishable from noise at this n" in text
    if decided:
        verb = "helps" if won > lost else "hurts"
        assert f"sft {verb} on main against base" in text


def test_sentences():
    text = compare_counts(180, 20, 89, 211).sentence("base", "sft", "main")
    assert text == (
        "sft helps on main against base: +13.8 points "
        "(95 % CI +10.0 to +17.8), exact McNemar p < 0.0001, "
        "won 89, lost 20 of 500."
    )
    text = compare_counts(100, 20, 23, 57).sentence("sft", "dpo")
    assert "smallest possible p is 0.25" in text
    text = compare_counts(10, 0, 0, 10).sentence()
    assert "Not one problem changed" in text
    text = compare_counts(100, 0, 5, 20).sentence()
    assert "excludes zero but the exact test does not reject" in text


@pytest.mark.parametrize(("k_before", "k_after", "n"), [(3, 7, 9), (5, 5, 8)])
def test_paired_bound_is_what_all_tables_show(k_before, k_after, n):
    tables = [
        (lost, won)
        for both in range(n + 1)
        if (lost := k_before - both) >= 0
        and (won := k_after - both) >= 0
        and both + lost + won <= n
    ]
    ps = {lost + won: stats.mcnemar_p(lost, won) for lost, won in tables}
    bound = stats.paired_bound(k_before, k_after, n)
    assert bound.max_flips == max(ps)
    assert bound.smallest_p == pytest.approx(min(ps.values()))
    below = [flips for flips, p in ps.items() if p < 0.05]
    assert bound.significant_up_to == (max(below) if below else None)


def test_fewer_than_six_net_flips_are_never_significant():
    for net in range(1, 12):
        assert stats.mcnemar_p(0, net) == pytest.approx(2.0 ** (1 - net))
        assert (stats.mcnemar_p(0, net) < 0.05) == (net >= 6)


def test_newcombe_is_the_square_and_add_of_wilson():
    before, after = Proportion(56, 70), Proportion(48, 80)
    found = stats.newcombe_difference(before, after)
    down = math.hypot(after.p - after.low, before.high - before.p)
    up = math.hypot(after.high - after.p, before.p - before.low)
    assert found.low == pytest.approx(found.diff - down)
    assert found.high == pytest.approx(found.diff + up)
    # Newcombe 1998, table II, example (a): 56/70 against 48/80
    assert (round(-found.high, 4), round(-found.low, 4)) == (0.0524, 0.3339)


def test_paired_macro_is_the_bootstrap_of_the_differences():
    one, two = compare_counts(10, 4, 9, 17), compare_counts(50, 12, 20, 18)
    found = stats.macro_compare([one, two])
    assert found.difference.diff == pytest.approx((one.diff + two.diff) / 2)
    low, high = found.difference.low, found.difference.high
    variances = [
        ((c.only_before + c.only_after) / c.n - c.diff**2) / c.n
        for c in (one, two)
    ]
    # the bootstrap spread is that of the differences
    error = math.sqrt(sum(variances)) / 2
    assert high - low == pytest.approx(2 * 1.959964 * error, rel=0.05)
    assert stats.macro_compare([one, two]) == found
    assert low < found.difference.diff < high
    assert stats.macro_compare([one, two], seed=1).difference.low != low


@pytest.mark.parametrize(("lost", "won"), [(0, 1), (2, 9), (3, 3), (0, 8)])
def test_exchange_test_on_one_benchmark_is_mcnemars(lost, won):
    found = stats.macro_compare([compare_counts(20, lost, won, 9)])
    assert found.p_value == pytest.approx(stats.mcnemar_p(lost, won))


def test_exact_and_random_exchanges_agree(monkeypatch):
    from helpers.results.stats import resampled

    made = [compare_counts(60, 6, 14, 20), compare_counts(30, 2, 5, 13)]
    exact = stats.macro_compare(made)
    assert exact.least_p == 0
    # every way in which the 27 flips can be exchanged
    ways = [
        (
            math.comb(20, i) * math.comb(7, j),
            abs((2 * i - 20) / 100 + (2 * j - 7) / 50),
        )
        for i in range(21)
        for j in range(8)
    ]
    seen = 8 / 100 + 3 / 50
    share = sum(w for w, net in ways if net >= seen - 1e-9) / 2**27
    assert exact.p_value == pytest.approx(share)
    monkeypatch.setattr(resampled, "EXACT_SUM", -1)
    drawn = stats.macro_compare(made)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.01)
    assert drawn.least_p == pytest.approx(0.0002)
    sure = stats.macro_compare([compare_counts(50, 0, 60, 10)])
    assert "p ≤ 0.0002." in sure.sentence()


def test_numbers_without_a_common_multiple_are_compared_too():
    made = [compare_counts(n, 10, 30, n) for n in (199, 499, 61, 503)]
    found = stats.macro_compare(made)
    assert found.least_p > 0 and found.verdict == "helps"


def test_exchange_test_holds_its_level():
    """Two equally good models: 5 % of the tests reject, no more."""
    rng, hits, runs = random.Random(3), 0, 60
    for _ in range(runs):
        made = []
        for n in (40, 90):
            flips = [rng.random() < 0.5 for _ in range(n // 4)]
            made.append(
                compare_counts(n, sum(flips), len(flips) - sum(flips), n)
            )
        hits += stats.macro_compare(made).p_value < 0.05
    slack = 4 * math.sqrt(0.05 * 0.95 / runs)
    assert hits / runs < 0.05 + slack


def test_macro_sentences():
    noise = stats.macro_compare(
        [compare_counts(40, 5, 6, 40), compare_counts(40, 5, 5, 40)]
    )
    text = noise.sentence("base", "sft")
    assert text.startswith("sft against base, mean over 2 benchmarks: +0.5")
    assert text.endswith("Not distinguishable from noise at this n.")
    real = stats.macro_compare([compare_counts(40, 1, 30, 40)])
    assert real.verdict == "helps" and "noise" not in real.sentence()
    same = stats.macro_compare([compare_counts(5, 0, 0, 5)])
    assert same.difference.diff == 0 and math.isnan(same.p_value)
    assert same.verdict == "undecided"
    assert "no flips: the interval cannot be estimated" in same.sentence()
    assert stats.format_p(same.p_value) == "no p value"
    with pytest.raises(LabError, match="no benchmark"):
        stats.macro_compare([])
    with pytest.raises(LabError, match="Benchmark 2 of 2 has one problem"):
        stats.macro_compare(
            [compare_counts(4, 1, 1, 4), compare_counts(0, 0, 1, 0)]
        )


def test_bootstrap_mean_is_near_the_t_interval():
    rng = random.Random(1)
    values = [rng.choice((0, 0.25, 0.5, 1)) for _ in range(400)]
    found = stats.bootstrap_mean(values)
    error = scipy_stats.sem(values)
    assert found.value == pytest.approx(sum(values) / 400)
    assert found.high - found.low == pytest.approx(3.92 * error, rel=0.06)
    assert found == stats.bootstrap_mean(values, seed=0)
    assert "% (95 % CI " in str(found)


def test_a_mean_without_spread_has_no_zero_width_interval():
    nothing, all_right = stats.proportion(0, 60), stats.proportion(60, 60)
    found = stats.bootstrap_mean([0.0] * 60)
    assert (found.low, found.high) == (nothing.low, nothing.high)
    found = stats.bootstrap_mean([1.0] * 60)
    assert (found.low, found.high) == (all_right.low, all_right.high)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5], "mean over 1 problem has"),
        ([], "mean over 0 problems has"),
        ([0.5, math.nan, 1], "Value 1 of 3 is nan"),
        ([0.5, 54.0], "is 54.0, not a share"),
    ],
)
def test_a_mean_over_what_is_no_set_of_shares_is_refused(values, message):
    with pytest.raises(LabError, match=message):
        stats.bootstrap_mean(values)


@unhurried
@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    marks = [True] * c + [False] * (n - c)
    sets = list(itertools.combinations(marks, k))
    share = sum(map(any, sets)) / len(sets)
    assert stats.estimate_pass_at_k(n, c, k) == pytest.approx(share)
    assert stats.estimate_pass_at_k(n, c, 1) == pytest.approx(c / n)


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (4, 1, 5, "only 4 samples of each problem are kept"),
        (4, 1, 0, "not a number of samples"),
        (4, 1, 1.5, "not a number of samples"),
        (4, 5, 2, "5 right of 4 samples cannot be"),
        (0, 0, 1, "only 0 samples"),
    ],
)
def test_pass_at_k_refuses_what_cannot_be_known(n, c, k, message):
    with pytest.raises(LabError, match=message):
        stats.estimate_pass_at_k(n, c, k)


def test_nan_is_refused_everywhere():
    nan = math.nan
    with pytest.raises(LabError, match="problem b is nan"):
        compare({"a": True, "b": nan}, {"a": True, "b": False})
    for call in (
        lambda: stats.proportion(nan, 5),
        lambda: stats.holm([0.1, nan]),
        lambda: stats.n_needed(nan, 0.5),
        lambda: stats.n_needed_paired(nan, 0.5),
        lambda: stats.best_of(21, 14, 30, nan),
        lambda: stats.best_of(0, 14, 30, 0.3),
    ):
        with pytest.raises(LabError):
            call()


def test_unpaired_tests_are_the_libraries():
    before, after = Proportion(23, 50), Proportion(27, 50)
    table = [[27, 23], [23, 27]]
    fisher = scipy_stats.fisher_exact(table).pvalue
    chi2 = scipy_stats.chi2_contingency(table, correction=False).pvalue
    assert stats.fisher_p(before, after) == pytest.approx(fisher)
    assert stats.z_test_p(before, after) == pytest.approx(chi2)
    assert stats.z_test_p(before, before) == 1


def test_holm_is_monotone_and_bounded():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []
    assert all(p <= 1 for p in stats.holm([0.9, 0.8, 0.7]))


def test_needed_problems_reach_the_power():
    for p_before, p_after in ((0.6, 0.738), (0.05, 0.117)):
        n = stats.n_needed(p_before, p_after)
        error = math.sqrt(
            (p_before * (1 - p_before) + p_after * (1 - p_after)) / n
        )
        mean = (p_before + p_after) / 2
        null = math.sqrt(2 * mean * (1 - mean) / n)
        reach = (p_after - p_before - 1.959964 * null) / error
        assert scipy_stats.norm.cdf(reach) == pytest.approx(0.8, abs=0.005)
    assert stats.n_needed_paired(0.015, 0.1) < stats.n_needed(0.795, 0.81)
    with pytest.raises(ValueError):
        stats.n_needed(0.5, 0.5)
    with pytest.raises(ValueError):
        stats.n_needed_paired(0.2, 0.1)


def test_best_of_one_is_the_binomial():
    reach, expected = stats.best_of(1, 14, 30, 0.3)
    assert reach == pytest.approx(scipy_stats.binom.sf(13, 30, 0.3))
    assert expected == pytest.approx(0.3)
    assert stats.best_of(21, 14, 30, 0.3)[0] > reach


def test_formats():
    assert stats.format_points(0.0001) == "0.0"
    assert stats.format_points(-0.0552) == "-5.5"
    assert stats.format_p(0.00001) == "p < 0.0001"
    assert stats.format_p(0.0312) == "p = 0.031"


def test_import_needs_no_heavy_library():
    code = (
        "import sys, helpers.results, helpers.results.plots\n"
        "heavy = {'torch', 'transformers', 'statsmodels', 'scipy',\n"
        "         'matplotlib', 'jinja2', 'markdown_it'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr
