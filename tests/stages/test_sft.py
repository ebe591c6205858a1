"""SFT: what is supervised, how many steps, and how a killed run goes on."""

from __future__ import annotations

import json

import pytest

from helpers.planner import count_training_steps

pytest.importorskip("trl")

import torch
from safetensors.torch import load_file
from training_rows import write_sft_rows

from helpers.base import LabError, RunDir, load_recipe
from helpers.stages import check_supervision, sft
from helpers.stages import trainer as training
from helpers.stages.guards import check_rendered
from helpers.stages.trainer import LengthSampler

FAST = (
    "sft.min_steps_per_epoch=2",
    "sft.epochs=2",
    "sft.per_device_batch=4",
    "sft.effective_batch=4",
)


@pytest.fixture
def recipe(tmp_path, tiny_recipe):
    return load_recipe(tmp_path / "tiny.yaml", FAST)


@pytest.fixture
def rows(run, tokenizer):
    return write_sft_rows(run, tokenizer)


def change(tmp_path, *overrides):
    return load_recipe(tmp_path / "tiny.yaml", (*FAST, *overrides))


def make_trainer(recipe, run, tokenizer, rows):
    from helpers.models import load_model

    model, _ = load_model(recipe)
    return sft.build_trainer(recipe, model, tokenizer, rows, run.file("out"))


def load_adapter(run, *parts):
    return load_file(run.file(*parts, "adapter_model.safetensors"))


# --- what the trainer learns from ----------------------------------------


def test_labels_cover_the_completion_and_its_end_token_only(
    recipe, run, tokenizer, rows
):
    trainer = make_trainer(recipe, run, tokenizer, rows)
    assert len(trainer.train_dataset) == len(rows)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (3, 17)])
    for ids, labels, row in zip(
        batch["input_ids"], batch["labels"], (rows[3], rows[17]), strict=True
    ):
        prompt = training.encode_prompt(tokenizer, row.prompt)
        answer = tokenizer(row.completion, add_special_tokens=False)
        answer = answer["input_ids"] + [tokenizer.eos_token_id]
        used = len(prompt) + len(answer)
        assert ids[:used].tolist() == prompt + answer
        assert ids.tolist().count(tokenizer.bos_token_id) == 1
        assert labels[: len(prompt)].eq(-100).all()
        assert labels[len(prompt) : used].tolist() == answer
        assert labels[used:].eq(-100).all()


def test_a_tokenizer_that_adds_bos_itself_does_not_double_it(
    recipe, run, rows
):
    from tiny_models import make_tokenizer
    from tokenizers.processors import TemplateProcessing

    adding = make_tokenizer()
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", adding.bos_token_id)]
    )
    assert adding("x")["input_ids"][0] == adding.bos_token_id
    trainer = make_trainer(recipe, run, adding, rows)
    sft.check_trainer(trainer, adding, rows)
    for row in trainer.train_dataset:
        assert row["input_ids"].count(adding.bos_token_id) == 1


@pytest.mark.parametrize("legacy", [False, True])
def test_rows_of_a_zephyr_model_are_the_tokens_that_sampling_feeds(
    recipe, run, legacy
):
    """Tier t4: the chat format leaves the first token to the tokenizer."""
    from tiny_models import make_llama_tokenizer

    tokenizer = make_llama_tokenizer(legacy)
    rows = write_sft_rows(run, tokenizer)
    rows[0] = rows[0].model_copy(update={"completion": " The one."})
    trainer = make_trainer(recipe, run, tokenizer, rows)
    sft.check_trainer(trainer, tokenizer, rows)
    for row in trainer.train_dataset:
        assert row["input_ids"].count(tokenizer.bos_token_id) == 1
    prompt = training.encode_prompt(tokenizer, rows[0].prompt)
    words = tokenizer.convert_ids_to_tokens(
        trainer.train_dataset[0]["input_ids"]
    )
    assert words[len(prompt)] == "\u2581Th"  # with its space, as sampled


@pytest.fixture
def merging():
    """A tokenizer with two line breaks as one token, after a prompt that
    ends on a line break (as R1's ``<think>`` line, and SmolLM2's pieces)."""
    from tiny_models import CHAT_TEMPLATE, make_tokenizer
    from tokenizers import models, pre_tokenizers

    tokenizer = make_tokenizer()
    words = tokenizer.get_vocab()
    backend = tokenizer.backend_tokenizer
    backend.model = models.BPE(
        vocab={**words, "ĊĊ": len(words)}, merges=[("Ċ", "Ċ")]
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "<|assistant|>{% endif %}", "<|assistant|>\n{% endif %}"
    )
    return tokenizer


