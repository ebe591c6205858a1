"""``mathslm doctor --tier``: what can be known before a run is."""

import dataclasses
import json
import shutil

import pytest
from fake_cards import put_cards
from typer.testing import CliRunner

from helpers import cli, preflight
from helpers.base import GUARDS, RunDir, list_recipes, load_recipe
from helpers.doctor import Line
from helpers.machine import Machine, read_constraints
from helpers.planner.gpus import Gpu
from helpers.preflight import machine as hardware
from helpers.preflight import model as models
from helpers.preflight.lines import try_guard

T4 = Gpu("0", 14.7, "Tesla T4", (7, 5))
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
    monkeypatch.setattr(models, "find_token", lambda: False)
    monkeypatch.setattr(models, "find_cached", lambda recipe: None)
    monkeypatch.setattr(models, "is_offline", lambda: False)
    monkeypatch.delenv("MATHSLM_MODEL_DIR", raising=False)
    monkeypatch.delenv("MATHSLM_DATA_DIR", raising=False)
    monkeypatch.delenv("MATHSLM_VLLM", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def doctor(monkeypatch):
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
    report = preflight.run_preflight(
        recipe, folder, machine=machine, **options
    )
    return report, {line.name: line for line in report.lines}


def own(**fields):
    """The laptop with other fields."""
    return dataclasses.replace(LAPTOP, **fields)


# --- all tiers -----------------------------------------------------------


@pytest.mark.parametrize("tier", list_recipes())
def test_every_tier_gets_its_lines_without_a_network(tier, tmp_path):
    report, lines = check(load_recipe(tier), tmp_path / "run")
    assert {"cards", "model", "disk", "output", "results"} <= set(lines)
    for line in report.lines:
        text = str(line)
        assert text.startswith(("[OK]", "[WARN]", "[FAIL]"))
        if line.status == "FAIL" and line.name != "extra smol":
            assert "Do this:" in text or "tokens" in text, text
    assert not (tmp_path / "run").exists(), "the doctor made a folder"


def test_tier_pocket_is_fine_here(doctor, pocket_model):
    code, lines = doctor("--tier", "pocket")
    assert code == 0
    assert lines["tokenizer"][0] == lines["model"][0] == "OK"
    assert lines["results"] == ("OK", "none there yet")


def test_the_report_says_what_only_the_stages_can_check(pocket_model):
    done = CliRunner().invoke(cli.app, ["doctor", "--tier", "pocket"])
    later = {t for titles in preflight.list_later().values() for t in titles}
    assert later == {g.title for g in GUARDS if not g.doctor}
    assert all(title in done.output for title in later)


# --- cards ---------------------------------------------------------------


def test_h100x8_on_four_cards(doctor, tmp_path, monkeypatch):
    put_cards(tmp_path, monkeypatch, 4)
    code, lines = doctor("--tier", "h100x8")
    assert code == 1
    assert lines["cards"][0] == "FAIL"
    assert "need 8, and there are 4" in lines["cards"][1]
    assert "hardware.cards=4" in lines["cards"][1]
    assert lines["gpu 3"][0] == "OK"


def test_a_torch_without_cuda_is_named(doctor, tmp_path, monkeypatch):
    put_cards(tmp_path, monkeypatch, 1, "Tesla T4", gib=15, capability="7.5")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _, lines = doctor("--tier", "t4")
    assert lines["gpu 0"][1].startswith("Tesla T4, SM 7.5")
    _, lines = check(load_recipe("t4"), machine=own(
        gpus=(T4,), torch_cuda=False))  # fmt: skip
    assert lines["torch"].status == "FAIL"
    assert "CUDA build" in lines["torch"].text


def test_bf16_on_a_t4(doctor, tmp_path, monkeypatch):
    put_cards(tmp_path, monkeypatch, 1, "Tesla T4", gib=15, capability="7.5")
    code, lines = doctor("--tier", "t4", "--set", "model.dtype=bfloat16")
    assert code == 1 and lines["precision"][0] == "FAIL"
    assert "Tesla T4 has no bfloat16" in lines["precision"][1]
    assert "model.dtype=float16" in lines["precision"][1]
    assert doctor("--tier", "t4")[1]["precision"][0] == "OK"


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


def test_a_card_that_is_too_small(doctor, tmp_path, monkeypatch):
    put_cards(tmp_path, monkeypatch, 8, gib=16)
    _, lines = doctor("--tier", "h100x8", "--set", "hardware.strategy=ddp")
    assert lines["memory of SFT"][0] == "FAIL"
    assert "GiB a card" in lines["memory of SFT"][1]
    put_cards(tmp_path, monkeypatch, 8, gib=80)
    _, lines = doctor("--tier", "h100x8", "--set", "hardware.strategy=ddp")
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


def test_a_size_that_does_not_divide(doctor):
    sets = ("--set", "engine.tensor_parallel_size=8")
    code, lines = doctor("--tier", "h100x8", *sets)
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
    found = {"bitsandbytes": "0.50.2", "deepspeed": "0.17.9"}
    monkeypatch.setattr(hardware, "find_version", found.get)
    lines = {x.name: x for x in hardware.judge_extras(load_recipe("t4"))}
    assert lines["bitsandbytes"].status == "OK"
    lines = {x.name: x for x in hardware.judge_extras(load_recipe("h100x8"))}
    assert lines["deepspeed"].status == "FAIL"
    assert "0.18 is needed" in lines["deepspeed"].text
    found.clear()
    lines = {x.name: x for x in hardware.judge_extras(load_recipe("t4"))}
    assert "not installed" in lines["bitsandbytes"].text
    assert '".[gpu]"' in lines["bitsandbytes"].text


@pytest.mark.parametrize(
    ("older", "newer"),
    [("0.9", "0.10"), ("1.16", "1.16.1"), ("2.8", "2.13.0+cpu")],
)
def test_versions_are_compared_as_numbers(older, newer):
    assert hardware.parse_version(older) < hardware.parse_version(newer)


def test_a_mix_of_made_problems_needs_its_package():
    sets = ["solutions.mix={'reasoning-gym:gcd': 10}"]
    recipe = load_recipe("pocket", sets)
    assert "build" in hardware.list_extras(recipe)
    assert "build" not in hardware.list_extras(load_recipe("pocket"))


def test_an_executable_for_vllm(tmp_path, monkeypatch):
    (line,) = hardware.judge_extras(load_recipe("h100x8"))[1:]
    assert line.status == "FAIL" and "no executable" in line.text
    command = tmp_path / "vllm"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.setenv("MATHSLM_VLLM", str(command))
    (line,) = hardware.judge_extras(load_recipe("h100x8"))[1:]
    assert line.status == "OK"


# --- the model -----------------------------------------------------------


def test_gated_without_a_token(doctor, monkeypatch):
    code, lines = doctor("--tier", "t4-llama")
    assert code == 1 and lines["licence"][0] == "FAIL"
    assert "hf auth login" in lines["licence"][1]
    assert "licence" not in doctor("--tier", "t4")[1]
    monkeypatch.setattr(models, "find_token", lambda: True)
    assert doctor("--tier", "t4-llama")[1]["licence"][0] == "OK"


def test_a_model_folder_that_is_missing(doctor):
    code, lines = doctor("--set", "model.id=data/nowhere/model")
    assert code == 1 and lines["model"][0] == "FAIL"
    assert "no model folder" in lines["model"][1]


def test_a_hub_model_offline(doctor, monkeypatch):
    assert doctor("--tier", "t4")[1]["model"][0] == "WARN"
    monkeypatch.setattr(models, "is_offline", lambda: True)
    code, lines = doctor("--tier", "t4")
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
    assert models.judge_folder(folder).status == "OK"
    spoil(folder)
    line = models.judge_folder(folder)
    assert line.status == "FAIL" and said in line.text
    assert "cut off" in line.text


def test_a_tokenizer_that_loses_think(tmp_path, tiny_recipe, tiny_model_dir):
    from conftest import make_tokenizer

    folder = tmp_path / "copy"
    shutil.copytree(tiny_model_dir, folder)
    assert models.judge_tokenizer(tiny_recipe, folder).status == "OK"
    bad = make_tokenizer()
    bad.add_special_tokens({"additional_special_tokens": ["</think>"]})
    bad.save_pretrained(folder)
    line = models.judge_tokenizer(tiny_recipe, folder)
    assert line.status == "FAIL" and "'</think>'" in line.text


# --- inputs and outputs --------------------------------------------------


def test_a_problem_file_that_is_missing(doctor):
    code, lines = doctor("--set", "data.train=pocket/nothing.jsonl")
    name = "problem set pocket/nothing.jsonl"
    assert code == 1 and lines[name][0] == "FAIL"


def test_the_sets_of_worked_solutions_count(doctor):
    sets = ("--set", "solutions.mix={pocket/lost.jsonl: 5}")
    sets += ("--set", "solutions.against=[pocket/gone.jsonl]")
    code, lines = doctor("--tier", "pocket", *sets)
    assert code == 1
    assert lines["problem set pocket/lost.jsonl"][0] == "FAIL"
    assert lines["problem set pocket/gone.jsonl"][0] == "FAIL"


def test_a_local_copy_of_a_hub_set_counts(tmp_path, monkeypatch):
    from helpers.preflight.inputs import judge_set

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


def test_output_that_is_a_file(doctor, tmp_path):
    (tmp_path / "taken").write_text("mine")
    code, lines = doctor("--tier", "pocket", "--run-dir", "taken/run")
    assert code == 1 and lines["output"][0] == "FAIL"
    assert "is not a folder" in lines["output"][1]
    assert (tmp_path / "taken").read_text() == "mine"


def test_results_that_would_be_overwritten(tmp_path, run, tiny_recipe):
    from helpers.base import recipe_hash

    inputs = {"recipe": recipe_hash(tiny_recipe, "seed", "model", "sft")}
    with run.stage("sft", inputs):
        run.file("kept").write_text("an hour of work")
    _, lines = check(tiny_recipe, run.path)
    assert lines["results"].status == "OK"
    other = load_recipe(tmp_path / "tiny.yaml", ["sft.epochs=1"])
    _, lines = check(other, run.path)
    assert lines["results"].status == "FAIL"
    assert "--force" in lines["results"].text
    _, lines = check(other, run.path, force=True)
    assert lines["results"].status == "WARN"
    assert run.file("kept").read_text() == "an hour of work"


def finish(run, stage, inputs):
    """A stage that was done with these inputs."""
    with run.stage(stage, inputs):
        pass


def test_a_settled_run_is_compared_as_it_was_settled(tmp_path, tiny_recipe):
    from helpers.base import recipe_hash
    from helpers.models import fix_model

    recipe = load_recipe(tmp_path / "tiny.yaml", ["model.dtype=auto"])
    run = RunDir.open(tmp_path / "settled", recipe)
    settled = fix_model(recipe, run)
    assert settled.model.dtype != "auto"
    inputs = {"recipe": recipe_hash(settled, "seed", "model", "sft")}
    finish(run, "sft", inputs)
    _, lines = check(recipe, run.path)
    assert lines["results"].status == "OK", lines["results"]
    sets = ["model.dtype=auto", "sft.epochs=1"]
    other = load_recipe(tmp_path / "tiny.yaml", sets)
    _, lines = check(other, run.path)
    assert lines["results"].status == "FAIL"
    sets = ["model.dtype=auto", "model.attn_implementation=eager"]
    _, lines = check(load_recipe(tmp_path / "tiny.yaml", sets), run.path)
    assert lines["results"].status == "FAIL"


def record_all(run, recipe, model):
    """Stages with the inputs that they would really store."""
    from helpers.stages import distill, dpo, evaluate

    pairs = run.file("pairs.jsonl")
    pairs.write_text("")
    finish(run, "distill", distill.describe_inputs(recipe, model, 6))
    for tag, variant in (("dpo", None), ("dpo-published", "published")):
        config = recipe.dpo_variant(variant)
        inputs = dpo.describe_inputs(recipe, config, pairs, model)
        finish(run, tag, inputs)
    inputs = evaluate._describe_inputs(recipe, model)
    inputs |= evaluate._describe_benchmarks(recipe, {"bench"})
    finish(run, "evaluate/base", inputs)


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ("dpo.beta=0.7", "dpo"),
        ("dpo_variants.published.beta=0.7", "dpo-published"),
        ("sampling.temperature=0.3", "distill"),
        ("data.n_problems=5", "distill"),
        ("evaluate.max_new_tokens=9", "evaluate/base"),
        ("data.prompt_template=boxed", "evaluate/base"),
    ],
)
def test_every_stage_is_compared(
    tmp_path, run, tiny_recipe, tiny_model_dir, change, stage
):
    from helpers.preflight.earlier import list_changed

    record_all(run, tiny_recipe, tiny_model_dir)
    assert list_changed(tiny_recipe, run) == []
    other = load_recipe(tmp_path / "tiny.yaml", [change])
    assert stage in list_changed(other, run)
    assert check(other, run.path)[1]["results"].status == "FAIL"


