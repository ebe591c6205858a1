"""Where models are found, and how they are loaded."""

import shutil
from pathlib import Path

import pytest

from helpers.base import LabError
from helpers.models import (
    fit_recipe,
    load_model,
    load_tokenizer,
    model_path,
    pick_device,
    resolve_dtype,
)
from helpers.models.load import (
    choose_dtype,
    explain_precision,
    make_quantization,
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


def test_quantization_is_what_the_recipe_says():
    pytest.importorskip("bitsandbytes")
    assert make_quantization(None, "float16") is None
    config = make_quantization("nf4", "bfloat16")
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert make_quantization("int8", "float16").load_in_8bit


def test_fp16_is_not_trained_on_a_cpu(tiny_recipe):
    recipe = change(tiny_recipe, "model", dtype="float16")
    with pytest.raises(LabError, match="needs a GPU"):
        load_model(recipe, training=True)
    assert load_model(recipe)[0].dtype == torch.float16


def test_quantizing_without_its_library_names_it(tiny_recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LabError, match="bitsandbytes is not"):
        make_quantization("nf4", "float16")


def test_a_merged_model_is_not_quantized_again(tiny_recipe, tmp_path):
    recipe = change(tiny_recipe, "model", quantization="nf4")
    assert fit_recipe(recipe, None) is recipe
    assert fit_recipe(recipe, tiny_recipe.model.id) is recipe
    merged = fit_recipe(recipe, tmp_path / "sft" / "merged")
    assert merged.model.quantization is None
    eight = change(recipe, "model", merged_quantization="int8")
    found = fit_recipe(eight, tmp_path / "sft" / "merged")
    assert found.model.quantization == "int8"
    assert fit_recipe(found, tmp_path / "sft" / "merged") == found


CHOICES = [
    ("cuda", (9, 0), "bfloat16", "SM 8.0"),
    ("cuda", (8, 0), "bfloat16", "SM 8.0"),
    ("cuda", (7, 5), "float16", "no bf16"),  # T4
    ("mps", None, "float32", "mps"),
]


@pytest.mark.parametrize(("device", "level", "dtype", "reason"), CHOICES)
def test_auto_precision_follows_the_capability(
    device, level, dtype, reason, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: level)
    found = choose_dtype(device)
    assert found[0] == dtype and reason in found[1]


@pytest.mark.parametrize(
    ("avx", "amx", "dtype"),
    [(1, 0, "bfloat16"), (0, 1, "bfloat16"), (0, 0, "float32")],
)
def test_auto_precision_of_a_cpu(avx, amx, dtype, tiny_recipe, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    recipe = change(tiny_recipe, "model", dtype="auto")
    found = resolve_dtype(recipe).model
    assert found.dtype == dtype
    assert found.dtype_reason == f"chosen: {choose_dtype('cpu')[1]}"
    model, _ = load_model(recipe)
    assert model.dtype == getattr(torch, dtype)
    assert resolve_dtype(tiny_recipe) is tiny_recipe


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


def test_an_adapter_names_the_model_not_its_folder(
    tiny_recipe, tiny_model_dir, monkeypatch
):
    """A copy or a cache lies elsewhere on every machine."""
    monkeypatch.setenv("MATHSLM_MODEL_DIR", str(tiny_model_dir.parent))
    named = tiny_recipe.model.model_copy(update={"id": "someone/model"})
    recipe = tiny_recipe.model_copy(update={"model": named})
    model, _ = load_model(recipe)
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=1))
    (config,) = adapted.peft_config.values()
    assert config.base_model_name_or_path == "someone/model"
