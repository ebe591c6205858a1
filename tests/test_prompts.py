"""Prompts: one place, one BOS, an end token that is taught."""

import copy

import pytest

from helpers.errors import LabError
from helpers.prompts import TEMPLATES, check_template, render_prompt


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


def test_missing_bos_is_refused_when_the_tokenizer_adds_one(tokenizer):
    from tokenizers.processors import TemplateProcessing

    broken = copy.deepcopy(tokenizer)
    broken.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 1)]
    )
    doubled = check_template(broken, "plain")
    assert (doubled.leading_bos, doubled.leading_bos_if_added) == (1, 2)
    broken.chat_template = tokenizer.chat_template.replace(
        "{{ bos_token }}", ""
    )
    with pytest.raises(LabError, match="0 times"):
        check_template(broken, "plain")
