"""Recipes: every shipped one loads; wrong ones are refused with a remedy."""

from __future__ import annotations

import re

import pytest
import yaml

from helpers.base import LabError, list_recipes, load_recipe, recipe_hash
from helpers.models.ladder import LadderStep, apply_step


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_load(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.model.dtype_reason


def test_overrides_change_one_value():
    recipe = load_recipe("pocket", ("sft.learning_rate=1e-4", "seed=7"))
    assert recipe.sft.learning_rate == 1e-4
    assert recipe.seed == 7
    same = load_recipe("pocket", ("seed=7",))
    assert recipe_hash(recipe, "dpo") == recipe_hash(same, "dpo")
    assert recipe_hash(recipe, "sft") != recipe_hash(same, "sft")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("pockt", (), "Did you mean 'pocket'"),
        ("none.yaml", (), "No recipe file"),
        ("pocket", ("sft.learning_rat=1",), "Did you mean 'learning_rate'"),
        ("pocket", ("sft.epochs=soon",), "sft.epochs"),
        ("pocket", ("sampling.top_p=2",), "sampling.top_p"),
        ("pocket", ("sft.learning_rate",), "section.key=value"),
        ("pocket", ("seed.x=1",), "no section"),
        ("pocket", ("sft.effective_batch=10",), "multiple"),
        ("pocket", ("evaluate.main=gsm8k",), "gsm8k"),
        ("pocket", ("dpo_variants.published.betta=1",), "betta"),
        ("pocket", ("sft.lr_scheduler=cosin",), "sft.lr_scheduler"),
        ("pocket", ("data.prompt_template=boxd",), "Did you mean 'boxed'"),
    ],
)
def test_refusals_name_the_key(name, overrides, message):
    with pytest.raises(LabError, match=message):
        load_recipe(name, overrides)


def test_a_model_is_loaded_at_its_own_pinned_commit(tmp_path):
    tiny = load_recipe("t4")
    assert re.fullmatch("[0-9a-f]{40}", tiny.model.revision)
    llama = load_recipe("t4-llama")  # extends t4
    assert llama.model.revision not in (None, tiny.model.revision)
    # a run folder's recipe names the commit; another model has not that one
    kept = tmp_path / "recipe.yaml"
    kept.write_text(yaml.safe_dump(tiny.model_dump(mode="json")))
    assert load_recipe(kept).model.revision == tiny.model.revision
    other = load_recipe(kept, ["model.id=somebody/else"])
    assert other.model.revision is None
    own = ["model.id=somebody/else", "model.revision=v1.0"]
    assert load_recipe(kept, own).model.revision == "v1.0"
    assert load_recipe("pocket").model.revision is None


@pytest.mark.parametrize("name", list_recipes())
def test_the_notebooks_find_the_published_dpo_settings(name):
    assert load_recipe(name).dpo_variant("published").learning_rate == 5e-7


def test_a_smaller_model_brings_its_own_commit():
    recipe = load_recipe("t4-7b")
    step = LadderStep("float16", "nf4", model=recipe.model.smaller)
    changed = apply_step(recipe, step).model
    assert changed.revision == load_recipe("t4").model.revision


def test_unknown_variant():
    recipe = load_recipe("pocket")
    assert recipe.dpo_variant("published").learning_rate == 5e-7
    with pytest.raises(LabError, match="Did you mean 'published'"):
        recipe.dpo_variant("publishd")


def test_a_file_can_extend_a_shipped_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: pocket\nname: mine\nsft: {epochs: 1}\n")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.sft.epochs) == ("mine", 1)
    assert recipe.sft.lora == load_recipe("pocket").sft.lora


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_unreadable_files(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(LabError, match="bad.yaml"):
        load_recipe(path)


def test_a_changed_copy_leaves_the_recipe_alone():
    recipe = load_recipe("pocket")
    changed = recipe.with_model(dtype="bfloat16", quantization="nf4")
    assert (changed.model.dtype, changed.model.quantization) == (
        "bfloat16",
        "nf4",
    )
    assert recipe.model.dtype == "float32" and changed.sft == recipe.sft
    assert recipe_hash(changed, "model") != recipe_hash(recipe, "model")
    other = recipe.with_section("hardware", device="cpu", cards=2)
    assert other.hardware.cards == 2 and other.model == recipe.model


def test_the_package_hands_out_recipes():
    import helpers

    assert helpers.load_recipe("pocket") == load_recipe("pocket")
    assert helpers.__version__
    with pytest.raises(AttributeError):
        helpers.nothing  # noqa: B018


def test_a_setting_that_earlier_runs_name_without_a_value(tmp_path):
    """``engine.recording`` is gone; every stored recipe says null."""
    path = tmp_path / "old.yaml"
    path.write_text("extends: pocket\nname: old\nengine: {recording: null}\n")
    assert load_recipe(path).engine == load_recipe("pocket").engine
    path.write_text("extends: pocket\nname: old\nengine: {recording: x}\n")
    with pytest.raises(LabError, match="recording"):
        load_recipe(path)
