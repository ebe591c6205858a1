"""The memory ladder: down on out-of-memory, and on nothing else."""

from __future__ import annotations

import pytest

from helpers.base import LabError, read_json
from helpers.models import fix_model, is_out_of_memory, ladder
from helpers.models import load as models
from helpers.models.ladder import LadderStep, list_steps, walk_ladder

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

WORDS = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of",
    "CUDA error: out of memory\nCUDA kernel errors might be reported",
    "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't "
    "allocate memory: you tried to allocate 1099511627776 bytes.",
    "MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9 GB)",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
]
OTHERS = [
    RuntimeError("expected all tensors on the same device"),
    RuntimeError("shape mismatch: memory format of the input"),
    ValueError("CUDA out of memory"),  # only text, of another kind of error
    OSError("No space left on device"),
    KeyboardInterrupt(),
    LabError("There is no model folder."),
]


def change(recipe, section="model", **values):
    """The recipe with some values of one section changed."""
    part = getattr(recipe, section).model_copy(update=values)
    return recipe.model_copy(update={section: part})


def laddered(recipe, **values):
    """The recipe with the ladder switched on."""
    return change(recipe, ladder=True, **values)


def names(steps):
    """The steps as they are printed."""
    return [str(step) for step in steps]


NF4 = "nf4, double quantization"
OUTSIDE = f"{NF4}, part of it outside the device"
ON_DISK = "bfloat16, part of it outside the device"


def test_the_steps_go_down(tiny_recipe):
    recipe = laddered(tiny_recipe, dtype="bfloat16", smaller="a/b")
    found = names(list_steps(recipe, base=True, training=False, device="cuda"))
    small = ["a/b in bfloat16", f"a/b in {NF4}"]
    assert found == ["bfloat16", "int8", NF4, OUTSIDE, *small]
    # outside of the machine's memory is the disk: nothing is quantized
    found = names(list_steps(recipe, base=False, training=False, device="cpu"))
    assert found == ["bfloat16", "int8", NF4, ON_DISK]
    # accelerate refuses to train what lies outside the device
    found = names(list_steps(recipe, base=True, training=True, device="cuda"))
    assert found == ["bfloat16", "int8", NF4, *small]
    # a merged model has no substitute
    found = names(list_steps(recipe, base=False, training=True, device="cuda"))
    assert found == ["bfloat16", "int8", NF4]


def test_the_walk_starts_where_the_recipe_says(tiny_recipe):
    recipe = laddered(tiny_recipe, quantization="nf4", smaller="a/b")
    found = names(list_steps(recipe, base=True, training=False, device="cuda"))
    assert found == [NF4, OUTSIDE, f"a/b in {NF4}"]
    eight = change(recipe, merged_quantization="int8")
    found = names(list_steps(eight, base=False, training=True, device="cuda"))
    assert found == ["int8", NF4]
    alone = change(recipe, ladder=None)
    assert names(
        list_steps(alone, base=True, training=False, device="cuda")
    ) == [NF4]
    assert names(
        list_steps(alone, base=False, training=False, device="cuda")
    ) == ["float32"]


def test_vllm_has_no_8_bits(tiny_recipe):
    recipe = change(laddered(tiny_recipe), "engine", name="vllm")
    assert names(
        list_steps(recipe, base=True, training=True, device="cuda")
    ) == [
        "float32",
        NF4,
    ]


def test_what_is_merged_goes_down_with_its_base(tiny_recipe):
    fell = ladder.apply_step(
        laddered(tiny_recipe), LadderStep("float32", "nf4")
    )
    assert fell.model.merged_quantization == "nf4"
    nf4 = laddered(tiny_recipe, quantization="nf4")
    stayed = ladder.apply_step(nf4, LadderStep("float32", "nf4"))
    assert stayed.model.merged_quantization is None


@pytest.mark.parametrize("text", WORDS)
def test_out_of_memory_is_known_by_its_words(text):
    assert is_out_of_memory(RuntimeError(text))
    assert is_out_of_memory(torch.OutOfMemoryError(text))


def test_a_real_refusal_of_the_allocator_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())


