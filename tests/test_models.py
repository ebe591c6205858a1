"""Where models are found, and how they are loaded."""

import shutil
from pathlib import Path

import pytest

from helpers.errors import LabError
from helpers.models import (
    explain_precision,
    load_model,
    load_tokenizer,
    make_quantization,
    model_path,
    pick_device,
)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def change(recipe, section, **values):
    """The recipe with some values of one section changed."""
    part = getattr(recipe, section).model_copy(update=values)
    return recipe.model_copy(update={section: part})


def test_tags_lie_apart(tiny_recipe, run):
    tags = ("base", "sft", "dpo", "dpo-published")
    paths = [model_path(tiny_recipe, run, tag) for tag in tags]
    assert len(set(paths)) == 4
    assert paths[0] == Path(tiny_recipe.model.id)
    assert paths[3] == run.file("dpo-published", "merged")


@pytest.mark.parametrize("tag", ["", "Base", "sft-x", "dpo-x", "dpo/../sft"])
def test_unknown_tags_are_refused(tiny_recipe, run, tag):
    with pytest.raises(LabError):
        model_path(tiny_recipe, run, tag)


def test_hub_ids_and_local_copies(tiny_recipe, run, tmp_path, monkeypatch):
    recipe = change(tiny_recipe, "model", id="some-org/some-model")
    assert model_path(recipe, run, "base").as_posix() == "some-org/some-model"
    copy = tmp_path / "models" / "some-model"
    copy.mkdir(parents=True)
    monkeypatch.setenv("MATHSLM_MODEL_DIR", str(copy.parent))
    assert model_path(recipe, run, "base") == copy
    exact = copy.parent / "some-org" / "some-model"
    exact.mkdir(parents=True)
    assert model_path(recipe, run, "base") == exact


def test_a_missing_folder_is_refused_not_sought_on_the_hub(tiny_recipe, run):
    recipe = change(tiny_recipe, "model", id="data/no-such/model")
    with pytest.raises(LabError, match="no-such"):
        model_path(recipe, run, "base")


def test_recipe_dtype_wins_over_the_stored_one(tiny_recipe, tiny_model):
    recipe = change(tiny_recipe, "model", dtype="bfloat16")
    model, tokenizer = load_model(recipe)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert tokenizer.padding_side == "left"
    exact, _ = load_model(tiny_recipe)
    for name, weight in tiny_model.state_dict().items():
        assert torch.equal(exact.state_dict()[name], weight)


def test_broken_folders_are_refused(tiny_recipe, tiny_model_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    (broken / "model.safetensors").unlink()
    for folder in (tmp_path / "empty", broken):
        with pytest.raises(LabError, match=folder.name):
            load_model(tiny_recipe, folder)


def test_a_torn_weights_file_is_refused(tiny_recipe, tiny_model_dir, tmp_path):
    torn = tmp_path / "torn"
    shutil.copytree(tiny_model_dir, torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LabError, match="torn"):
        load_model(tiny_recipe, torn)


def test_pad_token_is_found_and_end_token_required(tokenizer, tmp_path):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    bare.save_pretrained(tmp_path / "bare")
    loaded = load_tokenizer(tmp_path / "bare")
    assert loaded.pad_token == "<|pad|>"
    assert loaded.pad_token_id != loaded.eos_token_id
    bare.eos_token = None
    bare.save_pretrained(tmp_path / "endless")
    with pytest.raises(LabError, match="no end token"):
        load_tokenizer(tmp_path / "endless")


def test_a_device_that_is_not_there_is_refused(tiny_recipe):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(LabError, match="cuda"):
        pick_device(change(tiny_recipe, "hardware", device="cuda"))
    auto = change(tiny_recipe, "hardware", device="auto")
    assert pick_device(auto) in ("cpu", "mps")


def test_quantization_is_what_the_recipe_says(tiny_recipe):
    assert make_quantization(tiny_recipe) is None
    recipe = change(tiny_recipe, "model", quantization="nf4", dtype="bfloat16")
    config = make_quantization(recipe)
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    eight = change(tiny_recipe, "model", quantization="int8")
    assert make_quantization(eight).load_in_8bit


def test_the_reason_of_a_16_bit_precision_is_said(tiny_recipe, capsys):
    words = {"dtype": "bfloat16", "dtype_reason": "half the memory"}
    recipe = change(tiny_recipe, "model", **words)
    model, _ = load_model(recipe)
    assert model.dtype == torch.bfloat16
    said = capsys.readouterr().out
    assert "precision bfloat16: half the memory; this CPU" in said
    load_model(tiny_recipe)
    assert "precision" not in capsys.readouterr().out


def test_bfloat16_is_refused_on_a_card_without_it(tiny_recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    recipe = change(tiny_recipe, "model", dtype="bfloat16")
    with pytest.raises(LabError, match=r"Tesla T4 has no bfloat16"):
        explain_precision(recipe, "cuda")
    recipe.model.dtype = "float16"
    assert "float16" in explain_precision(recipe, "cuda")
