"""The GPU tiers: published settings as published, and plans that answer."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from helpers.base import (
    DATA_DIR,
    LabError,
    Recipe,
    list_recipes,
    load_recipe,
    read_json,
    recipe_hash,
)
from helpers.base.recipe import RECIPE_DIR
from helpers.cli import app
from helpers.planner import find_card, plan, solve_batch
from helpers.results import load_published, recompute_math_slm

NOT_RUN = "(planned, not run yet)"
TIERS = [n for n in list_recipes() if load_recipe(n).hardware.card]
NAMED = {"t4", "t4-7b", "rtx3090", "a40x4", "h100x8", "h100x8-published"}
# The rest keep the published settings, mistakes included.
KEPT = ("-published", "-rs1", "-rs2", "-rs3")
OURS = [name for name in TIERS if not name.endswith(KEPT)]
LATE = tuple(range(4, 16))

# Recipe, publication, then value in the recipe = fact of the publication.
SAME = """
h100x8-published math-slm
  sft.lora.r                       lora.r
  sft.lora.alpha                   lora.alpha
  sft.lora.dropout                 lora.dropout
  sft.learning_rate                sft.learning_rate
  sft.epochs                       sft.epochs
  sft.effective_batch              sft.effective_batch
  sft.per_device_batch             sft.per_device_batch
  sft.max_length                   sft.max_length
  sft.warmup_ratio                 sft.warmup_ratio
  sft.lr_scheduler                 sft.lr_scheduler
  sft.min_steps_per_epoch          sft.min_steps_per_epoch
  dpo.learning_rate                dpo.learning_rate
  dpo.beta                         dpo.beta
  dpo.epochs                       dpo.epochs
  dpo.warmup_ratio                 dpo.warmup_ratio
  dpo.lr_scheduler                 dpo.lr_scheduler
  sampling.n                       harvest.samples_per_problem
  sampling.top_p                   harvest.top_p
  harvest.expected_sft_rows        harvest.sft_rows_used
  harvest.expected_pairs           harvest.pairs_used
  engine.tensor_parallel_size      engine.tensor_parallel_size
  evaluate.max_new_tokens          evaluate.max_new_tokens
  hardware.cards                   run.cards
  hardware.usd_per_hour            run.usd_per_hour
t4-published t4-paper
  sft.lora.r                       tinyllama.lora_r
  sft.lora.alpha                   tinyllama.lora_alpha
  sft.lora.dropout                 tinyllama.lora_dropout
  sft.learning_rate                tinyllama.learning_rate
  sft.weight_decay                 tinyllama.weight_decay
  sft.warmup_ratio                 tinyllama.warmup_ratio
  sft.max_grad_norm                tinyllama.max_grad_norm
  sft.lr_scheduler                 tinyllama.lr_scheduler
  sft.optim                        tinyllama.optim
  sft.per_device_batch             tinyllama.per_device_batch
  sft.epochs                       tinyllama.epochs
  sft.max_length                   tinyllama.max_length
  seed                             data.seed
  data.n_problems                  data.numina_rows
t4-7b-published t4-paper
  sft.lora.r                       mistral.lora_r
  sft.lora.alpha                   mistral.lora_alpha
  sft.lora.dropout                 mistral.lora_dropout
  sft.learning_rate                mistral.learning_rate
  sft.weight_decay                 mistral.weight_decay
  sft.warmup_ratio                 mistral.warmup_ratio
  sft.max_grad_norm                mistral.max_grad_norm
  sft.lr_scheduler                 mistral.lr_scheduler
  sft.optim                        mistral.optim
  sft.per_device_batch             mistral.per_device_batch
  sft.epochs                       mistral.epochs
  sft.max_length                   mistral.max_length
  seed                             data.seed
  data.n_problems                  data.numina_rows
rtx3090-published eulerforge
  sft.lora.r                       dense.lora_r
  sft.lora.alpha                   dense.lora_alpha
  sft.learning_rate                dense_sft.learning_rate
  sft.max_steps                    dense_sft.steps
  sft.effective_batch              dense_sft.batch
  sft.max_length                   dense_sft.max_length
  dpo.learning_rate                dense_dpo.learning_rate
  dpo.beta                         dense_dpo.beta
  dpo.max_grad_norm                dense_dpo.max_grad_norm
  dpo.effective_batch              dense_dpo.effective_batch
  dpo.max_length                   dense_dpo.max_length
  data.n_problems                  data.sft_rows
  harvest.expected_pairs           data.pairs
