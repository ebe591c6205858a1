"""The ablation of multi-source SFT: arms differ in one thing each."""

from __future__ import annotations

import json

import pytest

from helpers.base import (
    LabError,
    Problem,
    SftRow,
    load_recipe,
    read_json,
    read_records,
    write_json,
    write_records,
)
from helpers.experiments import ablation
from helpers.experiments.ablation import REFERENCE, list_arms, run_ablation

SHORT = (
    "sft.max_length=400",
    "sft.max_steps=2",
    "sft.effective_batch=4",
    "sft.per_device_batch=4",
    "sft.min_steps_per_epoch=1",
)


def write_pool(folder, name, start):
    """Twenty sums with worked solutions."""
    path = folder / f"{name}.jsonl"
    rows = [
        Problem(
            id=f"{name}{i}",
            problem=f"Give {name} number {i} and {start}.",
            answer=str(i + start),
            solution=f"{i} + {start} = {i + start}",
        )
        for i in range(20)
    ]
    write_records(path, rows)
    return str(path)


@pytest.fixture
def sets(tmp_path, tiny_recipe):
    """Overrides: two sources of solutions and a very short training."""
    mix = {write_pool(tmp_path, f"s{k}", 100 * k): 12 for k in (1, 2)}
    return (f"solutions.mix={json.dumps(mix)}", *SHORT)


def test_each_arm_changes_one_thing(tmp_path, sets):
    tier = tmp_path / "tiny.yaml"
    first, *rest = list_arms(load_recipe(tier, sets))
    assert first.name == REFERENCE and not first.sets
    plain = load_recipe(tier, sets).model_dump()
    for arm in rest:
        other = load_recipe(tier, [*sets, *arm.sets]).model_dump()
        differ = [key for key in plain if plain[key] != other[key]]
        assert len(arm.sets) == 1 and len(differ) == 1, (arm, differ)


def test_one_source_has_as_many_rows(tmp_path, sets):
    recipe = load_recipe(tmp_path / "tiny.yaml", sets)
    alone = load_recipe(
        tmp_path / "tiny.yaml", [*sets, *list_arms(recipe)[1].sets]
    )
    assert len(alone.solutions.mix) == 1
    assert sum(alone.solutions.mix.values()) == 24


def test_flaws_are_named(tmp_path, sets):
    tier = tmp_path / "tiny.yaml"
    arms = {a.name: a for a in list_arms(load_recipe(tier, sets))}
    for name, arm in arms.items():
        flaws = load_recipe(tier, [*sets, *arm.sets]).sft_flaws
        expected = name in (
            "no chat format in training",
            "prompts are learnt too",
        )
        assert bool(flaws) == expected, (name, flaws)


def test_one_source_cannot_be_taken_apart(tmp_path, tiny_recipe):
    with pytest.raises(LabError, match="names 0 sources"):
        list_arms(tiny_recipe)


def test_an_unknown_arm_is_refused(tmp_path, sets):
    with pytest.raises(LabError, match="no arm 'none'"):
        run_ablation(
            str(tmp_path / "tiny.yaml"), tmp_path / "a", (1,), sets, ["none"]
        )


@pytest.fixture
def quick(monkeypatch):
    """Arms that train nothing and say which seed they had."""
    monkeypatch.setattr(ablation, "run_arm", lambda r, *_: r.seed)
    monkeypatch.setattr(ablation, "measure_arm", lambda run, _: {"run": run})


def test_a_table_goes_on_with_other_seeds(tmp_path, sets, quick):
    tier, folder = str(tmp_path / "tiny.yaml"), tmp_path / "a"
    run_ablation(tier, folder, (1,), sets)
    done = run_ablation(tier, folder, (2,), sets)
    assert list(done["seeds"]) == ["1", "2"]
    assert read_json(folder / "ablation.json")["seeds"] == done["seeds"]


OTHER = {
    "in the table": ("sft.epochs=7", "sft: epochs is"),
    "not among its short settings": ("sft.max_steps=3", "max_steps is 2"),
}


@pytest.mark.parametrize("name", OTHER)
def test_rows_of_other_settings_are_not_mixed(tmp_path, sets, quick, name):
    tier, folder = str(tmp_path / "tiny.yaml"), tmp_path / "a"
    override, message = OTHER[name]
    run_ablation(tier, folder, (1,), sets)
    before = (folder / "ablation.json").read_bytes()
    with pytest.raises(LabError, match=message) as error:
        run_ablation(tier, folder, (2,), (*sets, override))
    assert "--run-dir" in error.value.fix
    assert (folder / "ablation.json").read_bytes() == before


def test_the_order_of_the_sources_is_a_setting(tmp_path, sets, quick):
    """The first is the one source of the second arm."""
    tier, folder = str(tmp_path / "tiny.yaml"), tmp_path / "a"
    run_ablation(tier, folder, (1,), sets)
    mix = json.loads(sets[0].removeprefix("solutions.mix="))
    turned = json.dumps(dict(reversed(mix.items())))
    with pytest.raises(LabError, match="arms: one source is"):
        run_ablation(tier, folder, (2,), (f"solutions.mix={turned}", *SHORT))


def test_a_table_of_before_is_read_and_claims_no_more(tmp_path, sets, quick):
    tier, folder = str(tmp_path / "tiny.yaml"), tmp_path / "a"
    path = folder / "ablation.json"
    old = run_ablation(tier, folder, (1,), sets)
    del old["recipe"]
    write_json(path, old)
    done = run_ablation(tier, folder, (2,), sets)
    assert done.keys() == {"manifest", "settings", "arms", "seeds"}
    assert done["seeds"]["1"] == old["seeds"]["1"] and "2" in done["seeds"]
    with pytest.raises(LabError, match="settings: epochs is"):
        run_ablation(tier, folder, (3,), (*sets, "sft.epochs=7"))


@pytest.mark.slow
def test_the_table_is_what_the_runs_say(tmp_path, sets, capsys):
    tier, folder = str(tmp_path / "tiny.yaml"), tmp_path / "ablation"
    done = run_ablation(tier, folder, (7,), sets)
    row = done["seeds"]["7"]
    assert list(row) == [a.name for a in list_arms(load_recipe(tier, sets))]
    for name, arm in row.items():
        change = arm["change"]["bench"]
        assert arm["sft"]["bench"]["n"] == 8
        old = row[REFERENCE]["base" if name == REFERENCE else "sft"]["bench"]
        net = arm["sft"]["bench"]["k"] - old["k"]
        assert change["won"] - change["lost"] == net
        assert sum(arm["rows"].values()) == (
            24 if name != "one source" else 20
        )
    rows = read_records(
        folder / "no-chat-format-in-training-7" / "solutions.jsonl", SftRow
    )
    assert all("<|user|>" not in r.prompt for r in rows)
    told = capsys.readouterr().out
    assert "Not checked, an ablation: the prompts are learnt too." in told
    again = run_ablation(tier, folder, (7,), sets)
    assert again["seeds"] == done["seeds"]
    assert "sft is done" in capsys.readouterr().out
