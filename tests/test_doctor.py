"""The doctor: machines that are described, and what is known before a run."""

import dataclasses
import json
import shutil

import pytest
from fake_cards import put_cards
from training_rows import write_pairs, write_sft_rows
from typer.testing import CliRunner

from helpers import cli, doctor, stages
from helpers.base import (
    GUARDS,
    LabError,
    RunDir,
    list_recipes,
    load_recipe,
    stage_file,
)
from helpers.doctor import (
    Line,
    Machine,
    judge_set,
    read_constraints,
    try_guard,
)
from helpers.models import fix_model
from helpers.planner import Gpu
from helpers.stages import distill, dpo, evaluate, sft, solutions

T4 = Gpu("0", 14.7, "Tesla T4", (7, 5))
A100 = Gpu("1", 39.4, "A100", (8, 0))
H100 = Gpu("0", 79.6, "NVIDIA H100", (9, 0))
LAPTOP = Machine(
    python=(3, 12, 1),
    cores=2,
    memory_gib=16.0,
    available_gib=12.0,
    disk_gib=200.0,
    versions=read_constraints(),
)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No hub, no token, no cache, no cards but those a test puts there."""
    monkeypatch.setattr(doctor, "has_model", lambda model_id: True)
    monkeypatch.setattr(doctor, "find_token", lambda: False)
    monkeypatch.setattr(doctor, "find_cached", lambda recipe: None)
    monkeypatch.setattr(doctor, "is_offline", lambda: False)
    monkeypatch.delenv("MATHSLM_MODEL_DIR", raising=False)
    monkeypatch.delenv("MATHSLM_DATA_DIR", raising=False)
    monkeypatch.delenv("MATHSLM_VLLM", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ask(monkeypatch):
    """Call ``mathslm doctor``; gives (exit code, {name: line})."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        done = CliRunner().invoke(cli.app, ["doctor", *arguments])
        assert "Traceback" not in done.output
        lines = {}
        for text in done.output.splitlines():
            if text.startswith("["):
                status, _, rest = text[1:].partition("]")
                name, _, said = rest.strip().partition(": ")
                lines.setdefault(name, (status, said))
        return done.exit_code, lines

    return call


def check(recipe, folder="run", machine=LAPTOP, **options):
    """``{name: Line}`` of one recipe on a machine that is described."""
    report = doctor.check_tier(recipe, folder, machine=machine, **options)
    return report, {line.name: line for line in report.lines}


def own(**fields):
    """The laptop with other fields."""
    return dataclasses.replace(LAPTOP, **fields)


# --- the machine ---------------------------------------------------------


def find_line(machine, name):
    """The line of this name."""
    report = doctor.judge_machine(machine)
    return next(line for line in report.lines if line.name == name)


def test_a_laptop_is_enough():
    report = doctor.judge_machine(LAPTOP)
    assert report.ok, str(report)
    for line in str(report).splitlines():
        assert line.startswith(("[OK]", "[WARN]", "[FAIL]"))
    assert find_line(LAPTOP, "tier pocket").status == "OK"


@pytest.mark.parametrize(
    ("machine", "name", "status"),
    [
        (own(python=(3, 10, 9)), "python", "FAIL"),
        (own(memory_gib=1.0), "tier pocket", "FAIL"),
        (own(available_gib=0.5), "memory", "WARN"),
        (own(disk_gib=0.2), "disk", "WARN"),
        (own(versions={"torch": None}), "torch", "FAIL"),
        (own(versions={"torch": "2.0.0"}), "torch", "WARN"),
        (own(versions={"torch": "2.13.0+cpu"}), "torch", "OK"),
    ],
)
def test_each_lack_has_its_line(machine, name, status):
    assert find_line(machine, name).status == status
    assert doctor.judge_machine(machine).ok == (status != "FAIL")


