"""The pieces of the check, by name."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from helpers.base import LabError, Recipe, RunDir, load_recipe
from helpers.models import free_memory, load_model
from helpers.planner import estimate_decode_step
from helpers.sampling import SampleRequest, make_engine, open_engine
from helpers.session import run_stage
from helpers.stages import dpo, list_dependencies, sft
from tools.gpu_check import bodies
from tools.gpu_check.training import (
    compare_with_plan,
    find_this_card,
    measure_steps,
    read_clock,
    read_peak,
)

SEVEN = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
STEPS = 8  # of which the first ones warm up
# What a recipe becomes on toy models: short rows, small batches, any device.
TINY_SETS = (
    "model.dtype=float32",
    "hardware.device=cpu",
    "hardware.card=null",
    "sft.max_length=64",
    "sft.effective_batch=2",
    "sft.per_device_batch=2",
    "dpo.max_length=64",
    "dpo.effective_batch=2",
    "dpo.per_device_batch=2",
)
QUICK_POCKET = (
    "data.n_problems=6",
    "harvest.min_pairs=0",
    "sampling.max_new_tokens=48",
    "evaluate.max_new_tokens=48",
    "sft.min_steps_per_epoch=0",
    "sft.max_steps=2",
    "dpo.max_steps=2",
    "evaluate.benchmarks=[{name: easy, path: pocket/easy.jsonl, n: 4}]",
    "evaluate.main=easy",
)


@dataclass(frozen=True)
class Setting:
    """Toy or true shapes, and where results and runs go."""

    tiny: bool
    folder: Path

    @property
    def steps(self) -> int:
        """Training steps of one measurement."""
        return 3 if self.tiny else STEPS

    def load(self, tier: str, *sets: str) -> Recipe:
        """A recipe as this setting runs it, on one card."""
        tail = TINY_SETS if self.tiny else ("hardware.cards=1",)
        return load_recipe(tier, [*sets, "model.ladder=null", *tail])


def check_smol(setting: Setting) -> dict[str, Any]:
    """The whole pipeline of tier smol; seconds and scores of each stage."""
    name = "pocket" if setting.tiny else "smol"
    recipe = load_recipe(name, QUICK_POCKET if setting.tiny else ())
    run = RunDir.open(setting.folder / f"run-{name}", recipe)
    done: list[str] = []

    def provide(stage: str) -> None:
        for earlier in list_dependencies(recipe, stage):
            provide(earlier)
        if stage not in done:
            run_stage(run, stage)
            done.append(stage)

    for stage in ("evaluate/base", "evaluate/sft", "merge/dpo"):
        provide(stage)
    pairs = run.metrics()["dpo"]["pairs"]
    provide("evaluate/dpo")
    return {
        "tier": recipe.name,
        "stages": {p["phase"]: p["seconds"] for p in run.ledger()},
        "pairs": pairs,
        "scores": {s: run.metrics()[s] for s in done if "evaluate" in s},
        "peak_gib": read_peak(),
    }


def check_t4(setting: Setting, tier: str) -> dict[str, Any]:
    """QLoRA at a T4 recipe's settings: peak memory against its 16 GB."""
    asked = load_recipe(tier)
    shape = bodies.find_body_shape(asked.model.id, setting.tiny)
    with tempfile.TemporaryDirectory() as name:
        body = Path(name) / "body"
        bodies.save_body(asked.model.id, body, tiny=setting.tiny)
        recipe = setting.load(tier, f"model.id={body}")
        model, tokenizer = load_model(recipe, training=True)
        found = train_sft(setting, recipe, model, tokenizer)
    recipe = setting.load(tier)  # the planner knows the model by its id
    found = compare_with_plan(recipe, shape, "sft", found)
    peak = found["peak_gib"]
    return found | {
        "tier": tier,
        "fits_t4": None if peak is None else peak < 15360 / 1024 * 0.95,
    }