@pytest.mark.parametrize("error", OTHERS, ids=lambda e: type(e).__name__)
def test_any_other_error_is_raised_at_once(error):
    tried = []

    def load(step):
        tried.append(step)
        raise error

    steps = [LadderStep("float16"), LadderStep("float16", "nf4")]
    with pytest.raises(type(error)):
        walk_ladder(steps, load)
    assert tried == steps[:1]
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("falls", range(6))
def test_each_step_can_fail(tiny_recipe, falls, capsys):
    """Out of memory is injected on the first steps, one more each time."""
    recipe = laddered(tiny_recipe, dtype="float16", smaller="a/b")
    steps = list_steps(recipe, base=True, training=False, device="cuda")
    tried = []

    def load(step):
        tried.append(step)
        if len(tried) <= falls:
            raise RuntimeError(WORDS[(len(tried) - 1) % len(WORDS)])
        return str(step)

    if falls == len(steps):
        with pytest.raises(ladder.DoesNotFit) as caught:
            walk_ladder(steps, load)
        for name in names(steps):
            assert f"{name}: out of memory after" in caught.value.why
        return
    way = walk_ladder(steps, load)
    assert way.loaded == str(steps[falls]) and way.step == steps[falls]
    assert tried == steps[: falls + 1]
    assert [bool(a.error) for a in way.attempts] == [True] * falls + [False]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == falls + 1
    for line, step in zip(said, tried, strict=True):
        assert line.startswith(f"memory ladder: {step}: ")
    assert "holds (" in said[-1] and "GiB" in said[-1]
    if falls:
        assert "out of memory after" in said[0]
        assert "CUDA out of memory" in said[0]


def test_what_failed_is_let_go_before_the_next_try():
    """Neither the error nor its frames keep the weights alive."""
    import weakref

    held = []

    class Weights:
        """Something large."""

    def load(step):
        if held:
            assert held[0]() is None, "the first try is still in memory"
            return "small"
        large = Weights()
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    steps = [LadderStep("float16"), LadderStep("float16", "int8")]
    assert walk_ladder(steps, load).loaded == "small"


def fail_above(monkeypatch, kinds, *, offload=True):
    """Out of memory on these kinds of quantization, with offloading too."""
    real = models.load_step

    def load(recipe, path, step, device):
        fails = step.quantization in kinds and (offload or not step.offload)
        if fails and not step.model:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried it.")
        return real(recipe, path, step, device)

    monkeypatch.setattr(models, "load_step", load)


def test_load_model_goes_down_for_real(tiny_recipe, monkeypatch, capsys):
    pytest.importorskip("bitsandbytes")
    fail_above(monkeypatch, {None, "int8"})
    model, _ = models.load_model(laddered(tiny_recipe))
    assert model.is_loaded_in_4bit
    said = capsys.readouterr().out
    assert "float32: out of memory" in said
    assert f"{NF4}: holds" in said
    with pytest.raises(LabError, match="does not fit"):
        models.load_model(tiny_recipe)


def break_quantization(monkeypatch, error, kinds=("4bit", "8bit"), after=5):
    """Let bitsandbytes fail on a weight in the middle of the model."""
    from transformers.integrations import bitsandbytes

    for kind in kinds:
        operation = getattr(bitsandbytes, f"Bnb{kind}Quantize")
        calls = []

        def convert(*args, calls=calls, real=operation.convert, **options):
            calls.append(1)
            if len(calls) > after:
                raise error
            return real(*args, **options)

        monkeypatch.setattr(operation, "convert", convert)


def test_out_of_memory_while_quantizing_goes_down(tiny_recipe, monkeypatch):
    """transformers hides it behind an error of its own."""
    pytest.importorskip("bitsandbytes")
    error = torch.OutOfMemoryError("CUDA out of memory. Tried 20 MiB.")
    break_quantization(monkeypatch, error, ["8bit"])
    recipe = laddered(tiny_recipe, quantization="int8")
    way = models.load_down_the_ladder(recipe, training=True)
    assert way.step.quantization == "nf4"
    assert [a.error for a in way.attempts] == ["CUDA out of memory", ""]


def test_other_errors_while_quantizing_stay_what_they_are(
    tiny_recipe, monkeypatch
):
    from transformers import core_model_loading

    pytest.importorskip("bitsandbytes")
    before = core_model_loading.log_conversion_errors
    break_quantization(monkeypatch, ValueError("no such shape"))
    recipe = laddered(tiny_recipe, quantization="nf4")
    with pytest.raises(RuntimeError, match="automatic conversion"):
        models.load_model(recipe)
    assert core_model_loading.log_conversion_errors is before


def test_a_version_that_hides_no_error_is_left_alone(monkeypatch):
    from transformers import core_model_loading

    monkeypatch.delattr(core_model_loading, "log_conversion_errors")
    with ladder.raise_out_of_memory():
        pass
    assert not hasattr(core_model_loading, "log_conversion_errors")


def test_training_room_is_asked_for_when_all_weights_are_there(
    tiny_recipe, monkeypatch
):
    """Embeddings and head in fp32 are part of what has to fit beside it."""
    order = []
    prepare = models.prepare_training
    monkeypatch.setattr(
        models,
        "prepare_training",
        lambda model: order.append("prepare") or prepare(model),
    )
    monkeypatch.setattr(
        models, "reserve_room", lambda room, device: order.append("reserve")
    )
    models.load_model(tiny_recipe, training=True)
    assert order == ["prepare", "reserve"]