def test_bf16_is_yes_or_no_with_the_reason():
    assert not T4.bf16 and "bf16 no (older than Ampere" in str(T4)
    assert A100.bf16 and "bf16 yes" in str(A100)
    shown = find_line(own(gpus=(T4, A100)), "gpu 1").text
    assert "A100" in shown and "SM 8.0" in shown


def test_gpu_tiers_count_cards_and_number_formats():
    needs_two = load_recipe(
        "pocket",
        [
            "hardware.device=cuda",
            "hardware.cards=2",
            "model.dtype=bfloat16",
        ],
    )
    assert doctor.find_obstacles(needs_two, own(gpus=(A100, A100))) == []
    (few,) = doctor.find_obstacles(needs_two, own(gpus=(A100,)))
    assert "needs 2 CUDA GPU(s), found 1" in few
    (old,) = doctor.find_obstacles(needs_two, own(gpus=(A100, T4)))
    assert "Tesla T4 has no bf16" in old


def test_device_auto_is_the_card_that_torch_can_use():
    sets = ["model.dtype=bfloat16", "hardware.device=auto"]
    recipe = load_recipe("pocket", sets)
    (old,) = doctor.find_obstacles(recipe, own(gpus=(T4,)))
    assert "Tesla T4 has no bf16" in old
    assert doctor.find_obstacles(recipe, own(gpus=(A100,))) == []
    unused = own(gpus=(T4,), torch_cuda=False)
    assert doctor.find_obstacles(recipe, unused) == []
    assert doctor.find_obstacles(recipe, LAPTOP) == []


def test_a_missing_shipped_model_stops_the_default_tier(monkeypatch):
    monkeypatch.setattr(doctor, "has_model", lambda model_id: False)
    line = find_line(LAPTOP, "tier pocket")
    assert line.status == "FAIL" and "is missing" in line.text


def test_this_machine_agrees_with_psutil_and_torch(tmp_path):
    import psutil
    import torch

    found = doctor.inspect_machine(tmp_path)
    assert 1 <= found.cores <= psutil.cpu_count()
    total = psutil.virtual_memory().total / doctor.GIB
    assert 0 < found.available_gib <= found.memory_gib <= total
    assert len(found.gpus) == torch.cuda.device_count()
    assert found.versions["torch"] == torch.__version__


