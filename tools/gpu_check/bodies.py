"""Models of true shapes with random weights, and rows that fill them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.base import REPO_ROOT, PairRow, SftRow
from helpers.models import load_tokenizer, render_prompt
from helpers.planner import ModelShape, list_shapes, read_shape

TOKENIZER = REPO_ROOT / "data" / "pocket" / "model"
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
}


def read_config(model: str, tiny: bool) -> dict[str, Any]:
    """The shipped config of a model, or the same kind at toy size."""
    config = json.loads(list_shapes()[model].read_text("utf-8"))["config"]
    return config | (TINY if tiny else {})


def find_body_shape(model: str, tiny: bool) -> ModelShape:
    """The planner's view of :func:`read_config`."""
    return read_shape(read_config(model, tiny), model)


def build_body(
    model: str, dtype: str, device: str, *, tiny: bool
) -> tuple[Any, Any]:
    """(random model of that shape on the device, the pocket tokenizer).

    The tokenizer's ids are all inside the larger vocabulary.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = load_tokenizer(TOKENIZER)
    sizes = read_config(model, tiny)
    config = AutoConfig.for_model(
        sizes.pop("model_type"),
        **sizes,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    return made.eval(), tokenizer


def save_body(model: str, folder: Path, *, tiny: bool) -> Path:
    """The random model as a folder in 16 bits, as a hub model would be."""
    made, tokenizer = build_body(model, "float16", "cpu", tiny=tiny)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(tokenizer: Any, lengths: Sequence[int]) -> list[SftRow]:
    """SFT rows of so many tokens each, prompt and end token included."""
    prompt = render_prompt(tokenizer, "What is 1 + 2?", "plain")
    texts = {size: fill_text(tokenizer, prompt, size) for size in {*lengths}}
    return [
        SftRow(
            prompt=prompt,
            completion=texts[length],
            problem_id=str(number),
            sample=0,
            run="gpu-check",
        )
        for number, length in enumerate(lengths)
    ]


def make_pairs(tokenizer: Any, lengths: Sequence[int]) -> list[PairRow]:
    """Preference pairs whose longer answer makes so many tokens."""
    return [
        PairRow(
            prompt=row.prompt,
            chosen=row.completion,
            rejected="7" + row.completion[1:],
            problem_id=row.problem_id,
            run=row.run,
        )
        for row in make_rows(tokenizer, lengths)
    ]


def fill_text(tokenizer: Any, prompt: str, length: int) -> str:
    """Digits (a token each) that bring a prompt to ``length`` - 1 tokens."""

    def count(text: str) -> int:
        ids = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
        return len(ids)

    text = "".join(str(i % 10) for i in range(length - count("1") + 1))
    while count(text) > length - 1:
        text = text[:-1]
    while count(text) < length - 1:
        text += "3"
    return text
