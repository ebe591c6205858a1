"""What a person gets wrong on many machines: one message, nothing lost.

Through the command line as it is started in a shell: exit code, one
``Error:`` without a traceback, and every file that was there before.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from fake_cards import put_cards
from training_rows import write_pairs, write_sft_rows
from typer.testing import CliRunner

from helpers import cli
from helpers.base import RunDir, load_recipe

HEAD = "Do this:"
FAST = (
    "sft.per_device_batch=4",
    "sft.effective_batch=4",
    "sft.epochs=1",
    "sft.min_steps_per_epoch=1",
)


@pytest.fixture
def mathslm(tmp_path, monkeypatch):
    """Call ``mathslm`` in an empty folder, off the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MATHSLM_MODEL_DIR", raising=False)

    def call(*arguments):
        return CliRunner().invoke(cli.app, [str(x) for x in arguments])

    return call


def check_refused(result, *said, code=2):
    """One message with a remedy, this exit code, no traceback."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr.count("Error:") == 1 and HEAD in result.stderr
    for text in said:
        assert text in result.stderr, result.stderr


def list_files(folder):
    """``{path: bytes}`` of all files."""
    return {
        p.relative_to(folder): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


# --- cards ---------------------------------------------------------------


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """An executable of that name, which must never be started."""
    command = tmp_path / "vllm"
    command.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    command.chmod(0o755)
    monkeypatch.setenv("MATHSLM_VLLM", str(command))
    yield ("--set", "engine.name=vllm", "--set", "hardware.device=auto")
    assert not (tmp_path / "started").exists()


def test_a_tensor_parallel_size_that_does_not_divide(
    mathslm, vllm, tmp_path, monkeypatch, pocket_model
):
    put_cards(tmp_path, monkeypatch, 8)
    size = ("--set", "engine.tensor_parallel_size=4")
    check_refused(
        mathslm("distill", *vllm, *size),
        "6 attention heads are not divisible by 4",
        "choose one of 1, 2;",
    )
    size = ("--set", "engine.tensor_parallel_size=8")
    check_refused(
        mathslm("plan", "--tier", "h100x8", *size),
        "28 attention heads are not divisible by 8",
    )


def test_more_cards_than_there_are(
    mathslm, vllm, tmp_path, monkeypatch, pocket_model
):
    put_cards(tmp_path, monkeypatch, 2)
    sets = ("--set", "engine.data_parallel_size=3")
    check_refused(mathslm("distill", *vllm, *sets), "need 3, and there are 2")
    sets = ("--set", "engine.data_parallel_size=2")
    sets += ("--set", "engine.tensor_parallel_size=2")
    check_refused(mathslm("distill", *vllm, *sets), "need 4, and there are 2")


def test_a_recipe_for_cards_on_a_machine_without(
    mathslm, tmp_path, monkeypatch, pocket_model
):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = mathslm("distill", "--set", "hardware.device=cuda")
    check_refused(result, "asks for device 'cuda'", "mathslm doctor")


def test_bf16_on_a_t4(mathslm, tmp_path, monkeypatch, pocket_model):
    """A card of this kind is described to torch: there is none here."""
    facts = {
        "is_available": True,
        "get_device_name": "Tesla T4",
        "get_device_capability": (7, 5),
    }
    for name, value in facts.items():
        monkeypatch.setattr(
            f"torch.cuda.{name}", lambda *_, value=value: value
        )
    result = mathslm(
        "distill",
        *("--set", "hardware.device=cuda", "--set", "model.dtype=bfloat16"),
    )
    check_refused(result, "Tesla T4 has no bfloat16", "model.dtype=float16")


# --- models --------------------------------------------------------------


def test_a_model_that_does_not_exist_offline(mathslm):
    result = mathslm("distill", "--set", "model.id=nobody/nothing-1b")
    check_refused(result, "nobody/nothing-1b", "MATHSLM_MODEL_DIR")


def test_a_model_folder_that_does_not_exist(mathslm):
    result = mathslm("distill", "--set", "model.id=data/nowhere/model")
    check_refused(result, "There is no model folder")


def test_a_model_that_was_cut_off(mathslm, tmp_path, tiny_recipe):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_recipe.model.id, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    result = mathslm(
        "distill", "--tier", tmp_path / "tiny.yaml",
        "--set", f"model.id={folder}", "--run-dir", "new",
    )  # fmt: skip
    check_refused(result, "Cannot load a model from")


# --- checkpoints ---------------------------------------------------------


def make_checkpoint(folder, step):
    """Files as a trainer leaves them, sealed."""
    from helpers.base import seal_checkpoint

    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"a": torch.ones(99)}, path / "adapter_model.safetensors")
    torch.save({"a": torch.ones(99)}, path / "optimizer.pt")
    (path / "trainer_state.json").write_text(json.dumps({"step": step}))
    seal_checkpoint(path)
    return path


@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json"],
)
def test_a_half_written_checkpoint_gives_way_to_the_one_before(
    tmp_path, capsys, name
):
    from helpers.base import prepare_checkpoints
    from helpers.base.stage import STAMP

    folder, inputs = tmp_path / "checkpoints", {"rows": "1"}
    older, newer = (make_checkpoint(folder, step) for step in (10, 20))
    (folder / STAMP).write_text(json.dumps(inputs))
    assert prepare_checkpoints(folder, inputs) == str(newer)
    whole = (newer / name).read_bytes()
    (newer / name).write_bytes(whole[: len(whole) // 2])
    assert prepare_checkpoints(folder, inputs) == str(older)
    assert f"{name} was cut off" in capsys.readouterr().out
    assert newer.is_dir(), "it is left out, not deleted"
    shutil.rmtree(older)
    assert prepare_checkpoints(folder, inputs) is None


# --- the disk ------------------------------------------------------------

LIMITED = """\
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from helpers.cli import app
app({arguments!r})
"""


def run_limited(limit, *arguments):
    """``mathslm`` in a process that can write no file longer than this."""
    pytest.importorskip("resource", reason="POSIX only")
    code = LIMITED.format(limit=limit, arguments=[str(x) for x in arguments])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.slow
def test_a_disk_that_is_full_in_a_save(
    tmp_path, tiny_recipe, tokenizer, monkeypatch
):
    """SFT, then merge; the same commands go on when there is room."""
    pytest.importorskip("trl")
    sets = [word for text in FAST for word in ("--set", text)]
    options = ["--tier", tmp_path / "tiny.yaml", *sets]
    options += ["--run-dir", tmp_path / "run"]
    recipe = load_recipe(tmp_path / "tiny.yaml", FAST)
    run = RunDir.open(tmp_path / "run", recipe)
    write_sft_rows(run, tokenizer, n=16)
    write_pairs(run, tokenizer, n=8)
    for stage, limit in (("sft", 20_000), ("merge", 30_000)):
        before = list_files(run.path)
        done = run_limited(limit, stage, *options)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "the disk is full" in done.stderr, done.stderr
        after = list_files(run.path)
        assert {k: after[k] for k in before} == before
        assert f"stages/{stage}.json" not in {str(k) for k in after}
        assert run_limited(10**9, stage, *options).returncode == 0
    assert run.file("sft", "merged", "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(27, "File too large"), True),
        (OSError(13, "Permission denied"), False),
        (RuntimeError("PytorchStreamWriter failed writing file"), True),
        (RuntimeError("CUDA out of memory"), False),
        (KeyError("x"), False),
    ],
)
def test_a_full_disk_is_known_by_its_words(error, full):
    from helpers.base.records import is_full

    assert is_full(error) == full


def test_safetensors_own_words_for_a_full_disk(tmp_path):
    """What the guard must know, from the installed version."""
    resource = pytest.importorskip("resource", reason="POSIX only")
    np = pytest.importorskip("numpy")
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    from helpers.base import LabError, disk_errors
    from helpers.base.records import is_full

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises((SafetensorError, OSError)) as caught:
            save_file({"a": np.ones(9999)}, tmp_path / "x.safetensors")
        with (
            pytest.raises(LabError, match="the disk is full"),
            disk_errors(tmp_path),
        ):
            save_file({"a": np.ones(9999)}, tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert is_full(caught.value)


@pytest.mark.parametrize("command", ["distill", "evaluate", "seeding"])
def test_heads_that_do_not_divide_are_refused_before_data_is_asked_for(
    mathslm, tmp_path, command
):
    """28 heads over 8 cards; the recipe's data are on the hub."""
    size = ("--set", "engine.tensor_parallel_size=8")
    result = mathslm(command, "--tier", "h100x8", *size)
    check_refused(result, "28 attention heads are not divisible by 8")
    assert not list(tmp_path.rglob("*"))


def test_a_model_of_unknown_shape_is_not_refused_for_its_size(
    mathslm, tmp_path
):
    result = mathslm(
        "distill", "--tier", "pocket", "--set", "engine.name=vllm",
        "--set", "engine.tensor_parallel_size=2",
        "--set", "model.id=someone/unknown",
    )  # fmt: skip
    assert "no shape of" not in result.output
    assert result.exit_code == 2