def test_doctor_works_without_torch(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.inspect_accelerators() == ((), False)


def test_constraints_are_read():
    tested = doctor.read_constraints()
    assert tested["torch"] == "2.13.0"
    assert set(doctor.REQUIRED) <= set(tested)


# --- all tiers -----------------------------------------------------------


@pytest.mark.parametrize("tier", list_recipes())
def test_every_tier_gets_its_lines_without_a_network(tier, tmp_path):
    report, lines = check(load_recipe(tier), tmp_path / "run")
    assert {"cards", "model", "disk", "output", "results"} <= set(lines)
    for line in report.lines:
        text = str(line)
        assert text.startswith(("[OK]", "[WARN]", "[FAIL]"))
        if line.status == "FAIL":
            assert "Do this:" in text or "tokens" in text, text
    assert not (tmp_path / "run").exists(), "the doctor made a folder"


def test_tier_pocket_is_fine_here(ask, pocket_model):
    code, lines = ask("--tier", "pocket")
    assert code == 0
    assert lines["tokenizer"][0] == lines["model"][0] == "OK"
    assert lines["results"] == ("OK", "none there yet")


def test_the_report_says_what_only_the_stages_can_check(pocket_model):
    done = CliRunner().invoke(cli.app, ["doctor", "--tier", "pocket"])
    later = {t for titles in doctor.list_later().values() for t in titles}
    assert later == {g.title for g in GUARDS if not g.doctor}
    assert all(title in done.output for title in later)


# --- cards ---------------------------------------------------------------


def test_h100x8_on_four_cards(ask, tmp_path, monkeypatch):
    put_cards(tmp_path, monkeypatch, 4)
    code, lines = ask("--tier", "h100x8")
    assert code == 1
    assert lines["cards"][0] == "FAIL"
    assert "need 8, and there are 4" in lines["cards"][1]
    assert "hardware.cards=4" in lines["cards"][1]
    assert lines["gpu 3"][0] == "OK"


def test_a_torch_without_cuda_is_named(ask, tmp_path, monkeypatch):
    put_cards(tmp_path, monkeypatch, 1, "Tesla T4", gib=15, capability="7.5")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _, lines = ask("--tier", "t4")
    assert lines["gpu 0"][1].startswith("Tesla T4, SM 7.5")
    _, lines = check(load_recipe("t4"), machine=own(
        gpus=(T4,), torch_cuda=False))  # fmt: skip
    assert lines["torch"].status == "FAIL"
    assert "CUDA build" in lines["torch"].text


def test_bf16_on_a_t4(ask, tmp_path, monkeypatch):
    put_cards(tmp_path, monkeypatch, 1, "Tesla T4", gib=15, capability="7.5")
    code, lines = ask("--tier", "t4", "--set", "model.dtype=bfloat16")
    assert code == 1 and lines["precision"][0] == "FAIL"
    assert "Tesla T4 has no bfloat16" in lines["precision"][1]
    assert "model.dtype=float16" in lines["precision"][1]
    assert ask("--tier", "t4")[1]["precision"][0] == "OK"


def test_device_auto_is_judged_on_the_card():
    recipe = load_recipe("smol", ["hardware.device=auto"])
    _, lines = check(recipe, machine=own(gpus=(T4,), memory_gib=2.0))
    assert lines["precision"].status == "FAIL"
    assert "of 14.7 GiB" in lines["memory of SFT"].text
    _, lines = check(recipe, machine=own(gpus=(H100,)))
    assert lines["precision"].status == "OK"
    _, lines = check(recipe, machine=own(gpus=(T4,), torch_cuda=False))
    assert "precision" not in lines
    assert "of 15.4 GiB" in lines["memory of SFT"].text


def test_advice_on_cards_keeps_the_batch():
    """Three A40s divide no batch of 64; two do."""
    recipe = load_recipe("a40x4")
    card = Gpu("0", 45.0, "NVIDIA A40", (8, 6))
    _, lines = check(recipe, machine=own(gpus=(card,) * 3))
    assert "hardware.cards=2" in lines["cards"].text
    _, lines = check(recipe, machine=own())
    assert "--set hardware.cards" not in lines["cards"].text


def test_memory_for_the_merge():
    """In fp32, on the card; of a small card in the machine's memory."""
    recipe = load_recipe("t4-7b")

    def judge(**fields):
        return check(recipe, machine=own(**fields))[1]["memory of the merge"]

    assert judge(gpus=(H100,)).status == "OK"
    room = {"memory_gib": 40.0, "available_gib": 30.0}
    assert judge(gpus=(T4,), **room).status == "OK"
    line = judge(gpus=(T4,), memory_gib=40.0)
    assert line.status == "WARN" and "close other programs" in line.text
    line = judge(gpus=(T4,))
    assert line.status == ("WARN" if recipe.model.ladder else "FAIL")
    assert "27.0 GiB in fp32, 12.0 GiB are free" in line.text
    # without the cards it is for, this machine's memory says nothing
    assert "memory of the merge" not in check(recipe, machine=own())[1]


def test_a_card_that_is_too_small(ask, tmp_path, monkeypatch):
    put_cards(tmp_path, monkeypatch, 8, gib=16)
    _, lines = ask("--tier", "h100x8", "--set", "hardware.strategy=ddp")
    assert lines["memory of SFT"][0] == "FAIL"
    assert "GiB a card" in lines["memory of SFT"][1]
    put_cards(tmp_path, monkeypatch, 8, gib=80)
    _, lines = ask("--tier", "h100x8", "--set", "hardware.strategy=ddp")
    assert lines["memory of SFT"][0] == "OK"


def test_with_a_memory_ladder_a_small_card_only_warns():
    tight = own(gpus=(Gpu("0", 2.0, "Tiny", (7, 5)),))
    recipe = load_recipe("t4")
    if not getattr(recipe.model, "ladder", None):
        pytest.skip("this tier has no memory ladder")
    _, lines = check(recipe, machine=tight)
    assert lines["memory of SFT"].status == "WARN"
    assert "ladder" in lines["memory of SFT"].text


def test_the_memory_of_a_cpu_counts_too():
    recipe = load_recipe("smol", ["hardware.device=cpu"])
    _, lines = check(recipe, machine=own(memory_gib=1.0))
    assert lines["memory of SFT"].status == "FAIL"
    assert "this machine has" in lines["memory of SFT"].text


# --- the plan ------------------------------------------------------------


def test_a_size_that_does_not_divide(ask):
    sets = ("--set", "engine.tensor_parallel_size=8")
    code, lines = ask("--tier", "h100x8", *sets)
    assert code == 1 and lines["plan"][0] == "FAIL"
    assert "28 attention heads are not divisible by 8" in lines["plan"][1]
    assert "choose one of 1, 2, 4;" in lines["plan"][1]


def test_the_packing_trap_is_seen_before_training():
    sets = ["sft.packing=true", "sft.effective_batch=64"]
    _, lines = check(load_recipe("pocket", sets))
    assert lines["steps of SFT"].status == "WARN"
    assert "packing trap" in lines["steps of SFT"].text
    _, lines = check(load_recipe("pocket"))
    assert lines["steps of SFT"].status == "OK"


def test_rates_that_bf16_rounds_away_are_a_warning():
    report, _ = check(load_recipe("h100x8-published"))
    said = [line.text for line in report.lines if line.name == "plan"]
    assert any("half an ulp" in text for text in said)


# --- packages ------------------------------------------------------------


def test_packages_of_the_tier(monkeypatch):
    found = {"bitsandbytes": "0.50.2"}
    monkeypatch.setattr(doctor, "find_version", found.get)
    lines = {x.name: x for x in doctor.judge_extras(load_recipe("t4"))}
    assert lines["bitsandbytes"].status == "OK"
    found.clear()
    lines = {x.name: x for x in doctor.judge_extras(load_recipe("t4"))}
    assert "not installed" in lines["bitsandbytes"].text
    assert '".[gpu]"' in lines["bitsandbytes"].text


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("0.9", "FAIL"),
        ("0.17.9", "FAIL"),
        ("0.18", "OK"),
        ("0.100.0+cu12", "OK"),
    ],
)
def test_versions_are_compared_as_numbers(monkeypatch, version, status):
    monkeypatch.setattr(doctor, "find_version", lambda name: version)
    (line, _) = doctor.judge_extras(load_recipe("h100x8"))
    assert line.name == "deepspeed" and line.status == status
    assert status == "OK" or "0.18 is needed" in line.text


