"""Tokenizers and models with random weights, made in memory at once."""

from __future__ import annotations

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
