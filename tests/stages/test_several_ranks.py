"""Two real processes train the pocket model, and end where one ends.

ZeRO-2 and ZeRO-3 need DeepSpeed. DDP and one run of ZeRO-3, the one whose
reference is computed before the weights are divided, are tested on every
commit, the others in the long lane. Step for step the loss and the norm of
the gradient are those of one process.
"""

from __future__ import annotations

import re
import shutil

import pytest
from several_ranks import (
    DPO,
    RANKS,
    ROWS,
    SFT,
    find_deepspeed,
    find_port,
    finish,
    kill_rank,
    launch,
    make_command,
    make_run,
    read_steps,
    start,
)

from helpers.base import load_recipe, read_json

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("pocket_model")]
zero = pytest.mark.skipif(
    not (find_deepspeed() and shutil.which("c++")),
    reason="needs DeepSpeed (make test) and a C++ compiler",
)
LONG = pytest.param("zero3", marks=[zero, pytest.mark.long])
CLOSE = {"rel": 2e-4}


def strategy(file):
    """What makes a pocket run one for this accelerate file."""
    if file == "ddp":
        return []
    # As in tier h100x8: the reentrant checkpointing of TRL under ZeRO-3.
    checkpoints = [f"{x}.gradient_checkpointing=true" for x in ("sft", "dpo")]
    return [f"hardware.strategy={file[:5]}", *checkpoints]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """SFT and DPO in this one process; reference computed before and live."""
    from helpers.stages import dpo, sft

    run = make_run(tmp_path_factory.mktemp("alone") / "run")
    recipe = load_recipe("pocket", SFT)
    sft.run_sft(recipe, run)
    found = {"sft": read_steps(run, "sft")}
    for early in (True, False):
        sets = [*DPO, f"dpo.precompute_ref_log_probs={early}"]
        dpo.run_dpo(load_recipe("pocket", sets), run, force=True)
        found[f"dpo {early}"] = read_steps(run, "dpo")
    return found


def assert_same(ours, theirs):
    """The same number of steps, the same loss and norm in each."""
    assert len(ours) == len(theirs) > 0
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True), 1):
        assert mine == pytest.approx(other, **CLOSE), f"step {number}"


@pytest.mark.parametrize("file", ["ddp", LONG])
def test_sft_survives_the_death_of_a_rank(tmp_path, alone, file):
    """One rank is killed; the launcher ends; the same command goes on."""
    run = make_run(tmp_path / "run")
    command = make_command(file, "sft", run, SFT + strategy(file))
    process = start(command)
    checkpoint = run.file("sft", "checkpoints", "checkpoint-10")
    kill_rank(process, RANKS - 1, checkpoint / "complete")
    code, output = finish(process)
    assert code != 0, output
    assert "sft" not in run.metrics() and checkpoint.is_dir()

    code, output = finish(start(command))
    assert code == 0, output
    assert output.count(f"SFT: {ROWS} rows") == 1, "one rank speaks"
    assert "Going on from" in output
    assert_same(read_steps(run, "sft"), alone["sft"])
    assert not checkpoint.exists() and not run.file(".lock.json").exists()
    check_adapter(run, "sft")
    assert [p["phase"] for p in run.ledger()] == ["sft"]


def check_adapter(run, tag):
    """All LoRA weights are there, whole and trained."""
    from safetensors.torch import load_file

    weights = load_file(run.file(tag, "adapter", "adapter_model.safetensors"))
    count = sum(weight.numel() for weight in weights.values())
    assert count == run.metrics()[tag]["trainable_parameters"]
    trained = [name for name in weights if "lora_B" in name]
    assert trained and all(weights[name].any() for name in trained)


