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
from tiny_models import make_tiny_model, make_tokenizer

from helpers.base import REPO_ROOT, Problem, RunDir, load_recipe, write_records

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
