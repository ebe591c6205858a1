"""The GPU tiers' own recipes, from the rows to the report, on stand-ins.

No weights of the hub are needed: a random model of two layers, with a
tokenizer and a chat format as the tier's model has them, goes through every
stage with the settings of the recipe, but for sizes and precision. What it
answers is worth nothing; that the stages fit together is the point.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("trl")

from tiny_models import make_llama_tokenizer, make_tiny_model, make_tokenizer
from tokenizers import models, pre_tokenizers

from helpers.base import (
    Completion,
    PairRow,
    Problem,
    RunDir,
    SftRow,
    group_samples,
    load_recipe,
    read_records,
    write_records,
)
from helpers.grading.completions import GradedCompletion
from helpers.models import check_template, render_prompt, save_tokenizer
from helpers.stages import (
    find_rows,
    harvest_pairs,
    run_dpo,
    run_evaluate,
    run_merge,
    run_sft,
    run_solutions,
)

R1 = "deepseek_r1_distill", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
LLAMA = "llama3_2", "<|begin_of_text|>", "<|eot_id|>"
PROBLEMS = [
    Problem(
        id=f"sum-{i}",
        problem=f"What is {i} + {i + 2}?",
        answer=str(2 * i + 2),
        solution=f"We add {i} and {i + 2}.\n#### {2 * i + 2}",
        source="test",
    )
    for i in range(24)
]

TESTED = [
    Problem(
        id=f"product-{i}",
        problem=f"Multiply {i + 30} by three and say what you get.",
        answer=str(3 * i + 90),
        source="test",
    )
    for i in range(6)
]


def make_stand_in(chat, bos, end):
    """Bytes as tokens, a chat format of TRL's, two line breaks as one."""
    package = Path(importlib.util.find_spec("trl").origin).parent
    file = package / "chat_templates" / f"{chat}.jinja"
    tokenizer = make_tokenizer()
    words, backend = tokenizer.get_vocab(), tokenizer.backend_tokenizer
    backend.model = models.BPE(
        vocab={**words, "ĊĊ": len(words)}, merges=[("Ċ", "Ċ")]
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.add_special_tokens({"bos_token": bos, "eos_token": end})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = file.read_text("utf-8")
    return tokenizer


TIERS = {
    "t4": make_llama_tokenizer,
    "t4-7b": lambda: make_llama_tokenizer(legacy=True),
    "rtx3090": lambda: make_stand_in(*LLAMA),
    "t4-r1": lambda: make_stand_in(*R1),
    "a40x4": lambda: make_stand_in(*R1),
    "h100x8": lambda: make_stand_in(*R1),
}
# On every commit: a chat format of Llama, and one that opens the reasoning.
OFTEN = ("rtx3090", "h100x8")


@pytest.fixture(
    params=[
        pytest.param(name, marks=() if name in OFTEN else pytest.mark.long)
        for name in TIERS
    ]
)
def tier(request, tmp_path):
    """(recipe of the tier on a stand-in, its tokenizer, a run folder)."""
    tokenizer = TIERS[request.param]()
    folder = tmp_path / "model"
    model = make_tiny_model(len(tokenizer))
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.max_position_embeddings = 2048
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    file, other = tmp_path / "sums.jsonl", tmp_path / "products.jsonl"
    write_records(file, PROBLEMS)
    write_records(other, TESTED)
    benchmark = f"{{name: products, path: {other}, n: 6, role: GSM8K}}"
    sets = [
        f"model.id={folder}",
        "model.dtype=float32",
        "model.quantization=null",
        "model.merged_quantization=null",
        "model.ladder=false",
        "hardware.device=cpu",
        "hardware.cards=1",
        "engine.name=transformers",
        f"data.train={file}",
        f"data.dev={other}",
        "data.n_problems=4",
        "sampling.max_new_tokens=8",
        "harvest.min_pairs=0",
        "sft.lora.layers=null",
        "sft.max_length=768",
        "sft.epochs=1",
        "sft.effective_batch=8",
        "sft.per_device_batch=4",
        "sft.min_steps_per_epoch=1",
        "sft.optim=adamw_torch",
        "dpo.lora.layers=null",
        "dpo.max_length=768",
        "dpo.epochs=1",
        "dpo.effective_batch=8",
        "dpo.per_device_batch=4",
        "dpo.optim=adamw_torch",
        "dpo_variants={published: {learning_rate: 5.0e-7, max_steps: 2}}",
        f"evaluate.benchmarks=[{benchmark}]",
        "evaluate.main=products",
        "evaluate.max_new_tokens=8",
    ]
    own = load_recipe(request.param)
    if own.solutions:
        lost = ", ".join(f"{name}: 0" for name in own.solutions.mix)
        sets.append(f"solutions.mix={{{lost}, {file}: 16}}")
    recipe = load_recipe(request.param, sets)
    return recipe, tokenizer, RunDir.open(tmp_path / "run", recipe)


def write_harvest(recipe, tokenizer, run):
    """Rows and pairs as a harvest of right and wrong answers gives them.

    Some begin with a line break, some reason first where the prompt has
    opened the reasoning.
    """

    def answer(number, value):
        text = f"It is \\boxed{{{value}}}."
        if "</think>" in tokenizer.get_vocab() and number % 2:
            text = f"We add.\n</think>\n\n{text}"
        return f"\n{text}" if number % 3 == 0 else text

    samples = {}
    for number, problem in enumerate(PROBLEMS[:16]):
        prompt = render_prompt(
            tokenizer, problem.problem, recipe.data.prompt_template
        )
        samples[problem.id] = [
            GradedCompletion(
                problem_id=problem.id,
                sample=sample,
                prompt=prompt,
                response=answer(number, value),
                gold=problem.answer,
                extracted=value,
                correct=value == problem.answer,
                reason="",
                finish_reason="stop",
                tokens=9,
                mean_logprob=-0.5,
                seed=sample,
            )
            for sample, value in enumerate((problem.answer, "1"))
        ]
    got = harvest_pairs(samples, pick="first", seed=0, run_name="dry")
    write_records(run.file("pairs.jsonl"), got.iter_pairs())
    if not recipe.solutions:
        write_records(run.file("sft.jsonl"), got.iter_sft())


def test_the_stages_of_a_tier_fit_together(tier):
    recipe, tokenizer, run = tier
    template = recipe.data.prompt_template
    assert check_template(tokenizer, template).leading_bos == 1
    if recipe.solutions:
        assert run_solutions(recipe, run)["rows"] == 16
    write_harvest(recipe, tokenizer, run)
    rows = read_records(find_rows(recipe, run), SftRow)
    assert run_sft(recipe, run)["rows"] == len(rows) == 16
    run_merge(recipe, run, "sft")
    pairs = read_records(run.file("pairs.jsonl"), PairRow)
    for variant, tag in ((None, "dpo"), ("published", "dpo-published")):
        measures = run_dpo(recipe, run, variant=variant)
        assert measures["pairs"] == len(pairs) == 16
        assert measures["start_loss"] == pytest.approx(0.6931, abs=1e-3)
        run_merge(recipe, run, tag)
    scores = run_evaluate(recipe, run)
    assert set(scores) >= {"base", "sft", "dpo"}
    found = read_records(run.file("eval", "sft", "products.jsonl"), Completion)
    assert len(group_samples(found, TESTED)) == 6
