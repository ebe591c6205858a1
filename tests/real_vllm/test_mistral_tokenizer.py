"""Mistral's own tokenizer: 32,000 pieces, as tier t4-7b meets it.

The package mistral-common, which vLLM brings along, carries the file; the
sentencepiece of vLLM's environment reads it (``make test``).
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_models import ZEPHYR

from helpers.models import (
    check_template,
    decode_response,
    load_tokenizer,
    render_prompt,
)

VLLM = os.environ.get("MATHSLM_VLLM", "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not VLLM,
        reason="MATHSLM_VLLM names no vllm executable (make test does)",
    ),
]
CONVERT = (
    "import sys; from transformers import AutoTokenizer; "
    "AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
)
TEXTS = (
    "The answer is $\\frac{3}{4}$.",
    " Step 1: 12 × 7 = 84,\n\nso x ≤ 84.",
    "\\boxed{-\\sqrt{2}}",
    "∑ᵢ xᵢ² é 中 🙂",
)


@pytest.fixture(scope="module", params=[False, True], ids=["first", "always"])
def tokenizer(request, tmp_path_factory):
    """Mistral's pieces with Zephyr's chat format, old and new spacing."""
    environment = Path(VLLM).parents[1]
    found = environment.glob("lib/python*/site-packages/mistral_common/data")
    files = [p / "tokenizer.model.v1" for p in found]
    if not files or not files[0].is_file():
        pytest.skip("this vLLM came without mistral-common's tokenizer files")
    raw, made = (tmp_path_factory.mktemp(name) for name in ("raw", "made"))
    shutil.copy(files[0], raw / "tokenizer.model")
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": request.param,
        "chat_template": ZEPHYR,
    }
    (raw / "tokenizer_config.json").write_text(json.dumps(config))
    python = environment / "bin" / "python"
    subprocess.run([python, "-c", CONVERT, raw, made], check=True)
    return load_tokenizer(made)


def test_prompts_are_what_the_tokenizer_alone_would_make(tokenizer):
    assert len(tokenizer) == 32_000
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2 + 2?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    prompt = render_prompt(tokenizer, "What is 2 + 2?", "plain")
    fed = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert fed == tokenizer(chat)["input_ids"]
    assert fed[0] == tokenizer.bos_token_id
    for template in ("plain", "boxed", "six-steps"):
        assert check_template(tokenizer, template).leading_bos == 1


@pytest.mark.parametrize("text", TEXTS)
def test_a_response_survives_its_tokens(tokenizer, text):
    prompt = render_prompt(tokenizer, "What is 2 + 2?", "plain")
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
    assert whole[: len(start)] == start
    assert decode_response(tokenizer, whole[len(start) :]) == text
