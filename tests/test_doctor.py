"""The doctor: findings for machines that are described, not owned."""

import dataclasses

import pytest

from helpers import doctor, machine
from helpers.base import load_recipe

T4 = doctor.Gpu("0", 14.7, "Tesla T4", (7, 5))
A100 = doctor.Gpu("1", 39.4, "A100", (8, 0))
LAPTOP = doctor.Machine(
    python=(3, 12, 1),
    cores=2,
    memory_gib=8.0,
    available_gib=6.0,
    disk_gib=20.0,
    versions=doctor.read_constraints(),
)


def change(**fields):
    """The laptop with other fields."""
    return dataclasses.replace(LAPTOP, **fields)


def find_line(machine, name):
    """The line of this name."""
    report = doctor.judge_machine(machine)
    return next(line for line in report.lines if line.name == name)


@pytest.fixture(autouse=True)
def model_is_there(monkeypatch):
    """These tests are about machines, not about the shipped model."""
    monkeypatch.setattr(doctor, "has_model", lambda model_id: True)


def test_a_laptop_is_enough():
    report = doctor.judge_machine(LAPTOP)
    assert report.ok, str(report)
    assert find_line(LAPTOP, "tier pocket").status == "OK"


@pytest.mark.parametrize(
    ("machine", "name", "status"),
    [
        (change(python=(3, 10, 9)), "python", "FAIL"),
        (change(memory_gib=1.0), "tier pocket", "FAIL"),
        (change(available_gib=0.5), "memory", "WARN"),
        (change(disk_gib=0.2), "disk", "WARN"),
        (change(versions={"torch": None}), "torch", "FAIL"),
        (change(versions={"torch": "2.0.0"}), "torch", "WARN"),
        (change(versions={"torch": "2.13.0+cpu"}), "torch", "OK"),
    ],
)
def test_each_lack_has_its_line(machine, name, status):
    assert find_line(machine, name).status == status
    assert doctor.judge_machine(machine).ok == (status != "FAIL")


def test_every_line_starts_with_its_status():
    for line in str(doctor.judge_machine(LAPTOP)).splitlines():
        assert line.startswith(("[OK]", "[WARN]", "[FAIL]"))


def test_bf16_is_yes_or_no_with_the_reason():
    assert not T4.bf16 and "bf16 no (older than Ampere" in str(T4)
    assert A100.bf16 and "bf16 yes" in str(A100)
    shown = find_line(change(gpus=(T4, A100)), "gpu 1").text
    assert "A100" in shown and "SM 8.0" in shown


def test_gpu_tiers_count_cards_and_number_formats():
    needs_two = load_recipe(
        "pocket",
        [
            "hardware.device=cuda",
            "hardware.cards=2",
            "model.dtype=bfloat16",
        ],
    )
    assert doctor.find_obstacles(needs_two, change(gpus=(A100, A100))) == []
    (few,) = doctor.find_obstacles(needs_two, change(gpus=(A100,)))
    assert "needs 2 CUDA GPU(s), found 1" in few
    (old,) = doctor.find_obstacles(needs_two, change(gpus=(A100, T4)))
    assert "Tesla T4 has no bf16" in old


def test_device_auto_is_the_card_that_torch_can_use():
    sets = ["model.dtype=bfloat16", "hardware.device=auto"]
    recipe = load_recipe("pocket", sets)
    (old,) = doctor.find_obstacles(recipe, change(gpus=(T4,)))
    assert "Tesla T4 has no bf16" in old
    assert doctor.find_obstacles(recipe, change(gpus=(A100,))) == []
    unused = change(gpus=(T4,), torch_cuda=False)
    assert doctor.find_obstacles(recipe, unused) == []
    assert doctor.find_obstacles(recipe, LAPTOP) == []


def test_a_missing_shipped_model_stops_the_default_tier(monkeypatch):
    monkeypatch.setattr(doctor, "has_model", lambda model_id: False)
    line = find_line(LAPTOP, "tier pocket")
    assert line.status == "FAIL" and "is missing" in line.text


def test_this_machine_agrees_with_psutil_and_torch(tmp_path):
    import psutil
    import torch

    found = doctor.inspect_machine(tmp_path)
    assert 1 <= found.cores <= psutil.cpu_count()
    total = psutil.virtual_memory().total / doctor.GIB
    assert 0 < found.available_gib <= found.memory_gib <= total
    assert len(found.gpus) == torch.cuda.device_count()
    assert found.versions["torch"] == torch.__version__


def test_doctor_works_without_torch(monkeypatch):
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    assert doctor.inspect_accelerators() == ((), False)


def test_constraints_are_read():
    tested = doctor.read_constraints()
    assert tested["torch"] == "2.13.0"
    assert set(doctor.REQUIRED) <= set(tested)
