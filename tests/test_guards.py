"""The guards against doomed runs; the published figures are the cases."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import guards
from helpers.errors import LabError


def test_guards_import_no_torch():
    code = (
        "import sys, helpers.guards; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- steps ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "epochs", "floor", "counted"),
    # The published 7B run: 3,663 SFT rows and 1,961 pairs, batch 64.
    [(3663, 3, 171, 174), (1961, 2, 60, 62)],
)
def test_published_step_counts_are_the_floor_count(
    rows, epochs, floor, counted
):
    count = guards.count_steps(rows, 64, 2, epochs, world_size=8)
    assert count.floor_total == floor
    assert count.total == counted
    assert count.accumulation == 4


@given(
    rows=st.integers(1, 400),
    per_device=st.sampled_from([1, 2, 4]),
    accumulation=st.integers(1, 5),
    epochs=st.sampled_from([1, 2, 3, 0.5, 1.5]),
    max_steps=st.sampled_from([-1, 7]),
)
@settings(max_examples=40, deadline=None)
def test_steps_are_counted_as_transformers_counts_them(
    rows, per_device, accumulation, epochs, max_steps
):
    pytest.importorskip("torch")
    trainer = make_plain_trainer(
        rows, per_device, accumulation, epochs, max_steps
    )
    loader = trainer.get_train_dataloader()
    values = trainer.set_initial_training_values(trainer.args, loader)
    count = guards.count_steps(
        rows, per_device * accumulation, per_device, epochs,
        max_steps=max_steps,
    )  # fmt: skip
    assert (count.per_epoch, count.total) == (values[1], values[6])
    assert count.micro_batches == values[5]


def make_plain_trainer(rows, per_device, accumulation, epochs, max_steps):
    import torch
    from transformers import Trainer, TrainingArguments

    return Trainer(
        model=torch.nn.Linear(1, 1),
        args=TrainingArguments(
            output_dir="unused",
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=epochs,
            max_steps=max_steps,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=[{"x": i} for i in range(rows)],
    )


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_effective_batch_is_the_same_on_every_machine(world_size):
    accumulation = guards.solve_accumulation(64, 2, world_size)
    assert accumulation * 2 * world_size == 64


def test_effective_batch_that_does_not_divide_is_refused():
    with pytest.raises(LabError, match="not a multiple"):
        guards.solve_accumulation(16, 16, world_size=2)


def test_packing_trap_is_refused_with_the_packed_count():
    # 2,439 short examples, about 322 tokens each, packed to 2,048: 6 steps.
    packed = math.ceil(2439 * 322 / 2048)
    count = guards.count_steps(packed, 64, 2, 3, world_size=8)
    guards.check_steps_per_epoch(guards.count_steps(2439, 64, 2, 3), 30)
    with pytest.raises(LabError, match="packing trap") as caught:
        guards.check_steps_per_epoch(count, 30, unpacked_rows=2439)
    assert "2439 examples" in str(caught.value)
    assert "packing=false" in str(caught.value)


def test_few_steps_without_packing_do_not_blame_packing():
    count = guards.count_steps(20, 16, 16, 3)
    with pytest.raises(LabError) as caught:
        guards.check_steps_per_epoch(count, 30)
    assert "packing=false" not in str(caught.value)
    guards.check_steps_per_epoch(count, count.per_epoch)


def test_no_rows_is_refused():
    with pytest.raises(LabError, match="no row"):
        guards.count_steps(0, 16, 16, 3)


# --- sampling and first loss ---------------------------------------------


def test_copies_are_refused_only_when_they_were_not_asked_for():
    with pytest.raises(LabError, match="distinct"):
        guards.check_distinct_fraction(0.3, 0.9, temperature=1.0)
    guards.check_distinct_fraction(0.25, 0.9, temperature=0.0)
    guards.check_distinct_fraction(0.9, 0.9, temperature=1.0)


def test_initial_loss_of_the_published_run_would_have_warned():
    # It logged 1.25 on its own samples, which it had written at about 0.3.
    warning = guards.check_initial_loss(1.25, -0.3)
    assert "1.250" in warning and "0.300" in warning


@pytest.mark.parametrize(
    ("loss", "logprob"), [(0.31, -0.3), (0.05, -0.02), (0.4, None)]
)
def test_initial_loss_near_the_sampling_entropy_is_quiet(loss, logprob):
    assert guards.check_initial_loss(loss, logprob) is None


def test_dpo_start_is_ln_2_or_refused():
    guards.check_dpo_start(math.log(2) + 1e-6)
    with pytest.raises(LabError, match="not ln 2"):
        guards.check_dpo_start(0.41)


# --- pairs ---------------------------------------------------------------


def make_pair(chosen="a", rejected="b", prompt="p", problem_id="1"):
    return SimpleNamespace(
        chosen=chosen, rejected=rejected, prompt=prompt, problem_id=problem_id
    )


def test_useless_pairs_are_left_out_and_counted_once():
    pairs = [
        make_pair(),
        make_pair(rejected="a "),
        make_pair(rejected=" "),
        make_pair(),
    ]
    check = guards.check_pairs(pairs, [5, 5, 5, 99], max_length=10)
    assert check.kept == (0,)
    assert (check.identical, check.empty, check.too_long) == (1, 1, 1)


def test_a_pair_at_max_length_is_kept():
    assert guards.check_pairs([make_pair()], [10], 10).kept == (0,)


def test_one_problem_under_two_prompts_is_refused():
    pairs = [make_pair(), make_pair(prompt="q")]
    with pytest.raises(LabError, match="two prompts"):
        guards.check_pairs(pairs, [5, 5], 10)


def test_no_usable_pair_is_refused():
    with pytest.raises(LabError, match="1 with chosen = rejected"):
        guards.check_pairs([make_pair(rejected="a")], [5], 10)


# --- monitor -------------------------------------------------------------


def watch(margins, accuracies=None, **changes):
    settings = {
        "noop_margin": 0.02, "noop_after_steps": 20, "overfit_margin": 5.0,
    } | changes  # fmt: skip
    monitor = guards.DpoMonitor(**settings)
    accuracies = accuracies or [0.5] * len(margins)
    alarms = []
    for step, (m, a) in enumerate(zip(margins, accuracies, strict=True), 1):
        alarms += [(step, text) for text in monitor.observe(step, m, a)]
    return monitor, alarms


def test_noop_alarm_fires_once_and_only_after_the_wait():
    # The published run ended at margin -0.026 and accuracy 0.225; at half of
    # that margin nothing measurable can change.
    monitor, alarms = watch([-0.013] * 60, [0.225] * 60)
    assert [step for step, _ in alarms] == [20]
    assert "no change" in alarms[0][1]
    assert monitor.is_noop and monitor.finish() == []


def test_perfect_accuracy_does_not_silence_the_noop_alarm():
    monitor, alarms = watch([1e-5] * 30, [1.0] * 30)
    assert len(alarms) == 1 and not monitor.is_overfit


def test_a_margin_that_grows_in_time_raises_no_alarm():
    monitor, alarms = watch([step * 0.02 for step in range(40)])
    assert alarms == [] and monitor.finish() == []


def test_a_short_dead_run_is_called_at_its_end():
    monitor, alarms = watch([0.0] * 3)
    assert alarms == []
    assert "No-op" in monitor.finish()[0]


def test_overfit_alarm_needs_margin_and_accuracy_for_a_whole_window():
    _, alarms = watch([6.0] * 10, [1.0] * 10)
    assert [step for step, _ in alarms] == [5]
    _, alarms = watch([6.0] * 10, [1.0, 1.0, 1.0, 0.9] * 2 + [1.0, 1.0])
    assert alarms == []
    _, alarms = watch([4.0] * 10, [1.0] * 10)
    assert alarms == []


# --- learning-rate travel ------------------------------------------------


def test_published_dpo_run_cannot_move_a_bf16_weight():
    # 60 steps at 5e-7 with a cosine to zero; weights of about 0.02.
    travel = guards.learning_rate_travel(5e-7, 60, warmup_ratio=0.03)
    assert travel.sum_lr == pytest.approx(1.5e-5, rel=0.02)
    assert travel.is_erased
    longer = guards.learning_rate_travel(5e-6, 200, warmup_ratio=0.03)
    assert not longer.is_erased


@pytest.mark.parametrize(
    "scheduler", ["cosine", "linear", "constant", "constant_with_warmup"]
)
def test_travel_is_the_sum_of_transformers_own_schedule(scheduler):
    torch = pytest.importorskip("torch")
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=2e-4)
    schedule = get_scheduler(scheduler, optimizer, 3, 57)
    total = 0.0
    for _ in range(57):
        total += schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
    ours = guards.sum_learning_rates(2e-4, 57, 3 / 57, scheduler)
    assert ours == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@given(weight=st.floats(0.001, 4.0))
@settings(max_examples=25, deadline=None)
def test_half_ulp_is_where_torch_starts_to_round(dtype, weight):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    stored = torch.tensor(weight, dtype=torch.float64).to(kind).double()
    gap = guards.half_ulp(stored.item(), dtype)
    assert (stored + 0.49 * gap).to(kind).double() == stored
    assert (stored + 1.51 * gap).to(kind).double() > stored


def test_unknown_schedule_is_refused():
    with pytest.raises(LabError, match="polynomial"):
        guards.sum_learning_rates(1e-4, 10, 0.0, "polynomial")