def test_a_mix_of_made_problems_needs_its_package():
    sets = ["solutions.mix={'reasoning-gym:gcd': 10}"]
    recipe = load_recipe("pocket", sets)
    assert "build" in doctor.list_extras(recipe)
    assert "build" not in doctor.list_extras(load_recipe("pocket"))


def test_an_executable_for_vllm(tmp_path, monkeypatch):
    (line,) = doctor.judge_extras(load_recipe("h100x8"))[1:]
    assert line.status == "FAIL" and "no executable" in line.text
    command = tmp_path / "vllm"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.setenv("MATHSLM_VLLM", str(command))
    (line,) = doctor.judge_extras(load_recipe("h100x8"))[1:]
    assert line.status == "OK"


# --- the model -----------------------------------------------------------


def test_gated_without_a_token(ask, monkeypatch):
    code, lines = ask("--tier", "t4-llama")
    assert code == 1 and lines["licence"][0] == "FAIL"
    assert "hf auth login" in lines["licence"][1]
    assert "licence" not in ask("--tier", "t4")[1]
    monkeypatch.setattr(doctor, "has_model", lambda model_id: True)
    monkeypatch.setattr(doctor, "find_token", lambda: True)
    assert ask("--tier", "t4-llama")[1]["licence"][0] == "OK"