def test_an_answer_that_begins_with_a_line_break_leaves_the_prompt_whole(
    recipe, run, merging
):
    rows = write_sft_rows(run, merging)
    rows[0] = rows[0].model_copy(update={"completion": "\nThe one."})
    prompt = training.encode_prompt(merging, rows[0].prompt)
    both = training.encode_prompt(merging, rows[0].prompt + "\nThe one.")
    assert both[: len(prompt)] != prompt  # they merge
    trainer = make_trainer(recipe, run, merging, rows)
    sft.check_trainer(trainer, merging, rows)
    row = trainer.train_dataset[0]
    assert row["input_ids"][: len(prompt)] == prompt
    told = [x for x in row["labels"] if x != -100]
    assert merging.decode(told) == "\nThe one.<|end|>"


def test_packed_rows_keep_every_document_whole(
    tmp_path, recipe, run, tokenizer, rows
):
    recipe = change(tmp_path, "sft.packing=true")
    trainer = make_trainer(recipe, run, tokenizer, rows)
    assert len(trainer.train_dataset) < len(rows)
    documents = sft.split_documents(trainer.train_dataset)
    assert len(documents) == len(rows)
    sft.check_trainer(trainer, tokenizer, rows)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda i, y: (i, [-100] * len(y)), "no token carries a loss"),
        (lambda i, y: (i, i), "prompt tokens differ"),
        (lambda i, y: ([1, *i], [-100, *y]), "prompt tokens differ"),
        (lambda i, y: (i[:-1], y[:-1]), "end token"),
        (lambda i, y: (i, [*y[:-1], -100]), "no loss"),
        (lambda i, y: ([*i[:-1], 1, 2], [*y[:-1], 1, 2]), "BOS"),
    ],
)
def test_spoiled_training_tokens_are_refused(tokenizer, spoil, fault):
    ids, labels = [1, 40, 50, 60, 2], [-100, -100, 50, 60, 2]
    check_supervision([(ids, labels)], [[1, 40]], tokenizer)
    with pytest.raises(LabError, match=fault):
        check_supervision([spoil(ids, labels)], [[1, 40]], tokenizer)


def test_rows_of_another_template_are_refused(recipe, run, tokenizer, rows):
    with pytest.raises(LabError, match="Row 1 was not written"):
        check_rendered(tokenizer, [rows[0].prompt], "boxed")
    check_rendered(tokenizer, [rows[0].prompt], "plain")


def test_a_date_in_the_chat_template_does_not_make_rows_foreign(rows):
    from tiny_models import make_tokenizer

    dated = make_tokenizer()
    dated.chat_template = dated.chat_template.replace(
        "{{ bos_token }}", "{{ bos_token }}Today: 02 Jan 2026. "
    )
    prompt = rows[0].prompt.replace("<|bos|>", "<|bos|>Today: 01 Jan 2026. ")
    check_rendered(dated, [prompt], "plain")
    with pytest.raises(LabError, match="Row 1"):
        check_rendered(dated, [rows[0].prompt], "plain")


def test_unknown_target_module_is_refused(tmp_path, run, tokenizer, rows):
    recipe = change(tmp_path, "sft.lora.target_modules=[q_proj, v_porj]")
    with pytest.raises(LabError, match="Did you mean 'v_proj'"):
        make_trainer(recipe, run, tokenizer, rows)


def test_packed_loss_equals_unpacked_loss(tmp_path, recipe, run, tokenizer):
    rows = write_sft_rows(run, tokenizer, n=3)
    packed = change(tmp_path, "sft.packing=true", "sft.lora.dropout=0")
    plain = change(tmp_path, "sft.lora.dropout=0")
    losses = []
    for settings in (packed, plain):
        trainer = make_trainer(settings, run, tokenizer, rows)
        data = [dict(row) for row in trainer.train_dataset]
        inputs = trainer._prepare_inputs(trainer.data_collator(data))
        with torch.no_grad():
            losses.append(trainer.compute_loss(trainer.model, inputs).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


# --- batches --------------------------------------------------------------


def test_length_sampler_hands_out_every_row_once_and_saves_padding():
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 200, (333,), generator=draw).tolist()
    sampler = LengthSampler(8, lengths, seed=7)
    order = list(sampler)
    assert sorted(order) == list(range(333))

    def padded(indices):
        batches = [indices[i : i + 8] for i in range(0, 333, 8)]
        return sum(len(b) * max(lengths[i] for i in b) for b in batches)

    mixed = torch.randperm(333, generator=draw).tolist()
    waste = [padded(x) / sum(lengths) - 1 for x in (order, mixed)]
    assert waste[0] < 0.5 * waste[1]


