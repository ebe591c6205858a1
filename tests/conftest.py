"""Shared fixtures: a tiny model, tokenizer, problem set, recipe and run.

The tiny model has random weights and is made in memory in well under a
second; tests that need a model which can do sums use ``data/pocket/model``
through the fixture ``pocket_model`` and are skipped where it is absent.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import yaml

from helpers.base import REPO_ROOT, Problem, RunDir, load_recipe, write_records

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# TinyLlama-Chat, Zephyr: a line with the role, the text, the end token.
ZEPHYR = (
    "{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]


def make_tokenizer():
    """A byte-level tokenizer with the pocket model's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {word: i for i, word in enumerate(SPECIAL + alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=512,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_llama_tokenizer(legacy: bool = False):
    """A small tokenizer of Llama 2's kind, with Zephyr's chat format.

    As those of TinyLlama-Chat (``legacy`` false) and of Mistral's Zephyr
    models (true): it adds ``<s>`` by itself, the chat format writes none,
    and words begin with a space that is a part of their first token.
    """
    import string

    from transformers import LlamaTokenizer

    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words += ["\u2581", *string.ascii_letters, *string.digits]
    words += sorted(set(string.punctuation))
    merges = [("\u2581", "T"), ("\u2581", "<"), ("\u2581T", "h")]
    words += [a + b for a, b in merges]
    tokenizer = LlamaTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=merges,
        legacy=legacy,
        add_bos_token=True,
        pad_token="</s>",
        padding_side="left",
        model_max_length=512,
    )
    tokenizer.chat_template = ZEPHYR
    return tokenizer


def make_tiny_model(vocabulary: int, seed: int = 0):
    """A random two-layer Llama that ends its responses now and then."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer():
    """The tiny byte-level tokenizer."""
    pytest.importorskip("transformers")
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tokenizer):
    """The tiny random Llama; tests must not change it."""
    pytest.importorskip("torch")
    return make_tiny_model(len(tokenizer))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory, tiny_model, tokenizer) -> Path:
    """The tiny model and its tokenizer, saved as a folder."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pocket_model() -> Path:
    """The folder of the shipped model; skips where it is not built yet."""
    folder = REPO_ROOT / "data" / "pocket" / "model"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("data/pocket/model is not there")
    return folder


@pytest.fixture
def problems() -> list[Problem]:
    """Twelve sums."""
    return [
        Problem(
            id=f"sum-{i}",
            problem=f"What is {i} + {2 * i + 1}?",
            answer=str(3 * i + 1),
            source="test",
        )
        for i in range(12)
    ]


@pytest.fixture
def tiny_recipe(tmp_path, tiny_model_dir, problems):
    """Tier pocket with the tiny model, twelve problems and short caps."""
    data = tmp_path / "data"
    write_records(data / "train.jsonl", problems)
    write_records(data / "bench.jsonl", problems[:8])
    raw = {
        "extends": "pocket",
        "name": "tiny",
        "model": {"id": str(tiny_model_dir)},
        "data": {
            "train": str(data / "train.jsonl"),
            "dev": str(data / "bench.jsonl"),
            "n_problems": 6,
        },
        "engine": {"max_batch_size": 8},
        "sampling": {"n": 3, "max_new_tokens": 12},
        "harvest": {"min_pairs": 0},
        "evaluate": {
            "benchmarks": [
                {"name": "bench", "path": str(data / "bench.jsonl"), "n": 8}
            ],
            "main": "bench",
            "max_new_tokens": 12,
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_recipe(path)


@pytest.fixture
def run(tmp_path, tiny_recipe) -> RunDir:
    """A fresh run folder of the tiny recipe."""
    return RunDir.open(tmp_path / "run", tiny_recipe)


# --- where the time goes -------------------------------------------------

SLOW_S = 3.0  # tests from here on are named one by one


def pytest_addoption(parser):
    parser.addoption(
        "--record-durations",
        metavar="FILE",
        help="write seconds per test file, and of the slow tests, to FILE",
    )


def pytest_terminal_summary(terminalreporter, config):
    """Seconds of set-up, call and tear-down, largest first."""
    path = config.getoption("--record-durations")
    if not path:
        return
    tests = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                tests[report.nodeid] += report.duration
    files = Counter()
    for name, seconds in tests.items():
        files[name.partition("::")[0]] += seconds
    found = {
        "files": {k: round(s, 1) for k, s in files.most_common()},
        "slow tests": {
            k: round(s, 1) for k, s in tests.most_common() if s >= SLOW_S
        },
    }
    Path(path).write_text(json.dumps(found, indent=1) + "\n")
