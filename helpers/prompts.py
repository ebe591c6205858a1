"""How a problem is put to the model: the one place that applies a template.

Training rows and evaluation prompts both come from :func:`render_prompt`, so
they cannot differ. :func:`check_template` proves for one tokenizer what else
must hold: one beginning-of-sequence token, and an end token that training
teaches and sampling stops on.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.errors import LabError, did_you_mean

TEMPLATES: dict[str, str] = {
    # The problem alone, for a model that was trained to answer it.
    "plain": "{problem}",
    # The usual instruction of reasoning models for a gradable answer.
    "boxed": "{problem}\n\nPlease reason step by step, and put your final "
    "answer within \\boxed{}.",
    # Reasoning written as a program, as in NuminaMath-TIR.
    "code-cot": "{problem}\n\nReason step by step; you may write short "
    "Python code as part of the reasoning. Put your final answer within "
    "\\boxed{}.",
}


@dataclass(frozen=True)
class TemplateReport:
    """What :func:`check_template` found.

    ``leading_bos`` counts beginning-of-sequence tokens at the start of a
    prompt encoded without special tokens, ``leading_bos_if_added`` the same
    with them: where the second is larger, a trainer that adds special tokens
    doubles the first token.
    """

    prompt: str
    prompt_tokens: int
    leading_bos: int
    leading_bos_if_added: int
    end_token: str
    end_token_id: int


def render_prompt(tokenizer, problem: str, template: str) -> str:
    """The exact text the model reads before it answers.

    Encode it with ``add_special_tokens=False``: the chat template has
    written the special tokens already.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        problem: the problem's text.
        template: a key of :data:`TEMPLATES`.

    Raises:
        LabError: unknown template, or no chat template.
    """
    if template not in TEMPLATES:
        raise LabError(
            f"There is no prompt template '{template}'."
            f"{did_you_mean(template, TEMPLATES)}",
            fix="set data.prompt_template to one of: " + ", ".join(TEMPLATES),
        )
    _require_chat_template(tokenizer)
    # Not str.format: problems and templates are full of braces.
    content = TEMPLATES[template].replace("{problem}", problem)
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
    )


def check_template(tokenizer, template: str) -> TemplateReport:
    """Check that training and sampling will see the same tokens.

    Checks: the prompt starts with at most one beginning-of-sequence token,
    and with exactly one where the tokenizer adds one by itself; encoding
    prompt and response together starts with the prompt's own tokens; the end
    token is one token, and is what the chat template writes after a response.

    Raises:
        LabError: one of these does not hold.
    """
    response = "The answer is \\boxed{4}."
    prompt = render_prompt(tokenizer, "What is 2 + 2?", template)
    ids = _encode(tokenizer, prompt)
    report = TemplateReport(
        prompt=prompt,
        prompt_tokens=len(ids),
        leading_bos=_count_leading_bos(tokenizer, ids),
        leading_bos_if_added=_count_leading_bos(
            tokenizer, tokenizer(prompt)["input_ids"]
        ),
        end_token=tokenizer.eos_token or "",
        end_token_id=-1
        if tokenizer.eos_token_id is None
        else tokenizer.eos_token_id,
    )
    _check_bos(tokenizer, report)
    _check_end(tokenizer, report, response)
    joined = _encode(tokenizer, prompt + response + report.end_token)
    if joined[: len(ids)] != ids:
        raise LabError(
            "The prompt's last token merges with the response's first.",
            why="training would see other tokens than sampling does",
            fix="end the chat template's generation prompt on a special "
            "token or a line break",
        )
    return report


def _require_chat_template(tokenizer) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise LabError(
            "This tokenizer has no chat template.",
            why="a base model does not know where a question ends",
            fix="choose an instruction-tuned model, or set "
            "tokenizer.chat_template",
        )


def _encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _count_leading_bos(tokenizer, ids: list[int]) -> int:
    count = 0
    bos = tokenizer.bos_token_id
    while bos is not None and count < len(ids) and ids[count] == bos:
        count += 1
    return count


def _check_bos(tokenizer, report: TemplateReport) -> None:
    adds_one = _count_leading_bos(tokenizer, tokenizer("x")["input_ids"]) > 0
    if report.leading_bos > 1 or (adds_one and not report.leading_bos):
        raise LabError(
            f"A prompt starts with {report.leading_bos} times "
            f"{tokenizer.bos_token!r} instead of once.",
            why="the model was trained on texts that start with one",
            fix="mend the chat template so that it writes the token once",
        )


def _check_end(tokenizer, report: TemplateReport, response: str) -> None:
    end = report.end_token
    if not end or _encode(tokenizer, end) != [report.end_token_id]:
        raise LabError(
            f"The end token {end!r} is not one token of this tokenizer.",
            why="training could not teach the model to stop",
            fix="set eos_token to a token of the vocabulary",
        )
    turns = [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": response},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    after = text.rpartition(response)[2]
    if not after.startswith(end):
        raise LabError(
            f"The chat template ends a response with {after[:20]!r}, "
            f"not with the end token {end!r}.",
            why="sampling would wait for a token that training never shows",
            fix="set eos_token to what the chat template writes",
        )