def test_length_sampler_depends_on_seed_and_epoch_only():
    lengths = list(range(10, 110))
    orders = []
    for epoch in (0, 1, 1):
        torch.manual_seed(epoch * 31 + len(orders))
        sampler = LengthSampler(4, lengths, seed=7)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] != orders[1] == orders[2]


# --- the stage ------------------------------------------------------------


def test_stage_trains_announces_and_is_loaded_the_second_time(
    recipe, run, rows, capsys
):
    metrics = sft.run_sft(recipe, run)
    assert metrics["steps"] == 24 and metrics["steps_per_epoch"] == 12
    assert metrics["floor_steps"] == 22
    assert metrics["last_loss"] < metrics["first_loss"]
    assert "12 steps an epoch, 24 in all" in capsys.readouterr().out
    log = run.file("sft", "log.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in log]
    assert [x["step"] for x in steps if "loss" in x] == list(range(1, 25))
    assert not run.file("sft", "checkpoints").exists()

    before = run.file("sft", "adapter", "adapter_model.safetensors").stat()
    assert sft.run_sft(recipe, run) == metrics
    after = run.file("sft", "adapter", "adapter_model.safetensors").stat()
    assert before.st_mtime_ns == after.st_mtime_ns


def test_a_killed_run_goes_on_and_ends_where_an_unbroken_one_does(
    tmp_path, recipe, run, rows, tokenizer, monkeypatch, capsys
):
    calm = RunDir.open(tmp_path / "calm", recipe)
    write_sft_rows(calm, tokenizer)
    expected = sft.run_sft(recipe, calm)

    with monkeypatch.context() as patch:
        kill_at(patch, step=17)
        with pytest.raises(KeyboardInterrupt):
            sft.run_sft(recipe, run)
    assert "sft" not in run.metrics()
    assert not run.file("sft", "adapter").exists()
    # A checkpoint that was being written when the run died does not count.
    torn = run.file("sft", "checkpoints", "checkpoint-17")
    torn.mkdir()

    metrics = sft.run_sft(recipe, run)
    assert "checkpoint-10" in capsys.readouterr().out
    assert metrics["last_loss"] == pytest.approx(expected["last_loss"])
    ours = load_adapter(run, "sft", "adapter")
    theirs = load_adapter(calm, "sft", "adapter")
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=1e-4)


def kill_at(patch, step):
    plain = training.ProgressBar.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        plain(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise KeyboardInterrupt

    patch.setattr(training.ProgressBar, "on_step_end", on_step_end)


def test_checkpoints_of_other_inputs_are_not_used(tmp_path):
    from helpers.base import prepare_checkpoints, seal_checkpoint

    folder = tmp_path / "sft" / "checkpoints"
    assert prepare_checkpoints(folder, {"rows": "a"}) is None
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "trainer_state.json").write_text("{}")
    assert prepare_checkpoints(folder, {"rows": "a"}) is None
    seal_checkpoint(folder / "checkpoint-10")
    found = prepare_checkpoints(folder, {"rows": "a"})
    assert found.endswith("checkpoint-10")
    with pytest.raises(LabError, match=r"checkpoint-10 .*changed: rows"):
        prepare_checkpoints(folder, {"rows": "b"})
    assert prepare_checkpoints(folder, {"rows": "a"}) == found
    assert prepare_checkpoints(folder, {"rows": "b"}, force=True) is None
    assert not (folder / "checkpoint-10").exists()
    old = tmp_path / "old" / "1-sft-begun" / "checkpoints" / "checkpoint-10"
    assert (old / "trainer_state.json").is_file()


def test_a_smoke_run_finds_the_smoke_harvest(run):
    from helpers.base import find_harvest

    trial = run.file("smoke", "distill", "sft.jsonl")
    with pytest.raises(LabError, match="mathslm distill"):
        find_harvest(run, "sft.jsonl", smoke=True)
    trial.parent.mkdir(parents=True)
    trial.touch()
    assert find_harvest(run, "sft.jsonl", smoke=True) == trial
    with pytest.raises(LabError, match="mathslm distill"):
        find_harvest(run, "sft.jsonl")


def test_smoke_run_stays_in_its_own_folder(recipe, run, rows):
    metrics = sft.run_sft(recipe, run, smoke_steps=2)
    assert metrics["steps"] == 2
    assert run.file("smoke", "sft", "adapter").is_dir()
    assert not run.file("sft").exists()
    assert run.metrics() == {}


