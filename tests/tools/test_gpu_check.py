"""make gpu-check: every piece runs at toy size; what it refuses.

These runs show that the code works. They measure nothing: a toy model on a
CPU says nothing about a GPU.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("trl")

import torch

from helpers.base import LabError, read_json, write_json
from tools import gpu_check
from tools.gpu_check import bodies, run_check, run_piece, training
from tools.gpu_check.pieces import PIECES

LIGHT = {"vllm-freed", "decode"}
TRAINED = [name for name in PIECES if name.startswith(("sft", "t4"))]


def slow_ones():
    """All pieces; the heavier ones marked slow."""
    return [
        name if name in LIGHT else pytest.param(name, marks=pytest.mark.long)
        for name in PIECES
    ]


@pytest.mark.parametrize("name", slow_ones())
def test_every_piece_runs_at_toy_size(name, tmp_path, pocket_model):
    if name.startswith("t4"):
        pytest.importorskip("bitsandbytes")
    found = run_piece(name, tmp_path, "tiny")
    assert read_json(tmp_path / f"{name}.json") == found
    assert found["shape"] == "tiny"
    assert "out_of_memory" not in found
    assert "versions" in read_json(tmp_path / "manifest.json")
    if name in TRAINED:
        assert found["tokens_per_second"] > 0 and found["planned_gib"] > 0
        if not torch.cuda.is_available():
            assert found["mfu"] is None and found["peak_gib"] is None
    if name == "smol":
        assert set(found["scores"]) >= {"evaluate/base", "evaluate/dpo"}
    if name == "dpo-7b":
        for way in ("precomputed", "on the way"):
            assert found[way]["over_sft_step"] > 0
    if name == "decode":
        assert found["new_tokens"] > found["rows"]


def test_without_cuda_it_refuses_in_one_message(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    words = [sys.executable, "-m", "tools.gpu_check", "--out", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    (line, *rest) = done.stderr.strip().splitlines()
    assert "needs a CUDA card" in line
    assert "Traceback" not in done.stderr and len(rest) <= 3
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(LabError, match="no piece 'x'"):
        run_check(tmp_path, "tiny", ["x"])
    for folder in (None, gpu_check.RESULTS):
        with pytest.raises(LabError, match="Toy results"):
            run_check(folder, "tiny", ["decode"])


def test_it_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    asked = []

    def run(words, env):
        name = words[words.index("--piece") + 1]
        asked.append(name)
        if name == "smol":
            return subprocess.CompletedProcess(words, 1)
        write_json(tmp_path / f"{name}.json", {})
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(gpu_check.subprocess, "run", run)
    assert run_check(tmp_path, "tiny") == ["smol"]
    assert asked == list(PIECES)
    asked.clear()
    assert run_check(tmp_path, "tiny") == ["smol"]
    assert asked == ["smol"]
    assert "decode: there already" in capsys.readouterr().out
    assert run_check(tmp_path, "tiny", ["decode"], force=True) == []
    assert asked == ["smol", "decode"]


def test_out_of_memory_is_a_result_and_other_errors_are_not(
    tmp_path, monkeypatch
):
    def fail(setting):
        raise errors.pop()

    errors = [ValueError("no"), torch.OutOfMemoryError("CUDA out of memory.")]
    monkeypatch.setitem(PIECES, "decode", fail)
    found = run_piece("decode", tmp_path, "tiny")
    assert found["out_of_memory"] == "CUDA out of memory."
    with pytest.raises(ValueError, match="no"):
        run_piece("decode", tmp_path, "tiny")


def test_two_machines_do_not_share_a_folder(tmp_path):
    gpu_check.write_manifest(tmp_path)
    gpu_check.write_manifest(tmp_path)
    made = read_json(tmp_path / "manifest.json") | {"gpu": "another"}
    write_json(tmp_path / "manifest.json", made)
    with pytest.raises(LabError, match="another"):
        gpu_check.write_manifest(tmp_path)


@pytest.mark.parametrize(
    ("name", "gib", "card"),
    [
        ("NVIDIA H100 80GB HBM3", 79.2, "H100"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "A100 80GB"),
        ("NVIDIA GeForce RTX 3090", 23.6, "RTX 3090"),
        ("Tesla T4", 14.6, "T4"),
        ("NVIDIA H200", 139.8, "H200"),
        ("NVIDIA L4", 22.0, None),
    ],
)
def test_the_card_is_found_by_torchs_name(name, gib, card, monkeypatch):
    from types import SimpleNamespace

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(
        cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(total_memory=gib * 2**30),
    )
    found = training.find_this_card()
    assert (found and found.name) == card


def test_rows_fill_their_length_to_the_token(pocket_model):
    tokenizer = bodies.load_tokenizer(bodies.TOKENIZER)
    for row in bodies.make_rows(tokenizer, [40, 64, 200]):
        ids = tokenizer(row.prompt + row.completion, add_special_tokens=False)
        assert len(ids["input_ids"]) + 1 in (40, 64, 200)