def test_a_model_folder_that_is_missing(ask):
    code, lines = ask("--set", "model.id=data/nowhere/model")
    assert code == 1 and lines["model"][0] == "FAIL"
    assert "no model folder" in lines["model"][1]


def test_a_hub_model_offline(ask, monkeypatch):
    assert ask("--tier", "t4")[1]["model"][0] == "WARN"
    monkeypatch.setattr(doctor, "is_offline", lambda: True)
    code, lines = ask("--tier", "t4")
    assert code == 1 and lines["model"][0] == "FAIL"
    assert "MATHSLM_MODEL_DIR" in lines["model"][1]


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lose_shard(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut, "model.safetensors"),
        (lose_shard, "there is no model-00001-of-00002.safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
    ],
)
def test_a_half_written_model(tmp_path, tiny_model_dir, spoil, said):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model_dir, folder)
    assert doctor.judge_folder(folder).status == "OK"
    spoil(folder)
    line = doctor.judge_folder(folder)
    assert line.status == "FAIL" and said in line.text
    assert "cut off" in line.text


def test_a_tokenizer_that_loses_think(tmp_path, tiny_recipe, tiny_model_dir):
    from tiny_models import make_tokenizer

    folder = tmp_path / "copy"
    shutil.copytree(tiny_model_dir, folder)
    assert doctor.judge_tokenizer(tiny_recipe, folder).status == "OK"
    bad = make_tokenizer()
    bad.add_special_tokens({"additional_special_tokens": ["</think>"]})
    bad.save_pretrained(folder)
    line = doctor.judge_tokenizer(tiny_recipe, folder)
    assert line.status == "FAIL" and "'</think>'" in line.text


# --- inputs and outputs --------------------------------------------------


def test_a_problem_file_that_is_missing(ask):
    code, lines = ask("--set", "data.train=pocket/nothing.jsonl")
    name = "problem set pocket/nothing.jsonl"
    assert code == 1 and lines[name][0] == "FAIL"


def test_the_sets_of_worked_solutions_count(ask):
    sets = ("--set", "solutions.mix={pocket/lost.jsonl: 5}")
    sets += ("--set", "solutions.against=[pocket/gone.jsonl]")
    code, lines = ask("--tier", "pocket", *sets)
    assert code == 1
    assert lines["problem set pocket/lost.jsonl"][0] == "FAIL"
    assert lines["problem set pocket/gone.jsonl"][0] == "FAIL"


def test_a_local_copy_of_a_hub_set_counts(tmp_path, monkeypatch):
    assert judge_set("gsm8k").status == "WARN"
    (tmp_path / "gsm8k.jsonl").write_text("{}\n")
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(tmp_path))
    assert judge_set("gsm8k").status == "OK"


def test_disk_is_computed_from_the_recipe(tmp_path):
    small = own(disk_gib=5.0)
    _, lines = check(load_recipe("pocket"), machine=small)
    assert lines["disk"].status == "OK"
    _, lines = check(load_recipe("h100x8"), machine=small)
    assert lines["disk"].status == "FAIL"
    from helpers.planner import estimate_space

    sizes = [estimate_space(load_recipe(t), "merge") for t in ("smol", "t4")]
    # bf16 and fp16: two bytes for each of 135 and 1,100 million weights
    assert sizes[0] == pytest.approx(2 * 134.5e6 / 2**20 + 50, abs=2)
    assert sizes[1] == pytest.approx(2 * 1.1e9 / 2**20 + 50, abs=2)


