"""Every guard is called by a real run: seen, not read.

A tiny run goes through distillation, SFT, DPO and both merges; planner,
placement and doctor are asked beside it. Each guard is wrapped by a spy that
notes who calls it.
"""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

pytest.importorskip("trl")

from fake_cards import put_cards
from training_rows import write_pairs, write_sft_rows

from helpers.base import GUARDS, RunDir, load_recipe

FAST = (
    "harvest.min_distinct_fraction=0",
    "sft.per_device_batch=4",
    "sft.effective_batch=8",
    "sft.epochs=1",
    "sft.min_steps_per_epoch=1",
    "dpo.per_device_batch=4",
    "dpo.effective_batch=4",
    "dpo.epochs=1",
)


class Spy:
    """A guard that also notes that it was called."""

    def __init__(self, check, seen):
        self.check, self.seen = check, seen
        self.__name__, self.__doc__ = check.__name__, check.__doc__

    def __call__(self, *arguments, **options):
        self.seen.add(self.check.__name__)
        return self.check(*arguments, **options)


@pytest.fixture
def seen(monkeypatch):
    """Names of the guards that were called; in helpers each is a spy.

    All callers are imported first: one imported later would keep a spy.
    """
    for name in ("doctor", "preflight", "stages.trainer"):
        import_module(f"helpers.{name}")
    calls = set()
    checks = {guard.check: Spy(guard.check, calls) for guard in GUARDS}
    for title, module in list(sys.modules.items()):
        if not title.startswith("helpers"):
            continue
        for name, value in list(vars(module).items()):
            if callable(value) and value in checks:
                monkeypatch.setattr(module, name, checks[value])
    return calls


def run_stages(recipe, run, tokenizer):
    """Distil, train, merge, train, merge; tiny."""
    from helpers.stages import run_distill, run_dpo, run_merge, run_sft

    run_distill(recipe, run)
    run_distill(recipe, run)  # loaded: is it of the same inputs?
    write_sft_rows(run, tokenizer, n=16)
    write_pairs(run, tokenizer, n=8)
    run_sft(recipe, run)
    run_merge(recipe, run, "sft")
    run_dpo(recipe, run)
    run_merge(recipe, run, "dpo")


def ask_the_rest(tmp_path, monkeypatch):
    """Planner, placement of servers, precision of a card, doctor."""
    import torch

    from helpers.models.load import explain_precision
    from helpers.planner import find_gpus, plan
    from helpers.sampling.vllm_serve import place_replicas, read_model_shape

    put_cards(tmp_path, monkeypatch, 8)
    recipe = load_recipe("h100x8-published")
    plan(recipe, has_token=True)
    shape = read_model_shape(recipe.model.id, None)
    place_replicas(recipe, shape, find_gpus(recipe))
    for name, value in (
        ("get_device_name", "NVIDIA H100"),
        ("get_device_capability", (9, 0)),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    explain_precision(recipe, "cuda")


def test_every_guard_is_called(
    tmp_path, tiny_recipe, tokenizer, seen, monkeypatch
):
    recipe = load_recipe(tmp_path / "tiny.yaml", FAST)
    run = RunDir.open(tmp_path / "run", recipe)
    run_stages(recipe, run, tokenizer)
    ask_the_rest(tmp_path, monkeypatch)
    ask_the_doctor(tmp_path, run, recipe, monkeypatch)
    assert seen == {guard.name for guard in GUARDS}


def ask_the_doctor(tmp_path, run, recipe, monkeypatch):
    """Both a recipe that runs here and one for eight cards."""
    from helpers.preflight import run_preflight

    put_cards(tmp_path, monkeypatch, 8)
    report = run_preflight(recipe, run.path)
    assert any(line.name == "tokenizer" for line in report.lines)
    other = recipe.model_copy(update={"seed": recipe.seed})
    run_preflight(other, run.path)
    changes = ["engine.tensor_parallel_size=4"]
    run_preflight(load_recipe("h100x8", changes), tmp_path / "new")


def test_the_doctor_runs_the_guards_that_the_table_promises(
    tmp_path, tiny_recipe, run, seen, monkeypatch
):
    with run.stage("sft", {"recipe": "another"}):
        run.file("kept").write_text("x")
    seen.clear()
    ask_the_doctor(tmp_path, run, tiny_recipe, monkeypatch)
    promised = {guard.name for guard in GUARDS if guard.doctor}
    assert seen == promised
