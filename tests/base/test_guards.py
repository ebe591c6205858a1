"""The guards against doomed runs; the published figures are the cases."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.base import GUARDS, LabError, check_writable
from helpers.models import check_single_bos
from helpers.planner import (
    check_steps_per_epoch,
    count_steps,
    half_ulp,
    learning_rate_travel,
    solve_accumulation,
    sum_learning_rates,
)
from helpers.stages import (
    DpoMonitor,
    PairCheck,
    check_cut_pairs,
    check_distinct_fraction,
    check_dpo_start,
    check_initial_loss,
    check_length_ratio,
    check_lora_targets,
    check_merge_fidelity,
    check_pairs,
    check_reference_control,
)


def test_guards_import_no_torch():
    code = (
        "import sys, helpers.stages.guards; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- the table: every guard fires, and stays silent ----------------------


def run_guard(name, *arguments, **options):
    """What a guard says: its refusal, its warning, or None."""
    try:
        return CHECKS[name](*arguments, **options)
    except LabError as error:
        assert error.fix or error.why, f"{name} gives no remedy"
        return str(error)


def case(*arguments, **options):
    """Arguments of one call."""
    return arguments, options


ENDS = SimpleNamespace(bos_token_id=1, eos_token_id=2)  # of a tokenizer
PACKED = count_steps(384, 64, 2, 3, world_size=8)
QWEN = {
    "heads": 28,
    "kv_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
}
PAIRS = [
    SimpleNamespace(chosen="a", rejected="b", prompt="p", problem_id="1"),
    SimpleNamespace(chosen="a", rejected="a", prompt="p", problem_id="2"),
]
KEPT = PairCheck((0, 1, 2), 0, 0, 0)
FIRES = {
    "check_tensor_parallel": case("Qwen", 8, **QWEN),
    "check_card_count": case("Eight replicas", 8, 4),
    "check_precision": case("Tesla T4", (7, 5), "bfloat16"),
    "check_card_memory": case("SFT", 24.8, "T4", 15.0, "logits"),
    "check_travel": case(learning_rate_travel(5e-7, 60)),
    "check_steps_per_epoch": case(PACKED, 30, unpacked_rows=2439),
    "check_writable": case("runs", is_folder=True, may_write=False),
    "check_space": case("runs", 200, 15_000),
    "check_same_inputs": case("runs/a", "sft", ["recipe"]),
    "check_distinct_fraction": case(0.34, 0.9, 1.0),
    "check_prompt_text": case(["[INST] 1 + 1 [/INST]"], "<s>", "</s>", "x"),
    "check_single_bos": case([1, 1, 40], 1, 1),
    "check_markers": case(["<think>a</think>b"], ["<think>ab"]),
    "check_supervision": case([([1, 40, 2], [1, 40, 2])], [[1]], ENDS),
    "check_lora_targets": case(["q_proj", "W_pack"], {"q_proj", "v_proj"}),
    "check_initial_loss": case(1.25, -0.3),
    "check_merge_fidelity": case(0.16, 0.21, 0.014, "bfloat16"),
    "check_pairs": case(PAIRS[1:], [5], 10),
    "check_cut_pairs": case(PairCheck((0,), 0, 0, 2), 1024),
    "check_length_ratio": case([900, 1000], [300, 310]),
    "check_reference_control": case(
        ["model.layers.0.self_attn.q_proj.lora_A.default.weight",
         "model.layers.0.mlp.gate.weight"]
    ),
    "check_dpo_start": case(0.41),
    "check_noop": case(20, -0.013, 0.02),
    "check_overfit": case(20, 6.0, 5.0, 1.0),
    "check_written": case("sft", {"sft/adapter": None, "sft/log.jsonl": 9}),
}  # fmt: skip
SILENT = {
    "check_tensor_parallel": case("Qwen", 4, **QWEN),
    "check_card_count": case("Eight replicas", 8, 8),
    "check_precision": case("A100", (8, 0), "bfloat16"),
    "check_card_memory": case("SFT", 24.8, "H100", 79.6, "logits"),
    "check_travel": case(learning_rate_travel(5e-6, 200)),
    "check_steps_per_epoch": case(count_steps(3663, 64, 2, 3), 30),
    "check_writable": case("runs", is_folder=True, may_write=True),
    "check_space": case("runs", 15_000, 15_000),
    "check_same_inputs": case("runs/a", "sft", []),
    "check_distinct_fraction": case(0.25, 0.9, 0.0),
    "check_prompt_text": case(["<s>1 + 1</s>"], "<s>", "</s>", "x"),
    "check_single_bos": case([1, 40], 1, 1),
    "check_markers": case(["<think>a</think>b"], [" <think>a</think>b"]),
    "check_supervision": case([([1, 40, 2], [-100, 40, 2])], [[1]], ENDS),
    "check_lora_targets": case(["q_proj"], {"q_proj", "v_proj"}),
    "check_initial_loss": case(0.31, -0.3),
    "check_merge_fidelity": case(0.97, 0.99, 0.7, "bfloat16"),
    "check_pairs": case(PAIRS[:1], [5], 10),
    "check_cut_pairs": case(KEPT, 1024),
    "check_length_ratio": case([300, 310], [290, 400]),
    "check_reference_control": case(
        ["model.layers.0.self_attn.q_proj.lora_A.default.weight",
         "model.layers.0.mlp.gate.modules_to_save.default.weight"]
    ),
    "check_dpo_start": case(math.log(2)),
    "check_noop": case(20, 0.4, 0.02),
    "check_overfit": case(20, 6.0, 5.0, 0.9),
    "check_written": case("sft", {"sft/adapter": 1, "pairs.jsonl": 0}),
}  # fmt: skip
CHECKS = {guard.name: guard.check for guard in GUARDS}
NAMES = list(CHECKS)


def test_no_guard_is_without_its_two_tests():
    assert set(FIRES) == set(SILENT) == set(NAMES)
    assert len(NAMES) == len(GUARDS)


@pytest.mark.parametrize("name", NAMES)
def test_it_fires(name):
    arguments, options = FIRES[name]
    said = run_guard(name, *arguments, **options)
    assert isinstance(said, str) and len(said) > 40


@pytest.mark.parametrize("name", NAMES)
def test_it_stays_silent(name):
    arguments, options = SILENT[name]
    said = run_guard(name, *arguments, **options)
    if isinstance(said, PairCheck):
        said = None if len(said.kept) == 1 else str(said)
    assert said is None


@pytest.mark.parametrize("guard", GUARDS, ids=NAMES)
def test_every_guard_tells_its_story(guard):
    assert len(guard.story) > 80, "no 'Story:' in its docstring"
    assert guard.when and guard.title
    assert guard.as_row()["function"] == guard.name


# --- steps ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "epochs", "floor", "counted"),
    # The published 7B run: 3,663 SFT rows and 1,961 pairs, batch 64.
    [(3663, 3, 171, 174), (1961, 2, 60, 62)],
)
def test_published_step_counts_are_the_floor_count(
    rows, epochs, floor, counted
):
    count = count_steps(rows, 64, 2, epochs, world_size=8)
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
    count = count_steps(
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
    accumulation = solve_accumulation(64, 2, world_size)
    assert accumulation * 2 * world_size == 64


def test_effective_batch_that_does_not_divide_is_refused():
    with pytest.raises(LabError, match="not a multiple"):
        solve_accumulation(16, 16, world_size=2)


def test_packing_trap_is_refused_with_the_packed_count():
    # 2,439 short examples, about 322 tokens each, packed to 2,048: 6 steps.
    packed = math.ceil(2439 * 322 / 2048)
    count = count_steps(packed, 64, 2, 3, world_size=8)
    check_steps_per_epoch(count_steps(2439, 64, 2, 3), 30)
    with pytest.raises(LabError, match="packing trap") as caught:
        check_steps_per_epoch(count, 30, unpacked_rows=2439)
    assert "2439 examples" in str(caught.value)
    assert "packing=false" in str(caught.value)


def test_few_steps_without_packing_do_not_blame_packing():
    count = count_steps(20, 16, 16, 3)
    with pytest.raises(LabError) as caught:
        check_steps_per_epoch(count, 30)
    assert "packing=false" not in str(caught.value)
    check_steps_per_epoch(count, count.per_epoch)


def test_no_rows_is_refused():
    with pytest.raises(LabError, match="no row"):
        count_steps(0, 16, 16, 3)


# --- sampling and first loss ---------------------------------------------


def test_copies_are_refused_only_when_they_were_not_asked_for():
    with pytest.raises(LabError, match="distinct"):
        check_distinct_fraction(0.3, 0.9, temperature=1.0)
    check_distinct_fraction(0.25, 0.9, temperature=0.0)
    check_distinct_fraction(0.9, 0.9, temperature=1.0)


def test_initial_loss_of_the_published_run_would_have_warned():
    # It logged 1.25 on its own samples, which it had written at about 0.3.
    warning = check_initial_loss(1.25, -0.3)
    assert "1.250" in warning and "0.300" in warning


@pytest.mark.parametrize(
    ("loss", "logprob"), [(0.31, -0.3), (0.05, -0.02), (0.4, None)]
)
def test_initial_loss_near_the_sampling_entropy_is_quiet(loss, logprob):
    assert check_initial_loss(loss, logprob) is None


def test_dpo_start_is_ln_2_or_refused():
    check_dpo_start(math.log(2) + 1e-6)
    with pytest.raises(LabError, match="not ln 2"):
        check_dpo_start(0.41)


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
    check = check_pairs(pairs, [5, 5, 5, 99], max_length=10)
    assert check.kept == (0,)
    assert (check.identical, check.empty, check.too_long) == (1, 1, 1)


def test_a_pair_at_max_length_is_kept():
    assert check_pairs([make_pair()], [10], 10).kept == (0,)


def test_one_problem_under_two_prompts_is_refused():
    pairs = [make_pair(), make_pair(prompt="q")]
    with pytest.raises(LabError, match="two prompts"):
        check_pairs(pairs, [5, 5], 10)


def test_no_usable_pair_is_refused():
    with pytest.raises(LabError, match="1 with chosen = rejected"):
        check_pairs([make_pair(rejected="a")], [5], 10)


@pytest.mark.parametrize(
    ("kept", "too_long", "warns"), [(8, 2, False), (7, 3, True)]
)
def test_a_fifth_of_the_pairs_may_be_too_long(kept, too_long, warns):
    check = PairCheck(tuple(range(kept)), 0, 0, too_long)
    assert bool(check_cut_pairs(check, 512)) == warns


def test_length_is_compared_both_ways_and_by_medians():
    assert "longer" in check_length_ratio([30, 40, 30], [10, 9, 12])
    assert "shorter" in check_length_ratio([10, 9, 12], [30, 40, 30])
    assert check_length_ratio([30, 31, 9000], [29, 30, 33]) is None
    assert check_length_ratio([15], [10]) is None
    assert check_length_ratio([0], [0]) is None


# --- tokens --------------------------------------------------------------


def test_one_bos_none_where_none_is_added_two_never():
    check_single_bos([40], None, 0)
    check_single_bos([40], 1, 0)
    check_single_bos([1, 40], 1, 0)
    for ids, wanted in (([40], 1), ([], 1), ([1, 1], 0)):
        with pytest.raises(LabError, match="BOS token instead of once"):
            check_single_bos(ids, 1, wanted)


def test_a_special_think_token_is_lost_in_decoding(tokenizer):
    """As a special token it vanishes; as a plain added one it stays."""
    from tiny_models import make_tokenizer

    from helpers.models import check_template

    special, plain = make_tokenizer(), make_tokenizer()
    marks = ["<think>", "</think>"]
    special.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|assistant|>", *marks]}
    )
    plain.add_tokens(marks)
    check_template(tokenizer, "plain")
    check_template(plain, "plain")
    with pytest.raises(LabError, match="loses the mark '<think>'"):
        check_template(special, "plain")


def test_rows_that_lose_a_mark_are_refused(tokenizer):
    from helpers.stages import trainer as training

    ids = tokenizer("so</think>4", add_special_tokens=False)["input_ids"]
    documents, prompts = (
        [([1, *ids, 2], [-100, *ids, 2])],
        [tokenizer.bos_token],
    )
    training.check_tokens(tokenizer, documents, prompts, ["so</think>4"])
    with pytest.raises(LabError, match="written 2 times, 1 times after"):
        training.check_tokens(
            tokenizer, documents, prompts, ["</think>so</think>4"]
        )


# --- weights -------------------------------------------------------------


def test_lora_layers_beyond_the_model_are_refused():
    modules = {"q_proj"}
    options = {"layers": (4, 15), "layer_count": 16}
    check_lora_targets(["q_proj"], modules, **options)
    with pytest.raises(LabError, match="layers, numbered from 0"):
        check_lora_targets(["q_proj"], modules, layers=[16],
                                  layer_count=16)  # fmt: skip


def test_peft_says_nothing_where_one_of_several_targets_matches(tiny_model):
    """The reason for the guard, on the installed version."""
    import copy

    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q_proj", "W_pack"])
    model = get_peft_model(copy.deepcopy(tiny_model), config)
    names = [n for n, _ in model.named_parameters() if "lora_" in n]
    assert names and not any("W_pack" in name for name in names)


@pytest.mark.parametrize(
    ("options", "moves"),
    [
        ({}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"bias": "all"}, True),
    ],
)
def test_the_guard_knows_what_peft_switches_off(tiny_model, options, moves):
    """A trained weight moves "adapter off" exactly where the guard says."""
    import copy

    torch = pytest.importorskip("torch")
    from peft import LoraConfig, get_peft_model

    base = copy.deepcopy(tiny_model)
    linear = base.model.layers[0].self_attn.q_proj
    linear.bias = torch.nn.Parameter(torch.zeros(linear.out_features))
    model = get_peft_model(
        base, LoraConfig(target_modules=["q_proj"], **options)
    )
    ids = torch.tensor([[1, 40, 50]])
    with torch.no_grad(), model.disable_adapter():
        before = model(ids).logits
    trained = [(n, w) for n, w in model.named_parameters() if w.requires_grad]
    with torch.no_grad():
        for _, weight in trained:
            weight.add_(0.5)
        with model.disable_adapter():
            after = model(ids).logits
    assert (not torch.equal(before, after)) == moves
    said = run_guard("check_reference_control", [n for n, _ in trained])
    assert bool(said) == moves


def test_a_precomputed_reference_cannot_move():
    names = ["lm_head.weight"]
    check_reference_control(names, precomputed=True)
    with pytest.raises(LabError, match=r"lm_head\.weight"):
        check_reference_control(names)


def test_a_merge_that_changes_nothing_is_named():
    said = check_merge_fidelity(1.0, 1.0, 0.0, "bfloat16")
    assert "changed no weight at all" in said


# --- outputs -------------------------------------------------------------


def test_a_stage_without_its_output_is_not_finished(run):
    with (
        pytest.raises(LabError, match="wrote no nothing"),
        run.stage("toy", {}) as record,
    ):
        record["outputs"] = ["nothing.jsonl"]
    assert not run.is_done("toy", {}) and run.metrics() == {}


def test_a_folder_of_a_file_is_refused(tmp_path):
    with pytest.raises(LabError, match="is not a folder"):
        check_writable("x", is_folder=False, may_write=True)


# --- monitor -------------------------------------------------------------


def watch(margins, accuracies=None, **changes):
    settings = {
        "noop_margin": 0.02, "noop_after_steps": 20, "overfit_margin": 5.0,
    } | changes  # fmt: skip
    monitor = DpoMonitor(**settings)
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
    travel = learning_rate_travel(5e-7, 60, warmup_ratio=0.03)
    assert travel.sum_lr == pytest.approx(1.5e-5, rel=0.02)
    assert travel.is_erased
    longer = learning_rate_travel(5e-6, 200, warmup_ratio=0.03)
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
    ours = sum_learning_rates(2e-4, 57, 3 / 57, scheduler)
    assert ours == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@given(weight=st.floats(0.001, 4.0))
@settings(max_examples=25, deadline=None)
def test_half_ulp_is_where_torch_starts_to_round(dtype, weight):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    stored = torch.tensor(weight, dtype=torch.float64).to(kind).double()
    gap = half_ulp(stored.item(), dtype)
    assert (stored + 0.49 * gap).to(kind).double() == stored
    assert (stored + 1.51 * gap).to(kind).double() > stored


def test_unknown_schedule_is_refused():
    with pytest.raises(LabError, match="polynomial"):
        sum_learning_rates(1e-4, 10, 0.0, "polynomial")