a40x4-rs3 open-rs
  seed                             grpo.seed
  data.n_problems                  data.samples
  engine.max_model_len             grpo.max_model_len
  engine.gpu_memory_utilization    grpo.gpu_memory_utilization
  grpo.learning_rate               grpo.learning_rate
  grpo.lr_scheduler                grpo.lr_scheduler
  grpo.min_lr_rate                 grpo.min_lr_rate
  grpo.warmup_ratio                grpo.warmup_ratio
  grpo.max_steps                   grpo.max_steps
  grpo.epochs                      grpo.epochs
  grpo.per_device_batch            grpo.per_device_batch
  grpo.num_generations             grpo.num_generations
  grpo.temperature                 grpo.temperature
  grpo.beta                        grpo.beta
  hardware.cards                   run.cards
"""


def list_same():
    """``(recipe, value, publication, fact)`` of every line above."""
    recipe = source = ""
    for line in SAME.strip().splitlines():
        first, second = line.split()
        if line.startswith(" "):
            yield recipe, first, source, second
        else:
            recipe, source = first, second


def find_value(recipe, dotted):
    """``"sft.lora.r"`` of a recipe."""
    for part in dotted.split("."):
        recipe = getattr(recipe, part)
    return recipe


@pytest.mark.parametrize(("name", "value", "source", "fact"), [*list_same()])
def test_published_settings_are_the_published_facts(name, value, source, fact):
    ours = find_value(load_recipe(name), value)
    assert ours == load_published(source).fact(fact).value


# --- every tier ------------------------------------------------------------


def test_the_tiers_are_there():
    assert set(TIERS) >= NAMED


@pytest.mark.parametrize("name", TIERS)
def test_a_tier_without_a_record_says_that_it_was_not_run(name):
    recorded = (DATA_DIR / "measured" / name / "run").is_dir()
    assert recorded != (NOT_RUN in load_recipe(name).description)


@pytest.mark.parametrize("name", TIERS)
def test_every_tier_plans_itself_and_fits_its_card(name):
    recipe = load_recipe(name)
    found = plan(recipe, has_token=True)
    work = found.workload
    assert work.card == find_card(recipe.hardware.card)
    assert work.cards == recipe.hardware.cards
    assert work.card.has_bf16 or work.dtype != "bfloat16"
    for estimate in found.memory:
        assert estimate.fits(work.card.memory_gib), estimate
    for steps in found.steps.values():
        assert steps.batch.is_exact, steps.batch
        assert steps.count.per_epoch >= steps.job.min_steps_per_epoch
    assert found.total.hours > 0
    if recipe.hardware.usd_per_hour:
        rate = recipe.hardware.usd_per_hour
        assert found.total.usd == pytest.approx(found.total.hours * rate)


@pytest.mark.parametrize("name", OURS)
def test_our_tiers_take_a_whole_pair_or_row(name):
    """Nothing that was sampled is cut or dropped for its length."""
    recipe = load_recipe(name)
    shortest = min(recipe.sft.max_length, recipe.dpo.max_length)
    assert shortest >= recipe.sampling.max_new_tokens + 200


@pytest.mark.parametrize("name", OURS)
def test_our_dpo_moves_a_weight(name):
    """No tier of ours repeats the published no-op."""
    told = "\n".join(plan(load_recipe(name), has_token=True).warnings)
    assert "ended as its own reference" not in told
    assert "rounded away" not in told


def test_benchmarks_and_training_problems_are_not_the_same_set():
    for name in TIERS:
        recipe = load_recipe(name)
        tests = {b.path for b in recipe.evaluate.benchmarks}
        assert recipe.data.train not in tests, name
        assert recipe.data.dev not in tests, name


def test_problem_sets_are_known_by_their_names_and_roles():
    from helpers.problems import SOURCES

    for name in TIERS:
        recipe = load_recipe(name)
        train = SOURCES[recipe.data.train]
        assert train.role == "train", (name, train.name)
        assert recipe.data.n_problems <= (train.rows or 10**9)
        for benchmark in recipe.evaluate.benchmarks:
            found = SOURCES[benchmark.path]
            assert found.role != "train", (name, benchmark.path)
            assert benchmark.n <= (found.rows or 10**9)


# --- published figures -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "trainable"),
    [
        ("h100x8", 40_370_176),
        ("h100x8-published", 40_370_176),
        ("rtx3090", 33_816_576),
        ("rtx3090-published", 33_816_576),
        ("t4", 25_231_360),
        ("t4-published", 25_231_360),
        ("t4-r1", 18_464_768),
        ("t4-7b", 83_886_080),
        ("t4-7b-published", 83_886_080),
    ],
)
def test_trainable_parameters(name, trainable):
    found = plan(load_recipe(name), has_token=True)
    assert {count for count, _ in found.trainable.values()} == {trainable}


def test_plan_of_the_published_7b_run():
    recipe = load_recipe("h100x8-published")
    found = plan(recipe)
    assert found.trainable["SFT"] == (40_370_176, 7_655_986_688)
    sft, dpo = found.steps["SFT"], found.steps["DPO"]
    assert (sft.count.total, sft.count.floor_total) == (174, 171)
    assert (dpo.count.total, dpo.count.floor_total) == (62, 60)
    assert str(sft.batch).startswith("64 = 2 rows × 4 accumulation × 8")
    assert found.workload.strategy == "zero3"
    told = "\n".join(found.warnings)
    assert "4 of 8 cards stay idle" in told
    assert "DDP is faster" in told
    assert "ended as its own reference" in told
    assert "rounded away" in told


def test_bill_of_the_published_7b_run():
    recipe = load_recipe("h100x8-published")
    total = recompute_math_slm()[-1]
    hours = load_published("math-slm").fact("run.hours").value
    assert total.minutes == 60 * hours == 210
    assert total.usd == pytest.approx(hours * recipe.hardware.usd_per_hour)
    assert total.usd == pytest.approx(total.published_usd, abs=1)
    assert total.published_usd == 93


def test_ours_uses_every_card_and_asks_no_problem_twice():
    ours, theirs = (load_recipe(n) for n in ("h100x8", "h100x8-published"))
    found = plan(ours)
    layout = found.replicas
    assert (layout.replicas, layout.tensor_parallel_size) == (8, 1)
    runs = load_published("math-slm").table("harvest").rows
    assert ours.data.n_problems == sum(run["problems"] for run in runs)
    twice = runs[0]["problems"]
    assert theirs.data.n_problems == ours.data.n_problems - twice
    rerun = load_published("math-slm").fact("dpo.rerun_steps").value
    assert found.steps["DPO"].count.total >= rerun


def test_effective_batch_of_the_published_t4_runs():
    paper = load_published("t4-paper")
    for name, model in (("t4", "tinyllama"), ("t4-7b", "mistral")):
        batch = plan(load_recipe(f"{name}-published")).steps["SFT"].batch
        assert batch.accumulation == paper.fact(f"{model}.accumulation").value
        recipe = load_recipe(f"{name}-published")
        assert batch.effective_batch == recipe.sft.effective_batch


def test_published_dense_lora_starts_at_its_layer():
    lab = load_published("eulerforge")
    recipe = load_recipe("rtx3090-published")
    assert recipe.sft.lora.layers == recipe.dpo.lora.layers == LATE
    assert LATE[0] == lab.fact("dense.start_layer").value
    accumulation = lab.fact("dense_dpo.accumulation").value
    micro = lab.fact("dense_dpo.steps").value
    assert recipe.dpo.max_steps == micro // accumulation == 156
    batch = plan(recipe, has_token=True).steps["DPO"].batch
    assert batch.accumulation == accumulation
    for name in ("rtx3090", "t4", "t4-7b"):
        rate = load_recipe(name).dpo.learning_rate
        low, high = (
            lab.fact(f"guide.learning_rate_{end}").value
            for end in ("from", "to")
        )
        assert low <= rate <= high


@pytest.mark.parametrize("number", [1, 2, 3])
def test_published_grpo_experiments(number):
    published = load_published("open-rs")
    recipe = load_recipe(f"a40x4-rs{number}")
    row = published.table("experiments").rows[number - 1]
    grpo = recipe.grpo
    assert row["experiment"] == number
    assert recipe.data.train == row["data"]
    assert grpo.max_completion_length == row["max_completion_length"]
    assert grpo.rewards == ("format", row["reward"])
    assert grpo.reward_weights == (1.0, row["reward_weight"])
    fact = {
        key: published.fact(f"grpo.{key}").value
        for key in ("per_device_batch", "accumulation", "training_cards")
    }
    assert grpo.effective_batch == 72
    batch = solve_batch(
        grpo.effective_batch, grpo.per_device_batch, fact["training_cards"]
    )
    assert batch.is_exact and batch.accumulation == fact["accumulation"]
    found = plan(recipe)
    assert found.workload.unplanned == ("GRPO",)  # no stage yet
    text = (RECIPE_DIR / f"{recipe.name}.yaml").read_text("utf-8")
    assert f"of step\n# {row['step']} was reported" in text


def test_price_of_the_published_grpo_run():
    fact = load_published("open-rs").fact
    hardware = load_recipe("a40x4").hardware
    price = hardware.usd_per_hour * fact("run.hours").value
    assert price == fact("run.usd").value == 42
    assert hardware.cards == fact("run.cards").value


# --- the schema ------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("grpo.num_generations=7", "num_generations=7"),
        ("grpo.per_device_batch=7", "per_device_batch=7"),
        ("grpo.reward_weights=[1.0]", "2 rewards, but 1 reward_weights"),
        ("grpo.num_generation=8", "Did you mean 'num_generations'"),
        ("hardware.strategy=zero4", "hardware.strategy"),
        ("sft.optim=adamw", "sft.optim"),
        ("sft.lora.layers=[-1]", "sft.lora.layers"),
        ("sft.lora.layers=[]", "sft.lora.layers"),
        ("harvest.expected_pairs=0", "harvest.expected_pairs"),
    ],
)
def test_refusals(override, words):
    with pytest.raises(LabError, match=words):
        load_recipe("a40x4", (override,))


def test_an_unknown_card_or_layer_is_refused_by_the_plan():
    with pytest.raises(LabError, match="no card 'H300'"):
        plan(load_recipe("h100x8", ("hardware.card=H300",)))
    with pytest.raises(LabError, match="no layer 28"):
        plan(load_recipe("h100x8", ("sft.lora.layers=[28]",)))


def test_a_paged_optimizer_is_for_cuda(capsys):
    config = load_recipe("t4").sft
    assert config.pick_optimizer("cuda") == {"optim": "paged_adamw_32bit"}
    assert config.pick_optimizer("cpu") == {}
    assert "needs CUDA" in capsys.readouterr().out
    assert load_recipe("pocket").sft.pick_optimizer("cpu") == {}


@pytest.mark.parametrize("stage", ["grpo", "moe"])
def test_stages_that_are_not_there_are_refused(stage):
    done = CliRunner().invoke(app, [stage, "--tier", "a40x4"])
    assert done.exit_code == 2
    assert f"No such command '{stage}'" in done.output


def test_several_samples_are_planned():
    recipe = load_recipe("pocket", ("evaluate.n=8",))
    once = plan(load_recipe("pocket")).phases[-1]
    assert plan(recipe).phases[-1].tokens == 8 * once.tokens


def test_the_trainer_gets_the_layers_of_the_recipe():
    import torch
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from helpers.stages.trainer import build_lora

    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=16,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=64,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    settings = load_recipe("rtx3090").sft.lora
    built = get_peft_model(model, build_lora(settings, model))
    names = [n for n, p in built.named_parameters() if p.requires_grad]
    layers = {int(n.split(".layers.")[1].split(".")[0]) for n in names}
    assert layers == set(LATE)


@pytest.mark.parametrize(
    ("section", "override"),
    [
        ("sft", "sft.lora.layers=[1]"),
        ("sft", "sft.optim=adamw_torch"),
        ("dpo", "dpo.lora.layers=[1]"),
        ("harvest", "harvest.expected_pairs=5"),
    ],
)
def test_a_new_field_changes_a_hash_only_when_it_is_set(section, override):
    plain = load_recipe("pocket")
    unset = load_recipe("pocket", (override.split("=")[0] + "=null",))
    assert recipe_hash(plain, section) == recipe_hash(unset, section)
    changed = load_recipe("pocket", (override,))
    assert recipe_hash(plain, section) != recipe_hash(changed, section)
    assert load_stored(changed) == changed


def load_stored(recipe):
    """The recipe after a round through its own dump."""
    return Recipe.model_validate(recipe.model_dump(mode="json"))


def test_hashes_of_the_recorded_run_still_hold():
    """The record is replayed only while these are equal."""
    run = DATA_DIR / "measured" / "pocket" / "run"
    recipe = load_recipe("pocket")
    told = read_json(run / "stages" / "sft.json")["inputs"]["recipe"]
    assert recipe_hash(recipe, "seed", "model", "sft") == told
    told = read_json(run / "stages" / "distill.json")["inputs"]["harvest"]
    assert recipe_hash(recipe, "harvest") == told
