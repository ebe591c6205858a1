"""Made-up harvests for the tests of the training stages."""

from __future__ import annotations

import random

from helpers.base import PairRow, SftRow, write_records
from helpers.models import render_prompt


def write_sft_rows(run, tokenizer, n=45, seed=0):
    """Sums with answers of different lengths; returns the rows."""
    draw = random.Random(seed)
    rows = [
        SftRow(
            prompt=render_prompt(tokenizer, f"What is {i} + 1?", "plain"),
            completion=make_answer(i, i + 1, draw),
            problem_id=f"p{i}",
            sample=0,
            run="test",
        )
        for i in range(n)
    ]
    write_records(run.file("sft.jsonl"), rows)
    return rows


def write_pairs(run, tokenizer, n=21, seed=0):
    """The same sums, answered right and wrong; returns the pairs."""
    draw = random.Random(seed)
    rows = [
        PairRow(
            prompt=render_prompt(tokenizer, f"What is {i} + 1?", "plain"),
            chosen=make_answer(i, i + 1, draw),
            rejected=make_answer(i, i + 7, draw),
            problem_id=f"p{i}",
            run="test",
        )
        for i in range(n)
    ]
    write_records(run.file("pairs.jsonl"), rows)
    return rows


def make_answer(number, result, draw):
    """A short sentence with a boxed result."""
    talk = "so " * draw.randint(0, 12)
    return f"{number} plus something, {talk}\\boxed{{{result}}}."


def save_adapter(model, folder, scale, seed=0):
    """Save a LoRA with B entries of about ``scale``; the model stays clean."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in peft_model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=scale)
    peft_model.save_pretrained(folder)
    peft_model.unload()