@pytest.mark.parametrize("per_device", [8, 2])
def test_trainer_accumulates_to_the_effective_batch(
    tmp_path, run, tokenizer, rows, per_device
):
    recipe = change(
        tmp_path, "sft.effective_batch=8", f"sft.per_device_batch={per_device}"
    )
    trainer = make_trainer(recipe, run, tokenizer, rows)
    assert trainer.get_total_train_batch_size(trainer.args) == 8
    loader = trainer.get_train_dataloader()
    values = trainer.set_initial_training_values(trainer.args, loader)
    count = count_training_steps(recipe.sft, len(rows))
    assert (count.per_epoch, count.total) == (values[1], values[6])


def test_too_few_steps_are_refused_before_a_model_is_loaded(
    tmp_path, recipe, run, rows, monkeypatch
):
    monkeypatch.setattr(sft, "load_model", None)
    recipe = change(tmp_path, "sft.min_steps_per_epoch=30")
    with pytest.raises(LabError, match="packing trap"):
        sft.run_sft(recipe, run)
    assert not run.file("sft").exists()


def test_packing_trap_counts_packed_rows(tmp_path, recipe, run, rows):
    recipe = change(tmp_path, "sft.packing=true", "sft.min_steps_per_epoch=12")
    with pytest.raises(LabError, match="packing joined 45 examples"):
        sft.run_sft(recipe, run)


def test_missing_harvest_names_the_command(recipe, run):
    with pytest.raises(LabError, match="mathslm distill"):
        sft.run_sft(recipe, run)


def test_rows_over_max_length_are_left_out_whole(
    tmp_path, recipe, run, tokenizer, rows, capsys
):
    sizes = [
        len(tokenizer(r.prompt + r.completion)["input_ids"]) + 1 for r in rows
    ]
    cap = sorted(sizes)[30]
    kept = sft.drop_too_long(tokenizer, rows, cap)
    assert len(kept) == sum(size <= cap for size in sizes) < len(rows)
    assert f"{len(rows) - len(kept)} of 45 rows" in capsys.readouterr().out
    with pytest.raises(LabError, match="All 45 rows"):
        sft.drop_too_long(tokenizer, rows, 5)


def test_initial_loss_is_compared_with_sampling(recipe, run, rows, capsys):
    loss = sft.run_sft(recipe, run, smoke_steps=1)["first_loss"]
    capsys.readouterr()
    for recorded, warns in ((-loss, False), (-loss / 4, True)):
        with run.stage("distill", {}) as record:
            record["metrics"] = {"sft_mean_logprob": recorded}
        metrics = sft.run_sft(recipe, run, smoke_steps=1)
        assert (metrics["initial_loss_warning"] is not None) == warns
        assert ("do not see the same" in capsys.readouterr().out) == warns


def test_a_check_looks_at_all_but_the_model(
    tmp_path, recipe, run, rows, tokenizer, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(sft, "load_model", None)
        assert sft.run_sft(recipe, run, check=True) == {}
        assert not run.file("sft").exists() and not run.ledger()
        short = change(tmp_path, "sft.max_length=5")
        with pytest.raises(LabError, match="All 45 rows"):
            sft.run_sft(short, run, check=True)
        other = change(tmp_path, "data.prompt_template=boxed")
        with pytest.raises(LabError, match="Row 1 was not written"):
            sft.run_sft(other, run, check=True)
    metrics = sft.run_sft(recipe, run)
    monkeypatch.setattr(sft, "load_model", None)
    assert sft.run_sft(recipe, run, check=True) == metrics
    warmer = change(tmp_path, "sft.learning_rate=3e-5")
    with pytest.raises(LabError, match="changed: recipe"):
        sft.run_sft(warmer, run, check=True)
    assert sft.run_sft(warmer, run, check=True, force=True) == {}
    assert run.file("sft", "adapter").is_dir()  # nothing is set aside


def test_rows_that_are_left_out_count_for_the_steps(
    tmp_path, run, rows, tokenizer, monkeypatch
):
    """Refused before a model is loaded."""
    monkeypatch.setattr(sft, "load_model", None)
    sizes = sorted(
        len(tokenizer(r.prompt + r.completion)["input_ids"]) for r in rows
    )
    recipe = change(
        tmp_path, f"sft.max_length={sizes[9]}", "sft.min_steps_per_epoch=5"
    )
    with pytest.raises(LabError, match="optimizer steps an epoch"):
        sft.run_sft(recipe, run)