@pytest.mark.parametrize(
    ("file", "early"),
    [
        pytest.param("ddp", True, id="ddp-before"),
        pytest.param("ddp", False, id="ddp-live"),
        pytest.param("zero3", True, id="zero3-before", marks=zero),
        pytest.param(
            "zero3", False, id="zero3-live", marks=[zero, pytest.mark.long]
        ),
    ],
)
def test_dpo_is_that_of_one_process(tmp_path, alone, file, early):
    """Reference log-probabilities computed before training, and live."""
    run = make_run(tmp_path / "run")
    sets = [*DPO, f"dpo.precompute_ref_log_probs={early}", *strategy(file)]
    if file == "zero3" and not early:
        code, output = launch_machines(run, sets)
    else:
        code, output = launch(file, "dpo", run, sets)
    assert code == 0, output
    assert_same(read_steps(run, "dpo"), alone[f"dpo {early}"])
    assert run.metrics()["dpo"]["start_loss"] == pytest.approx(
        0.6931, abs=1e-3
    )
    check_adapter(run, "dpo")


def launch_machines(run, sets):
    """Two launchers that meet at an address, as on two machines."""
    options = ["--main_process_ip", "127.0.0.1"]
    options += ["--main_process_port", str(find_port()), "--machine_rank"]
    file = "zero3_multinode"
    machines = [
        start(make_command(file, "dpo", run, sets, *options, str(rank)))
        for rank in range(RANKS)
    ]
    (code, output), (other, text) = [finish(m) for m in machines]
    return code or other, output + text


@zero
@pytest.mark.long
def test_zero2_trains_as_one_process(tmp_path, alone):
    run = make_run(tmp_path / "run")
    sets = [*SFT, "sft.max_steps=3", *strategy("zero2")]
    code, output = launch("zero2", "sft", run, sets)
    assert code == 0, output
    # The learning rate decays sooner: only before the first update is
    # everything the same.
    assert_same(read_steps(run, "sft")[:1], alone["sft"][:1])


@pytest.mark.parametrize(
    ("file", "stage", "options", "says"),
    [
        ("ddp", "sft", ["--tier", "h100x8"], "is for zero3; the processes"),
        ("ddp", "merge", [], "2 processes were started for the work of one"),
        ("ddp", "sft", ["--set", "sft.epoch=1"], "unknown key 'sft.epoch'"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path, file, stage, options, says):
    run = make_run(tmp_path / "run")
    command = make_command(file, stage, run, []) + options
    if "--tier" in options:
        command[command.index("--run-dir") + 1] = str(tmp_path / "new")
    code, output = finish(start(command))
    assert code != 0
    assert len(re.findall("^Error:", output, re.M)) == 1, output
    assert output.count(says) == 1, output
    assert not run.file("metrics.json").exists()
    assert not (tmp_path / "new").exists()


def test_an_error_in_training_is_said_once(tmp_path):
    """Found with the model loaded, on every rank: rows of another model."""
    run = make_run(tmp_path / "run")
    code, output = launch(
        "ddp", "sft", run, [*SFT, "sft.lora.target_modules=[no_proj]"]
    )
    assert code != 0
    assert len(re.findall("^Error: .*no_proj", output, re.M)) == 1, output
    assert not run.file(".lock.json").exists() and not run.metrics()


def test_a_missing_accelerate_file_is_named(tmp_path):
    run = make_run(tmp_path / "run")
    code, output = launch("ddp9", "sft", run, [])
    assert code != 0 and "ddp9.yaml` does not exist" in output


def test_checkpoints_of_zero_are_for_their_number_of_processes(
    tmp_path, monkeypatch
):
    from helpers.base import (
        LabError,
        ranks,
        refuse_foreign,
        seal_checkpoint,
        write_json,
    )

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    write_json(tmp_path / "inputs.json", ranks.describe_sharding())
    assert read_json(tmp_path / "inputs.json") == {
        "sharding": "zero3 on 8 processes"
    }
    (tmp_path / "checkpoint-10").mkdir()
    seal_checkpoint(tmp_path / "checkpoint-10")
    refuse_foreign(tmp_path, ranks.describe_sharding())
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(LabError, match="changed: sharding"):
        refuse_foreign(tmp_path, ranks.describe_sharding())
