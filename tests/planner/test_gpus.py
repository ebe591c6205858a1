"""The cards of a machine, as nvidia-smi lists them."""

import pytest
from fake_cards import put_cards

from helpers.base import LabError, load_recipe
from helpers.planner import CARDS, Gpu, find_gpus, list_gpus
from helpers.planner import cards as table


def test_name_memory_and_capability_are_read(tmp_path, monkeypatch):
    put_cards(tmp_path, monkeypatch, 2, capability="8.6", gib=45.0)
    first, second = list_gpus()
    assert first == Gpu("0", 45.0, "NVIDIA H100", (8, 6))
    assert first.bf16 and "SM 8.6, 45.0 GiB, bf16 yes" in str(first)
    assert second.id == "1"
    assert not Gpu("0", 14.7, "Tesla T4", (7, 5)).bf16


def test_only_visible_cards_count(tmp_path, monkeypatch):
    put_cards(tmp_path, monkeypatch, 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-111")
    assert [gpu.id for gpu in list_gpus()] == ["3", "GPU-111"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert list_gpus() == []


def test_what_a_driver_does_not_know_is_left_open(tmp_path, monkeypatch):
    put_cards(tmp_path, monkeypatch, 1, capability="[N/A]")
    (gpu,) = list_gpus()
    assert gpu.capability is None and not gpu.bf16


def test_a_machine_without_a_driver_has_no_card(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert list_gpus() == []
    recipe = load_recipe("pocket", ["hardware.device=cuda"])
    with pytest.raises(LabError, match="nvidia-smi finds no card"):
        find_gpus(recipe)


@pytest.mark.parametrize(
    "row",
    ["{name: X, memory_gib: 8}", "{name: X, memory_gib: 8, tflop: 1}"],
    ids=["incomplete", "misspelt"],
)
def test_a_wrong_row_of_the_table_is_refused(row, tmp_path, monkeypatch):
    (tmp_path / "cards.yaml").write_text(f"- {row}\n")
    monkeypatch.setattr(table, "FILE", tmp_path / "cards.yaml")
    with pytest.raises(ValueError, match="bandwidth_gb_s"):
        table.read_cards()
    assert CARDS["H200"].memory_gib == 143771 / 1024
