"""Several processes: who may start, and which rows each of them gets."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.base import (
    REPO_ROOT,
    LabError,
    RunDir,
    is_first_rank,
    load_recipe,
    ranks,
)
from helpers.base.recipe import RECIPE_DIR
from helpers.models import pick_device
from helpers.planner import plan


@pytest.fixture
def start_as(monkeypatch):
    """Pretend to be one of several processes of accelerate."""

    def pretend(strategy="ddp", world=8, rank=0, local=None):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local or world))
        if strategy.startswith("zero"):
            monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
            monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", strategy[4:])
        if strategy == "fsdp":
            monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")

    return pretend


# --- who may start --------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_the_launcher_says_its_strategy(start_as, strategy):
    start_as(strategy)
    assert ranks.name_strategy() == strategy


def test_another_strategy_than_the_recipes_is_refused(start_as):
    recipe = load_recipe("h100x8")
    start_as("zero3")
    ranks.check_strategy(recipe, "dpo")
    start_as("zero2")
    with pytest.raises(LabError, match="for zero3; .* for zero2") as caught:
        ranks.check_strategy(recipe, "dpo")
    assert "accelerate/zero3.yaml" in caught.value.fix
    assert "-m helpers dpo --tier h100x8" in caught.value.fix
    assert "--set hardware.strategy=zero2" in caught.value.fix


def test_a_strategy_that_no_recipe_has_is_not_advised(start_as):
    start_as("fsdp")
    with pytest.raises(LabError, match="for fsdp") as caught:
        ranks.check_strategy(load_recipe("h100x8"), "sft")
    assert "--set" not in caught.value.fix


def test_more_processes_than_cards_are_refused(start_as):
    start_as("zero3", world=16, local=8)
    ranks.check_cards(8)
    with pytest.raises(LabError, match="8 processes .* 4 CUDA") as caught:
        ranks.check_cards(4)
    assert "--num_processes 4" in caught.value.fix
    assert "does not divide" in caught.value.fix


def test_one_process_is_always_allowed():
    ranks.check_strategy(load_recipe("h100x8"), "sft")
    ranks.require_one_process()
    assert ranks.may_report() and ranks.describe_sharding() == {}
    assert ranks.run_first(lambda: 5) == 5


def test_one_process_of_many_cards_says_how_to_start_more(capsys):
    ranks.connect(load_recipe("h100x8"), "sft", pick_device)
    said = capsys.readouterr().out
    assert "for 8: accelerate launch" in said and "--num_processes 8" in said
    ranks.connect(load_recipe("pocket"), "sft", pick_device)
    assert capsys.readouterr().out == ""


def test_one_process_trains_on_one_card(run, tiny_recipe, tokenizer):
    """Not on all that it sees: that would multiply the effective batch."""
    from training_rows import write_sft_rows
    from trl import SFTConfig

    from helpers.models import load_model
    from helpers.stages.sft import make_dataset
    from helpers.stages.trainer import LengthGroupedSFTTrainer

    rows = write_sft_rows(run, tokenizer, n=4)
    folder = run.file("out")
    arguments = SFTConfig(
        output_dir=str(folder), use_cpu=True, report_to="none"
    )
    arguments._n_gpu = 4  # as where torch finds four
    trainer = LengthGroupedSFTTrainer(
        model=load_model(tiny_recipe)[0],
        args=arguments,
        train_dataset=make_dataset(tokenizer, rows, folder),
        processing_class=tokenizer,
    )
    assert trainer.args.n_gpu == 1


def test_only_training_is_spread(start_as):
    start_as(world=2)
    with pytest.raises(LabError, match="2 processes were started"):
        ranks.require_one_process()


def test_the_effective_batch_stays_on_any_number_of_processes(start_as):
    from helpers.planner import count_training_steps

    recipe = load_recipe("h100x8")
    for world, accumulation in ((1, 32), (2, 16), (8, 4), (16, 2)):
        start_as(world=world)
        count = count_training_steps(recipe.sft, 7326)
        assert count.accumulation == accumulation
        assert count.effective_batch == recipe.sft.effective_batch
    start_as(world=3)
    with pytest.raises(LabError, match="is not a multiple"):
        count_training_steps(recipe.sft, 7326)


# --- who speaks and writes ------------------------------------------------


def test_one_of_several_processes_reports():
    """The first child that asks is told yes, the later ones no."""
    code = (
        "import subprocess, sys\n"
        "ask = 'from helpers.base import ranks; print(ranks.may_report())'\n"
        "for rank in (1, 0, 2):\n"
        "    import os\n"
        "    env = os.environ | {'WORLD_SIZE': '3', 'RANK': str(rank)}\n"
        "    subprocess.run([sys.executable, '-c', ask], env=env)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True", "False", "False"], done.stderr


def test_the_second_rank_is_mute():
    code = (
        "from helpers.base import ranks; ranks.mute_others(); print('heard')"
    )
    for rank, heard in (("0", "heard\n"), ("1", "")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPO_ROOT,
            env={"RANK": rank, "WORLD_SIZE": "2", "PATH": ""},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, heard), done.stderr


def test_the_second_rank_records_nothing(tmp_path, start_as):
    run = RunDir.open(tmp_path / "run", load_recipe("pocket"))
    before = {p.name for p in run.path.iterdir()}
    start_as(world=2, rank=1)
    assert not is_first_rank()
    with run.stage("sft", {"rows": "a"}) as record:
        record.update(outputs=["nowhere"], metrics={"loss": 1.0})
    assert {p.name for p in run.path.iterdir()} == before


# --- the files ------------------------------------------------------------


def test_every_strategy_has_its_file():
    names = {p.stem for p in ranks.FILES.glob("*.yaml")}
    assert names == {"ddp", "zero2", "zero3", "zero3_multinode"}
    for tier in ("h100x8", "a40x4", "pocket"):
        text = ranks.describe_launch(load_recipe(tier), "sft")
        file = text.split("--config_file ")[1].split()[0]
        assert (REPO_ROOT / file).is_file()


def test_accelerate_reads_the_files():
    from accelerate.commands.config.config_args import ClusterConfig

    for path in ranks.FILES.glob("*.yaml"):
        found = ClusterConfig.from_yaml_file(yaml_file=str(path))
        # The recipe decides: TrainingArguments sets what it asks for.
        assert found.mixed_precision == "no" and not found.use_cpu
        is_zero = path.stem.startswith("zero")
        kind = "DEEPSPEED" if is_zero else "MULTI_GPU"
        assert found.distributed_type == kind
        if is_zero:
            stage = found.deepspeed_config["zero_stage"]
            assert path.stem.startswith(f"zero{stage}")


def test_several_machines_take_the_same_file_with_an_address():
    one, several = [
        yaml.safe_load((ranks.FILES / f"{name}.yaml").read_text("utf-8"))
        for name in ("zero3", "zero3_multinode")
    ]
    machines = several.pop("num_machines")
    assert several.pop("num_processes") == machines * one.pop("num_processes")
    assert several.pop("main_process_port") and one.pop("num_machines") == 1
    # Without it accelerate would want pdsh, ssh and a hostfile.
    launcher = several["deepspeed_config"].pop("deepspeed_multinode_launcher")
    assert launcher == "standard"
    assert several == one


def test_the_planner_says_that_ddp_is_faster_and_by_how_much():
    found = plan(load_recipe("h100x8"))
    assert found.workload.strategy == "zero3"
    for job in ("SFT", "DPO"):
        (text,) = [
            w
            for w in found.warnings
            if w.startswith(f"{job}: DDP is faster for a LoRA")
        ]
        assert "% more time a step" in text and "full fine-tune" in text
    sharded = next(p for p in found.phases if p.name == "SFT")
    whole = plan(load_recipe("h100x8", ["hardware.strategy=ddp"]))
    quicker = next(p for p in whole.phases if p.name == "SFT")
    assert quicker.hours < sharded.hours
    assert not [w for w in whole.warnings if "DDP is faster" in w]


# --- which rows -----------------------------------------------------------


@pytest.mark.parametrize("rows", [96, 101])
def test_a_step_has_the_same_rows_on_any_number_of_processes(rows):
    """As accelerate shards batches, on 1, 2 and 4 processes."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    from helpers.stages.trainer import LengthSampler

    draw = random.Random(0)
    lengths = [draw.randint(5, 300) for _ in range(rows)]
    size, effective = 2, 16
    steps = {}
    for world in (1, 2, 4):
        shards = []
        for rank in range(world):
            sampler = LengthSampler(size, lengths, 7, effective // size)
            sampler.set_epoch(1)
            batches = BatchSampler(sampler, size, drop_last=False)
            if world > 1:
                batches = BatchSamplerShard(batches, world, rank)
            shards.append(list(batches))
        turns = list(zip(*shards, strict=True))
        taken = effective // size // world
        steps[world] = [
            sorted(r for turn in turns[i : i + taken] for b in turn for r in b)
            for i in range(0, len(turns), taken)
        ]
    full = rows // effective
    for world in (2, 4):
        assert steps[world][:full] == steps[1][:full]
        assert len(steps[world]) == len(steps[1])
        # The last one is filled up with rows of the first.
        assert set(steps[world][-1]) >= set(steps[1][-1])
    assert sorted(r for step in steps[1] for r in step) == list(range(rows))


def test_batches_of_one_moment_are_of_similar_length():
    """Two ranks wait for each other: their batches should weigh the same."""
    from helpers.stages.trainer import LengthSampler

    draw = random.Random(0)
    lengths = [draw.randint(5, 300) for _ in range(512)]

    def measure_gap(step):
        order = list(LengthSampler(2, lengths, 7, step))
        sizes = [
            max(lengths[i] for i in order[n : n + 2])
            for n in range(0, len(order), 2)
        ]
        pairs = zip(sizes[::2], sizes[1::2], strict=True)
        return sum(abs(a - b) for a, b in pairs)

    assert measure_gap(16) < measure_gap(1) / 4


# --- what the pages say ---------------------------------------------------


def list_launches():
    """Every ``accelerate launch`` line of the README and of the files."""
    pages = [REPO_ROOT / "README.md", *ranks.FILES.glob("*.yaml")]
    for page in pages:
        for line in page.read_text("utf-8").splitlines():
            line = line.strip("# ")
            if line.startswith("accelerate launch"):
                yield line


def test_documented_launches_are_accepted():
    """By accelerate's parser and by ours; nothing is started."""
    from accelerate.commands.launch import launch_command_parser
    from typer.main import get_command

    from helpers.cli import app

    commands = get_command(app).commands
    lines = list(list_launches())
    assert len(lines) >= 8
    for line in lines:
        found = launch_command_parser().parse_args(shlex.split(line)[2:])
        assert (REPO_ROOT / found.config_file).is_file(), line
        name, *words = found.training_script_args
        assert found.module and found.training_script == "helpers"
        context = commands[name].make_context(name, words)
        recipe = load_recipe(
            context.params["tier"], context.params["sets"] or ()
        )
        file = Path(found.config_file).stem.removesuffix("_multinode")
        assert recipe.hardware.strategy == file, line


def read_task():
    """The SkyPilot task as YAML."""
    path = RECIPE_DIR / "skypilot" / "h100x8.yaml"
    return path, yaml.safe_load(path.read_text("utf-8"))


def test_skypilots_own_loader_takes_the_task():
    """Where it is installed, here or in the Python that MATHSLM_SKY names."""
    path, task = read_task()
    python = os.environ.get("MATHSLM_SKY")
    if importlib.util.find_spec("sky"):
        python = sys.executable
    if not python:
        pytest.skip("SkyPilot is not installed (pip install skypilot)")
    code = (
        "import sky, sys, json; task = sky.Task.from_yaml(sys.argv[1]); "
        "(found,) = task.resources; "
        "print(json.dumps([found.accelerators, task.num_nodes, task.envs]))"
    )
    done = subprocess.run(
        [python, "-c", code, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(task["envs"]["TIER"])
    cards = {recipe.hardware.card: recipe.hardware.cards}
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == [cards, task["num_nodes"], task["envs"]]


def test_the_task_rents_what_the_recipe_asks_for():
    from typer.main import get_command

    from helpers.cli import app

    _, task = read_task()
    recipe = load_recipe(task["envs"]["TIER"])
    card, _, count = task["resources"]["accelerators"].partition(":")
    assert (card, int(count)) == (recipe.hardware.card, recipe.hardware.cards)
    for script in (task["setup"], task["run"]):
        checked = subprocess.run(
            ["bash", "-n"], input=script, text=True, capture_output=True
        )
        assert checked.returncode == 0, checked.stderr
    assert "accelerate/zero3.yaml" in task["run"]
    commands = get_command(app).commands
    run = f"--tier {recipe.name} --run-dir /runs/{recipe.name}"
    stages = []
    for line in task["run"].splitlines():
        words = shlex.split(line.replace("$RUN", run))
        if words[:1] == ["mathslm"]:
            stages.append(words[1])
            commands[words[1]].make_context(words[1], words[2:])
        if words[:1] == ["$LAUNCH"]:
            assert words[1:3] == ["-m", "helpers"]
            stages.append(words[3])
            commands[stages[-1]].make_context(stages[-1], words[4:])
    assert stages == ("distill sft merge dpo merge evaluate report".split())
