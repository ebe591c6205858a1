"""The early-stop rule: what counts as a no-op, what is derived, what saved."""

from __future__ import annotations

import math

import pytest

from helpers.base import LabError
from helpers.experiments.dpo_sweep import (
    StopRule,
    check_rule,
    derive_rule,
    is_noop,
    largest_silent,
    project_nats,
)
from helpers.results import mcnemar_p


def make_row(slope, flips, *, beta=0.1, steps=60):
    """A run whose margin grows by ``slope`` nats a step."""
    return {
        "name": f"slope {slope}",
        "beta": beta,
        "steps": steps,
        "margins": [(s, beta * slope * s) for s in range(1, steps + 1)],
        "unmerged": {"won": flips, "lost": 0},
    }


DEAD = [make_row(1e-5, 0), make_row(1e-4, 2), make_row(4e-3, 5)]
ALIVE = [make_row(2e-2, 9), make_row(5e-2, 40, steps=200)]


def test_silent_means_that_no_outcome_could_be_significant():
    most = largest_silent()
    assert min(mcnemar_p(0, most), mcnemar_p(most, 0)) >= 0.05
    assert mcnemar_p(0, most + 1) < 0.05
    assert is_noop(make_row(1, most)) and not is_noop(make_row(1, most + 1))


def test_the_margin_is_projected_in_nats_whatever_beta():
    for beta in (0.03, 0.1, 1.0):
        row = make_row(0.02, 0, beta=beta)
        at_20 = 0.02 * 18  # mean of steps 16 to 20
        assert project_nats(row, 20) == pytest.approx(at_20 * 60 / 20)


def test_a_longer_run_is_given_its_time():
    """The same start, more steps to come: another projection."""
    short, long = make_row(4e-3, 5), make_row(4e-3, 30, steps=400)
    assert project_nats(long, 10) > 5 * project_nats(short, 10)
    rule = derive_rule([*DEAD, *ALIVE, long])
    assert check_rule(rule, [short, long]).right == 2


def test_a_run_without_a_log_is_refused():
    with pytest.raises(LabError, match="no margin up to step 5"):
        project_nats(make_row(1, 0) | {"margins": [(6, 0.1)]}, 5)


def test_the_earliest_step_that_separates_widely_is_chosen():
    rule = derive_rule([*DEAD, *ALIVE])
    assert rule.step == 5
    low, high = project_nats(DEAD[2], 5), project_nats(ALIVE[0], 5)
    assert rule.nats == pytest.approx(math.sqrt(low * high))
    check = check_rule(rule, [*DEAD, *ALIVE])
    assert (check.right, check.stopped, check.missed) == (5, 3, 0)
    assert (check.steps, check.steps_saved) == (4 * 60 + 200, 3 * 55)


def test_a_narrow_early_gap_waits_for_a_wide_one():
    late = make_row(0.0, 30)
    late["margins"] = [
        (s, 0.1 * (4.2e-3 * s if s < 12 else 0.2 * s)) for s in range(1, 61)
    ]
    rule = derive_rule([*DEAD, *ALIVE, late])
    assert rule.step == 15
    assert check_rule(rule, [late]).right == 1


def test_errors_are_counted_apart():
    rule = StopRule(5, 0.3)  # between the dead and the living
    lucky, slow = make_row(1e-4, 30), make_row(5e-2, 1)
    check = check_rule(rule, [*DEAD, *ALIVE, lucky, slow])
    assert (check.stopped_wrongly, check.missed, check.right) == (1, 1, 5)


@pytest.mark.parametrize("rows", [DEAD, ALIVE])
def test_one_kind_of_run_gives_no_rule(rows):
    with pytest.raises(LabError, match="all no-ops, or none"):
        derive_rule(rows)
