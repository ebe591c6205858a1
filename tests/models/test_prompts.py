"""Prompts: one place, one BOS, an end token that is taught."""

import copy

import pytest
from tiny_models import make_llama_tokenizer

from helpers.base import TEMPLATES, LabError
from helpers.models import check_template, decode_response, render_prompt


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompt_holds_the_problem_and_ends_where_the_answer_starts(
    tokenizer, template
):
    problem = r"Find $\frac{1}{2}$ of {4}, not {problem}."
    prompt = render_prompt(tokenizer, problem, template)
    assert problem in prompt
    assert prompt.startswith("<|bos|><|user|>")
    assert prompt.endswith("<|assistant|>")
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_every_template_has_the_slot_once():
    assert all(text.count("{problem}") == 1 for text in TEMPLATES.values())


def test_unknown_template_is_refused_with_the_nearest_name(tokenizer):
    with pytest.raises(LabError, match="Did you mean 'plain'"):
        render_prompt(tokenizer, "1 + 1", "plian")


def test_no_chat_template_is_refused(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(LabError, match="no chat template"):
        render_prompt(bare, "1 + 1", "plain")


@pytest.mark.parametrize("template", TEMPLATES)
def test_tiny_tokenizer_passes(tokenizer, template):
    report = check_template(tokenizer, template)
    assert report.leading_bos == report.leading_bos_if_added == 1
    assert report.end_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    ids = tokenizer(report.prompt, add_special_tokens=False)["input_ids"]
    assert report.prompt_tokens == len(ids)


def test_pocket_tokenizer_passes(pocket_model):
    from helpers.models import load_tokenizer

    report = check_template(load_tokenizer(pocket_model), "plain")
    assert report.leading_bos == report.leading_bos_if_added == 1
    assert report.end_token == "<|end|>"


FAULTS = {
    "doubled BOS": ("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"),
    "no end token": ("{{ eos_token }}", "\n"),
    "another end token": ("{{ eos_token }}", "<|user|>"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_chat_templates_are_refused(tokenizer, fault):
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = tokenizer.chat_template.replace(*FAULTS[fault])
    assert broken.chat_template != tokenizer.chat_template
    with pytest.raises(LabError):
        check_template(broken, "plain")


@pytest.fixture
def adding(tokenizer):
    """The tiny tokenizer, which adds its BOS token by itself now."""
    from tokenizers.processors import TemplateProcessing

    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 1)]
    )
    return changed


def test_a_bos_token_that_both_write_is_reported(adding):
    doubled = check_template(adding, "plain")
    assert (doubled.leading_bos, doubled.leading_bos_if_added) == (1, 2)


def test_a_bos_token_that_only_the_tokenizer_writes_is_in_the_prompt(
    tokenizer, adding
):
    adding.chat_template = tokenizer.chat_template.replace(
        "{{ bos_token }}", ""
    )
    assert check_template(adding, "plain").leading_bos == 1
    assert render_prompt(adding, "1 + 1", "plain") == render_prompt(
        tokenizer, "1 + 1", "plain"
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_a_zephyr_prompt_is_what_the_tokenizer_alone_would_make(legacy):
    """As TinyLlama-Chat and mistral-7b-sft-beta, the models of tier t4."""
    tokenizer = make_llama_tokenizer(legacy)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2 + 2?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert chat == "<|user|>\nWhat is 2 + 2?</s>\n<|assistant|>\n"
    prompt = render_prompt(tokenizer, "What is 2 + 2?", "plain")
    fed = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert fed == tokenizer(chat)["input_ids"]
    assert fed.count(tokenizer.bos_token_id) == 1
    report = check_template(tokenizer, "boxed")
    assert (report.leading_bos, report.end_token) == (1, "</s>")


def test_a_bos_token_that_cannot_be_written_is_refused():
    tokenizer = make_llama_tokenizer()
    tokenizer.split_special_tokens = True  # "<s>" is three letters now
    with pytest.raises(LabError, match="'<s>' cannot be written"):
        render_prompt(tokenizer, "1 + 1", "plain")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_saved_tokenizer_comes_back_as_it_was(tmp_path, legacy):
    from helpers.models import load_tokenizer, save_tokenizer

    tokenizer = make_llama_tokenizer(legacy)
    prompt = render_prompt(tokenizer, "What is 2 + 2?", "boxed")
    for _ in range(2):  # as base -> merged SFT -> merged DPO
        save_tokenizer(tokenizer, tmp_path)
        saved = load_tokenizer(tmp_path)
        assert render_prompt(saved, "What is 2 + 2?", "boxed") == prompt
        assert (
            saved(prompt, add_special_tokens=False)["input_ids"]
            == tokenizer(prompt, add_special_tokens=False)["input_ids"]
        )
        tokenizer = saved


def test_a_date_in_the_chat_format_does_not_change_over_night(tokenizer):
    """Llama 3.2 writes one, today's where none is given."""
    dated = copy.deepcopy(tokenizer)
    dated.chat_template = (
        "{% if not date_string is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "Today: {{ date_string }} " + tokenizer.chat_template
    )
    assert "Today: 26 Jul 2024 " in render_prompt(dated, "1 + 1", "plain")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("text", ["The answer", " The answer", "4", "", "é"])
def test_a_response_is_the_text_that_was_sampled(legacy, text):
    tokenizer = make_llama_tokenizer(legacy)
    prompt = render_prompt(tokenizer, "What is 2 + 2?", "plain")
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
    new = [*ids[len(start) :], tokenizer.eos_token_id]
    assert decode_response(tokenizer, new) == text
    if text.startswith(" "):  # what decoding alone makes of it
        assert tokenizer.decode(new, skip_special_tokens=True) == text[1:]