def test_output_that_is_a_file(ask, tmp_path):
    (tmp_path / "taken").write_text("mine")
    code, lines = ask("--tier", "pocket", "--run-dir", "taken/run")
    assert code == 1 and lines["output"][0] == "FAIL"
    assert "is not a folder" in lines["output"][1]
    assert (tmp_path / "taken").read_text() == "mine"


# --- results that are there ----------------------------------------------


@pytest.fixture
def trained(run, tokenizer, tiny_model_dir, monkeypatch):
    """A run with a harvest, SFT and DPO, from trainers that do nothing."""

    def train(recipe, *parts):
        stage = next(part for part in parts if hasattr(part, "is_needed"))
        (stage.folder / "adapter").mkdir(parents=True)
        (stage.folder / "log.jsonl").write_text("{}\n")
        (stage.folder / "adapter" / "kept").write_text("an hour of work")
        return {"loss": 1.0}

    for module in (sft, dpo):
        monkeypatch.setattr(module, "train", train)
    write_sft_rows(run, tokenizer, n=640)
    write_pairs(run, tokenizer)
    record_distill(run, run.recipe)
    stages.run_sft(run.recipe, run)
    shutil.copytree(tiny_model_dir, run.file("sft", "merged"))
    with run.stage("merge/sft", {}):
        pass
    stages.run_dpo(run.recipe, run)
    stages.run_dpo(run.recipe, run, variant="published")
    scored = evaluate.Evaluation(
        run.recipe, run, "base", tiny_model_dir, False
    )
    with run.stage("evaluate/base", scored.describe({"bench"})) as record:
        record["metrics"] = {"bench": {"k": 1, "n": 8}}
    return run


def record_distill(run, recipe):
    """A distillation that was done with this recipe."""
    model, wanted = distill.find_model(recipe, run), recipe.data.n_problems
    with run.stage("distill", distill.describe_inputs(recipe, model, wanted)):
        pass


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ("sft.epochs=1", "sft"),
        ("sampling.temperature=0.3", "distill"),
        ("dpo.beta=0.7", "dpo"),
        ("dpo_variants.published.beta=0.7", "dpo-published"),
        ("evaluate.max_new_tokens=9", "evaluate/base"),
    ],
)
def test_results_that_would_be_overwritten(tmp_path, trained, change, stage):
    report, lines = check(trained.recipe, trained.path)
    done = {line for line in report.lines if line.text.startswith("done")}
    assert {line.name for line in done} == {
        "stage distill",
        "stage sft",
        "stage dpo",
        "stage dpo-published",
        "stage evaluate/base",
    }
    other = load_recipe(tmp_path / "tiny.yaml", [change])
    _, lines = check(other, trained.path)
    assert lines[f"stage {stage}"].status == "FAIL"
    assert "--force" in lines[f"stage {stage}"].text
    _, lines = check(other, trained.path, force=True)
    assert lines[f"stage {stage}"].status == "WARN"
    assert trained.file("sft", "adapter", "kept").is_file()
    assert stage_file(trained.path, stage).is_file()


@pytest.mark.parametrize("name", ["bench", "another"])
def test_a_benchmark_that_was_resized_or_taken_away(tmp_path, trained, name):
    """Of fewer problems, or replaced by one of another name."""
    (bench,) = trained.recipe.evaluate.benchmarks
    asked = {"name": name, "path": bench.path, "n": bench.n - 1}
    sets = [f"evaluate.benchmarks=[{json.dumps(asked)}]"]
    other = load_recipe(
        tmp_path / "tiny.yaml", [*sets, f"evaluate.main={name}"]
    )
    _, lines = check(other, trained.path)
    assert lines["stage evaluate/base"].status == "FAIL"
    assert "benchmark bench" in lines["stage evaluate/base"].text
    _, lines = check(other, trained.path, force=True)
    assert lines["stage evaluate/base"].status == "WARN"


