"""Prompt templates are files, and what a model reads of each is on record.

``tests/snapshots/prompts/<chat format>--<template>.txt`` holds the rendered
text to the letter. A change is made on purpose:

    python tests/test_prompt_templates.py
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest

from helpers.base import (
    REPO_ROOT,
    TEMPLATES,
    LabError,
    list_recipes,
    load_recipe,
)
from helpers.base.recipe_schema import TEMPLATE_DIR, read_templates
from helpers.models import MARKS, render_prompt
from helpers.models.smol import is_complete, smol_folder

SNAPSHOTS = Path(__file__).parents[1] / "snapshots" / "prompts"
PROBLEM = "A box holds 3 pens {and} costs $\\frac{1}{2}$. What is $x$?"
# Chat formats that trl ships, with the first token their tokenizers have.
CHATS = {
    "llama3": "<|begin_of_text|>",
    "qwen2_5": None,
    "deepseek_r1_distill": "<｜begin▁of▁sentence｜>",
    "phi3": "<s>",
}
# Chat formats without a first token, which the tokenizer adds by itself: of
# TinyLlama-Chat, and of mistral-7b-sft-beta with its "legacy" tokenizer.
ZEPHYRS = {"tinyllama": False, "mistral_zephyr": True}
MODELS = ("pocket", "smol")
CASES = [
    (chat, name) for chat in (*MODELS, *CHATS, *ZEPHYRS) for name in TEMPLATES
]


def load_chat(chat):
    """A tokenizer of this chat format; skips where it cannot be had."""
    from tiny_models import make_llama_tokenizer, make_tokenizer

    if chat in ZEPHYRS:
        return make_llama_tokenizer(legacy=ZEPHYRS[chat])
    if chat in MODELS:
        from helpers.models import load_tokenizer

        folder = REPO_ROOT / "data" / "pocket" / "model"
        if chat == "smol":
            folder = smol_folder()
            if not is_complete(folder):
                pytest.skip("the model of tier smol was not unpacked yet")
        return load_tokenizer(folder)
    package = importlib.util.find_spec("trl").origin
    text = (
        Path(package).parent / "chat_templates" / f"{chat}.jinja"
    ).read_text("utf-8")
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.chat_template = text
    tokenizer.bos_token = CHATS[chat]
    return tokenizer


def find_snapshot(chat, name):
    """The file that holds what the model reads."""
    return SNAPSHOTS / f"{chat}--{name}.txt"


@pytest.mark.parametrize(("chat", "name"), CASES)
def test_the_rendered_text_is_the_one_on_record(chat, name):
    kept = find_snapshot(chat, name).read_bytes().decode("utf-8")
    assert render_prompt(load_chat(chat), PROBLEM, name) == kept


def test_every_snapshot_has_its_case():
    assert {p.name for p in SNAPSHOTS.iterdir()} == {
        find_snapshot(*case).name for case in CASES
    }


def test_templates_are_the_files():
    names = {p.stem for p in TEMPLATE_DIR.glob("*.txt")}
    assert set(TEMPLATES) == names >= {"plain", "boxed", "six-steps"}
    assert TEMPLATES["plain"] == "{problem}"


@pytest.mark.parametrize("text", ["no slot\n", "{problem} and {problem}\n"])
def test_a_template_without_one_slot_is_refused(tmp_path, text):
    (tmp_path / "odd.txt").write_text(text)
    with pytest.raises(LabError, match=r"odd\.txt has \{problem\} [02] times"):
        read_templates(tmp_path)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_asks_for_the_mark_it_is_said_to(name):
    found = {
        "boxed": "\\boxed" in TEMPLATES[name],
        "hash": "####" in TEMPLATES[name],
    }
    assert [mark for mark, there in found.items() if there] == (
        [MARKS[name]] if name in MARKS else []
    )


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_name_a_template(name):
    assert load_recipe(name).data.prompt_template in TEMPLATES


def write_snapshots():
    """Put what is rendered now on record."""
    for path in SNAPSHOTS.glob("*.txt"):
        path.unlink()
    for chat, name in CASES:
        text = render_prompt(load_chat(chat), PROBLEM, name)
        find_snapshot(chat, name).write_bytes(text.encode("utf-8"))


if __name__ == "__main__":
    write_snapshots()