def train_sft(
    setting: Setting,
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    *,
    full_logits: bool = False,
    mixed: bool = False,
) -> dict[str, Any]:
    """Measured SFT steps on rows that fill ``max_length``.

    ``mixed``: rows of a quarter to the whole of it, as a harvest has them.
    """
    longest, batch = recipe.sft.max_length, recipe.sft.effective_batch
    many = setting.steps * batch
    if mixed:
        lengths = [longest * (2 + i % 7) // 8 for i in range(2 * many)]
    else:
        lengths = [longest] * many
    rows = bodies.make_rows(tokenizer, lengths)
    with tempfile.TemporaryDirectory() as folder:
        trainer = sft.build_trainer(
            recipe, model, tokenizer, rows, Path(folder), setting.steps
        )
        return measure_steps(trainer, full_logits=full_logits)


def check_sft_7b(
    setting: Setting,
    *,
    checkpointing: bool,
    full_logits: bool = False,
    packing: bool = False,
    mixed: bool = False,
) -> dict[str, Any]:
    """LoRA SFT of the 7B at 2 × 2,048 tokens in bf16, one way of many."""
    recipe = setting.load(
        "h100x8",
        "sft.max_length=2048",
        "sft.per_device_batch=2",
        "sft.effective_batch=2",
        "hardware.strategy=ddp",
        f"sft.gradient_checkpointing={checkpointing}",
        f"sft.packing={packing}",
    )
    model, tokenizer = build_seven(setting, recipe)
    found = train_sft(
        setting,
        recipe,
        model,
        tokenizer,
        full_logits=full_logits,
        mixed=mixed,
    )
    shape = bodies.find_body_shape(SEVEN, setting.tiny)
    return compare_with_plan(recipe, shape, "sft", found) | {
        "gradient_checkpointing": checkpointing,
        "loss": "all logits" if full_logits else "tiled head",
        "batches": "packed, padding-free" if packing else "padded",
        "rows": "a quarter to full length" if mixed else "full length",
    }


def build_seven(setting: Setting, recipe: Recipe) -> tuple[Any, Any]:
    """The 7B with random weights where the recipe wants it."""
    device = "cpu" if setting.tiny else "cuda"
    return bodies.build_body(
        SEVEN, recipe.model.dtype, device, tiny=setting.tiny
    )


def check_dpo_7b(setting: Setting) -> dict[str, Any]:
    """A DPO step over an SFT step of as many rows as it has pairs.

    The reference beforehand and on the way; beforehand costs its own time.
    """
    sets = []
    for part in ("sft", "dpo"):
        sets += [
            f"{part}.max_length=2048",
            f"{part}.per_device_batch=2",
            f"{part}.effective_batch=2",
            f"{part}.gradient_checkpointing=true",
        ]
    recipe = setting.load("h100x8", "hardware.strategy=ddp", *sets)
    model, tokenizer = build_seven(setting, recipe)
    alone = train_sft(setting, recipe, model, tokenizer)
    found: dict[str, Any] = {"sft_step_seconds": alone["step_seconds"]}
    del model
    for ahead in (True, False):
        free_memory()
        model, tokenizer = build_seven(setting, recipe)
        name = "precomputed" if ahead else "on the way"
        found[name] = train_dpo(setting, recipe, model, tokenizer, ahead)
        ratio = found[name]["step_seconds"] / alone["step_seconds"]
        found[name]["over_sft_step"] = round(ratio, 3)
        del model
    return found


def train_dpo(
    setting: Setting, recipe: Recipe, model: Any, tokenizer: Any, ahead: bool
) -> dict[str, Any]:
    """Measured DPO steps; ``ahead``: reference log p before training."""
    config = recipe.dpo.model_copy(update={"precompute_ref_log_probs": ahead})
    many = setting.steps * config.effective_batch
    pairs = bodies.make_pairs(tokenizer, [config.max_length] * many)
    with tempfile.TemporaryDirectory() as folder:
        clock = read_clock()
        trainer = dpo.build_trainer(
            recipe,
            config,
            model,
            tokenizer,
            pairs,
            Path(folder),
            setting.steps,
        )
        built = read_clock() - clock
        found = measure_steps(trainer)
    return found | {"seconds_before_training": round(built, 2)}


def check_decode(setting: Setting) -> dict[str, Any]:
    """Decoding of the in-process engine at batch 256 against the roofline."""
    rows, new, prompt = (8, 16, 8) if setting.tiny else (256, 256, 128)
    recipe = setting.load("h100x8", f"engine.max_batch_size={rows}")
    model, tokenizer = build_seven(setting, recipe)
    engine = make_engine(recipe, model, tokenizer)
    text = bodies.fill_text(tokenizer, "", prompt + 1)
    asked = [make_request(text, new, number) for number in range(rows)]
    list(engine.sample(asked[:2]))  # warm up
    clock = read_clock()
    texts = list(engine.sample(asked))
    seconds = read_clock() - clock
    speed = sum(t.tokens for t in texts) / seconds
    found = {
        "rows": rows,
        "new_tokens": sum(t.tokens for t in texts),
        "tokens_per_second": round(speed, 1),
        "peak_gib": read_peak(),
        "roofline_tokens_per_second": None,
    }
    if card := find_this_card():
        shape = bodies.find_body_shape(SEVEN, setting.tiny)
        step = estimate_decode_step(
            shape, 1, card, sequences=rows, context=prompt + new / 2
        )
        found["roofline_tokens_per_second"] = round(rows / step, 1)
        found["share_of_roofline"] = round(speed * step / rows, 4)
    engine.close()
    return found


def make_request(text: str, new: int, number: int = 0) -> SampleRequest:
    """One sample at temperature 1 of so many tokens at most."""
    return SampleRequest(
        problem_id=str(number),
        sample=0,
        prompt=text,
        seed=number,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=new,
    )


def check_vllm(setting: Setting) -> dict[str, Any]:
    """Free memory of the card before, during and after a vLLM stage."""
    import torch

    from helpers.sampling import find_command

    recipe = setting.load("smol", "engine.name=vllm")
    try:
        find_command(recipe)
    except LabError as error:
        return {"skipped": error.what}
    if not torch.cuda.is_available():
        return {"skipped": "no card whose memory could be freed"}

    def read_free() -> float:
        return round(torch.cuda.mem_get_info()[0] / 2**30, 3)

    before = read_free()
    with open_engine(recipe, log_dir=setting.folder / "logs") as engine:
        list(engine.sample([make_request("What is 1 + 2?", 16)]))
        during = read_free()
    for _ in range(50):  # the driver takes a moment after the process is gone
        if (after := read_free()) >= before - 0.5:
            break
        time.sleep(0.2)
    return {
        "free_before_gib": before,
        "free_during_gib": during,
        "free_after_gib": after,
        "freed": after >= before - 0.5,
    }


PIECES: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "smol": check_smol,
    "t4-tinyllama": partial(check_t4, tier="t4"),
    "t4-llama": partial(check_t4, tier="t4-llama"),
    "sft-7b-checkpointing": partial(check_sft_7b, checkpointing=True),
    "sft-7b-open": partial(check_sft_7b, checkpointing=False),
    "sft-7b-checkpointing-full-logits": partial(
        check_sft_7b, checkpointing=True, full_logits=True
    ),
    "sft-7b-open-full-logits": partial(
        check_sft_7b, checkpointing=False, full_logits=True
    ),
    "sft-7b-mixed-padded": partial(
        check_sft_7b, checkpointing=True, mixed=True
    ),
    "sft-7b-mixed-packed": partial(
        check_sft_7b, checkpointing=True, mixed=True, packing=True
    ),
    "dpo-7b": check_dpo_7b,
    "decode": check_decode,
    "vllm-freed": check_vllm,
}