@pytest.mark.parametrize(
    "change", ["solutions.mix={pocket/train.jsonl: 9}", "solutions.cap=50"]
)
def test_solutions_made_with_other_settings(tmp_path, run, change):
    mix = "solutions.mix={pocket/train.jsonl: 8}"
    recipe = load_recipe(tmp_path / "tiny.yaml", [mix])
    with run.stage("solutions", solutions.describe_inputs(recipe)):
        pass
    _, lines = check(recipe, run.path)
    assert lines["stage solutions"].text.startswith("done")
    other = load_recipe(tmp_path / "tiny.yaml", [mix, change])
    _, lines = check(other, run.path)
    assert lines["stage solutions"].status == "FAIL"
    assert "made from other inputs" in lines["stage solutions"].text


def test_what_is_said_once(monkeypatch):
    """No line twice, and memory and packing only where they are judged."""
    sets = ["sft.packing=true", "sft.effective_batch=64"]
    report, lines = check(load_recipe("pocket", sets))
    assert len({str(line) for line in report.lines}) == len(report.lines)
    (packed,) = [x for x in report.lines if "steps an epoch" in x.text]
    assert packed == lines["steps of SFT"]
    small = check(load_recipe("h100x8", ["hardware.card=T4"]))[0].lines
    (line,) = [x for x in small if x.text.startswith("SFT needs")]
    assert line.name == "memory of SFT"


def test_a_settled_run_is_compared_as_it_was_settled(tmp_path, tiny_recipe):
    recipe = load_recipe(tmp_path / "tiny.yaml", ["model.dtype=auto"])
    run = RunDir.open(tmp_path / "settled", recipe)
    _, lines = check(recipe, run.path)
    assert lines["stage evaluate/base"].text == "may start"
    assert not run.file("model.json").exists()
    settled = fix_model(recipe, run)
    assert settled.model.dtype != "auto"
    record_distill(run, settled)
    _, lines = check(recipe, run.path)
    assert lines["stage distill"].status == "OK", lines["stage distill"]
    sets = ["model.dtype=auto", "model.attn_implementation=eager"]
    _, lines = check(load_recipe(tmp_path / "tiny.yaml", sets), run.path)
    assert lines["results"].status == "FAIL"


def test_a_stage_that_would_be_refused(tmp_path, tiny_recipe):
    other = load_recipe(tmp_path / "tiny.yaml", ["data.n_problems=500"])
    _, lines = check(other, tmp_path / "new")
    assert lines["stage distill"].status == "FAIL"
    assert "n_problems" in lines["stage distill"].text
    assert not (tmp_path / "new").exists()


def test_a_folder_of_another_recipe_or_of_nobody(tmp_path, run, tiny_recipe):
    other = load_recipe(tmp_path / "tiny.yaml", ["seed=7"])
    _, lines = check(other, run.path)
    assert lines["results"].status == "FAIL"
    assert "another recipe" in lines["results"].text
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    _, lines = check(tiny_recipe, tmp_path / "mine")
    assert lines["results"].status == "FAIL"


# --- lines ---------------------------------------------------------------


def test_a_verdict_becomes_a_line():
    def refuse():
        raise LabError("It broke.", why="of that", fix="mend it")

    assert try_guard("x", lambda: None, "fine") == Line("OK", "x", "fine")
    assert try_guard("x", lambda: "hm", "fine").status == "WARN"
    line = try_guard("x", refuse, "fine")
    assert str(line) == "[FAIL] x: It broke. Why: of that. Do this: mend it."


def test_a_run_folder_alone_is_enough(ask, run, tmp_path):
    code, lines = ask("--run-dir", str(run.path))
    assert code == 0, lines
    assert RunDir(run.path, run.recipe).file("recipe.yaml").is_file()