def test_what_does_not_fit_is_left_on_the_disk(
    tiny_recipe, tiny_model_dir, monkeypatch, capsys
):
    """The step before the last holds, and answers as the whole model does."""
    pytest.importorskip("bitsandbytes")
    whole, tokenizer = models.load_model(tiny_recipe)
    monkeypatch.setattr(ladder, "measure_free_memory", lambda device: 120_000)
    fail_above(monkeypatch, {None, "int8", "nf4"}, offload=False)
    way = models.load_down_the_ladder(laddered(tiny_recipe, smaller="no/such"))
    model, _ = way.loaded
    assert way.step.offload and len(way.attempts) == 4
    places = set(model.hf_device_map.values())
    assert places == {"cpu", "disk"}
    on_disk = [p for p in model.parameters() if p.device.type == "meta"]
    assert on_disk and len(on_disk) < len(list(model.parameters()))
    text = tokenizer("1 + 1 =", return_tensors="pt")
    with torch.no_grad():
        same = torch.equal(whole(**text).logits, model(**text).logits)
    assert same
    assert "outside the device: holds" in capsys.readouterr().out


def test_the_last_step_is_a_smaller_model(
    tiny_recipe, tiny_model_dir, tmp_path, monkeypatch
):
    import shutil

    small = tmp_path / "small"
    shutil.copytree(tiny_model_dir, small)
    fail_above(monkeypatch, {None, "int8", "nf4"})
    recipe = laddered(tiny_recipe, smaller=str(small), revision="abc")
    way = models.load_down_the_ladder(recipe)
    assert way.step.model == str(small)
    assert not way.loaded[0].training
    assert len(way.attempts) == 5
    fixed = ladder.apply_step(recipe, way.step)
    assert fixed.model.id == str(small)
    assert fixed.model.revision is None and not fixed.model.ladder


def test_a_run_fixes_its_model_once_and_keeps_it(
    tiny_recipe, run, monkeypatch, capsys
):
    pytest.importorskip("bitsandbytes")
    with monkeypatch.context() as patch:
        fail_above(patch, {None})
        first = fix_model(laddered(tiny_recipe), run)
    assert first.model.quantization == "int8" and not first.model.ladder
    stored = read_json(run.file("model.json"))
    assert [a["error"] for a in stored["attempts"]] == [
        "CUDA out of memory",
        "",
    ]
    assert stored["asked"]["ladder"] is True
    # There is memory for more now, but the run stays what it is.
    monkeypatch.delattr(models, "load_down_the_ladder")
    assert fix_model(laddered(tiny_recipe), run) == first
    assert "fixed for this run: int8" in capsys.readouterr().out
    other = laddered(tiny_recipe, smaller="a/b")
    with pytest.raises(LabError, match="other settings"):
        fix_model(other, run)


def test_a_stage_says_which_step_it_stood_on(tiny_recipe, run):
    recipe = laddered(tiny_recipe)
    fixed = fix_model(recipe, run)
    assert fixed.model.quantization is None
    with run.stage("x", {}) as record:
        record["outputs"] = []
    assert read_json(run.file("stages", "x.json"))["model"]["dtype"]


def test_a_fixed_recipe_is_left_alone(tiny_recipe, run):
    assert fix_model(tiny_recipe, run) is tiny_recipe
    assert not run.file("model.json").exists()


def test_auto_precision_is_fixed_too(tiny_recipe, run, monkeypatch):
    recipe = change(tiny_recipe, dtype="auto")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    first = fix_model(recipe, run)
    assert first.model.dtype == "bfloat16"
    assert "bf16 instructions" in first.model.dtype_reason
    # Half-way the run moves to a machine without them.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", bool)
    assert fix_model(recipe, run) == first


def test_several_processes_walk_no_ladder(tiny_recipe, run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LabError, match="one process"):
        fix_model(laddered(tiny_recipe), run)
    assert not run.file("model.json").exists()


def test_layers_are_divided_when_not_all_fit(tiny_model_dir, monkeypatch):
    def divide():
        step = LadderStep("float16", "nf4", offload=True)
        return ladder.map_layers(tiny_model_dir, None, "cpu", step)

    place = divide()
    assert set(place.values()) == {"cpu"}
    # Room for the embeddings and one of the two layers.
    monkeypatch.setattr(ladder, "measure_free_memory", lambda device: 46_000)
    place = divide()
    assert place["model.embed_tokens"] == "cpu"
    assert "disk" in place.values()


def test_training_room_is_the_planners(tiny_recipe):
    from helpers.base import load_recipe

    room = ladder.measure_training_room(load_recipe("t4"), base=True) / 2**30
    assert 1 < room < 5
    unknown = change(tiny_recipe, id="no/such-model")
    assert ladder.measure_training_room(unknown, base=True) == 0