def test_benchmarks_may_be_added_but_not_resized(run, tiny_recipe):
    from helpers.preflight.earlier import describe_evaluation, differ

    asked = describe_evaluation(tiny_recipe, "base")
    assert asked["benchmark bench"] == "n=8"
    assert not differ(asked, {"benchmark bench": "0123 n=8"})
    assert not differ(asked | {"benchmark new": "n=1"}, {})
    assert differ(asked, {"benchmark bench": "0123 n=7"})
    assert differ(asked, {"benchmark gone": "0123 n=8"})


def test_worked_solutions_are_compared(tmp_path, tiny_recipe):
    from helpers.cli.solutions import solutions
    from helpers.preflight.earlier import list_changed

    mix = [f"solutions.mix={{{tmp_path}/data/train.jsonl: 5}}"]
    recipe = load_recipe(tmp_path / "tiny.yaml", mix)
    run = RunDir.open(tmp_path / "worked", recipe)
    finish(run, "solutions", solutions.describe_inputs(recipe))
    assert list_changed(recipe, run) == []
    for change in ("solutions.least=0.25", "sft.max_length=64"):
        other = load_recipe(tmp_path / "tiny.yaml", [*mix, change])
        assert list_changed(other, run) == ["solutions"]


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
    from helpers.base import LabError

    def refuse():
        raise LabError("It broke.", why="of that", fix="mend it")

    assert try_guard("x", lambda: None, "fine") == Line("OK", "x", "fine")
    assert try_guard("x", lambda: "hm", "fine").status == "WARN"
    line = try_guard("x", refuse, "fine")
    assert str(line) == "[FAIL] x: It broke. Why: of that. Do this: mend it."


def test_a_run_folder_alone_is_enough(doctor, run, tmp_path):
    code, lines = doctor("--run-dir", str(run.path))
    assert code == 0, lines
    assert RunDir(run.path, run.recipe).file("recipe.yaml").is_file()
