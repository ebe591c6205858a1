"""How a problem is put to the model: the one place that applies a template.

Training rows and evaluation prompts both come from :func:`render_prompt`, so
they cannot differ; the texts themselves are the files of
``helpers/recipes/templates``: ``plain`` is the problem alone, ``boxed`` the
usual instruction of reasoning models, ``code-cot`` reasoning with code as in
NuminaMath-TIR, ``six-steps`` asks for six steps and ``####`` as the T4
paper's prompt did. :func:`check_template` proves for one tokenizer
what else must hold: one beginning-of-sequence token, and an end token that
training teaches and sampling stops on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from helpers.base import LOADED, TEMPLATES, LabError, did_you_mean, guard

# How a template tells the model to mark its answer; unnamed: not at all.
MARKS = {"boxed": "boxed", "code-cot": "boxed", "six-steps": "hash"}
# What a response may hold that later steps look for.
MARKERS = ("<think>", "</think>", "\\boxed{", "####")
ANCHOR = "x"  # any letter
# Llama 3.2's chat template writes a date. Always its own default one: a run
# goes on after midnight, and all models are asked the same.
TODAY = "26 Jul 2024"


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

    Encode it with ``add_special_tokens=False``: the special tokens are
    written already, by the chat template, or here where it leaves the first
    one to the tokenizer (TinyLlama, Zephyr and their like).

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        problem: the problem's text.
        template: a key of :data:`TEMPLATES`.

    Raises:
        LabError: unknown template, no chat template, or a first token that
            cannot be written as text.
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
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        date_string=TODAY,
    )
    return _write_bos(tokenizer, text)


def decode_response(tokenizer, ids: Sequence[int]) -> str:
    """The text of sampled tokens, without special ones.

    Decoded behind a letter, as they stand behind a prompt: SentencePiece
    drops the space before a text's first word, and a response trained on
    without it would be other tokens than the sampled ones.
    """
    anchor = _encode(tokenizer, ANCHOR)
    text = tokenizer.decode(
        [*anchor, *ids],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return text.removeprefix(ANCHOR)


def check_template(tokenizer, template: str) -> TemplateReport:
    """Check that training and sampling will see the same tokens.

    Checks: the prompt starts with at most one beginning-of-sequence token,
    with exactly one where the tokenizer adds one by itself; encoding
    prompt and response together starts with the prompt's own tokens; the end
    token is one token, and is what the chat template writes after a response;
    marks such as ``</think>`` survive encoding and decoding.

    Raises:
        LabError: one of these does not hold.
    """
    response = "The answer is \\boxed{4}."
    prompt = render_prompt(tokenizer, "What is 2 + 2?", template)
    ids = _encode(tokenizer, prompt)
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    added = tokenizer(prompt)["input_ids"]
    report = TemplateReport(
        prompt=prompt,
        prompt_tokens=len(ids),
        leading_bos=_count_leading_bos(ids, bos),
        leading_bos_if_added=_count_leading_bos(added, bos),
        end_token=tokenizer.eos_token or "",
        end_token_id=-1 if end is None else end,
    )
    adds_one = _count_leading_bos(tokenizer("x")["input_ids"], bos) > 0
    check_single_bos(ids, bos, int(adds_one))
    _check_marks(tokenizer)
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
            fix="choose an instruction-tuned model with --set model.id=…; "
            "often its name is the same with -Instruct behind it",
        )


def _write_bos(tokenizer, text: str) -> str:
    """The text with the BOS token that only the tokenizer would have added.

    Chat templates of the Zephyr family write none: they rely on the
    tokenizer, and a prompt encoded without special tokens starts without
    the token that every text of the training did. The space is for
    SentencePiece, which puts one before a text's first word.
    """
    bos = [tokenizer.bos_token_id]
    if bos == [None] or tokenizer("x")["input_ids"][:1] != bos:
        return text
    ids = _encode(tokenizer, text)
    if ids[:1] == bos:
        return text
    for gap in ("", " "):
        written = f"{tokenizer.bos_token}{gap}{text}"
        if _encode(tokenizer, written) == bos + ids:
            return written
    raise LabError(
        f"The BOS token {tokenizer.bos_token!r} cannot be written before a "
        "prompt of this tokenizer.",
        why="the prompt would start with other tokens than in training",
        fix="set a chat template that writes it itself: {{ bos_token }}",
    )


def _encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _count_leading_bos(ids: Sequence[int], bos: int | None) -> int:
    count = 0
    while bos is not None and count < len(ids) and ids[count] == bos:
        count += 1
    return count


def _check_marks(tokenizer) -> None:
    """Marks of a response that are tokens of this tokenizer come back.

    Decoded as the engines decode: special tokens are dropped. A mark that
    the vocabulary cannot spell is nothing this model writes.
    """
    known = tokenizer.get_added_vocab()
    marks = [m for m in MARKERS if m in known or m.startswith("\\")]
    text = "\n".join((*marks, "4}"))
    ids = _encode(tokenizer, text)
    check_markers(
        [text], [tokenizer.decode(ids, skip_special_tokens=True)], marks
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


# --- guards ---


@guard("another template in training than in sampling", LOADED)
def check_prompt_text(
    prompts: Iterable[str], before: str, after: str, template: str
) -> None:
    """Refuse rows whose prompts are not of the template that is asked with.

    Story: the published T4 run trained TinyLlama on one chat format and
    asked it in another, without the end tokens. Nothing fails then: the
    scores are only lower, and nobody knows why.

    Args:
        prompts: of the training rows.
        before: what the template writes before a problem.
        after: and behind it.
        template: its name, for the message.

    Raises:
        LabError: names the first prompt that differs.
    """
    for number, prompt in enumerate(prompts, 1):
        if prompt.startswith(before) and prompt.endswith(after):
            continue
        raise LabError(
            f"Row {number} was not written by the prompt template "
            f"'{template}' of this model.",
            why=f"its prompt is {prompt[:60]!r}…; the model would be "
            "trained on another text than it is asked",
            fix="harvest again with this recipe, or set "
            "data.prompt_template to what the rows were made with",
        )


@guard("double BOS", LOADED, doctor=True)
def check_single_bos(ids: Sequence[int], bos: int | None, wanted: int) -> None:
    """Refuse a prompt that does not start with its BOS token once.

    Story: the published T4 run wrote ``<s>`` into its prompt text, and its
    tokenizer added a second one. The first loss was 6.07.

    Args:
        ids: token ids of a rendered prompt.
        bos: the beginning-of-sequence token's id; None: there is none.
        wanted: 1 where the tokenizer adds one by itself; 0: one or none.

    Raises:
        LabError: more than one, or none where the tokenizer adds one.
    """
    count = _count_leading_bos(ids, bos)
    if wanted <= count <= 1:
        return
    raise LabError(
        f"A prompt starts with {count} times the BOS token instead of once.",
        why="the model was trained on texts that start with one",
        fix="mend the chat template so that it writes the token once",
    )


@guard("</think> lost in tokenisation", LOADED, doctor=True)
def check_markers(
    written: Iterable[str],
    decoded: Iterable[str],
    markers: Sequence[str] = MARKERS,
) -> None:
    """Refuse a tokenizer that loses what a response is marked with.

    Story: the chat template of the R1-Distill models deletes everything up
    to ``</think>`` from an answer, so training on chat messages teaches
    answers without their reasoning. Where such a mark is a *special* token,
    decoding drops it as well, and a search for it finds nothing: a published
    course stores wrong output for that reason.

    Args:
        written: texts as they are in the rows.
        decoded: the same texts after encoding, and decoding as the engine
            decodes, without special tokens.
        markers: what must come back as often as it was written.

    Raises:
        LabError: names the first mark that is lost.
    """
    written, decoded = list(written), list(decoded)
    for mark in markers:
        before = sum(text.count(mark) for text in written)
        after = sum(text.count(mark) for text in decoded)
        if before != after:
            raise LabError(
                f"The tokenizer loses the mark {mark!r}: written {before} "
                f"times, {after} times after decoding.",
                why="it is a special token, which decoding drops, or no text "
                "of the vocabulary: training and grading would not see it",
                fix="take the mark out of the tokenizer's special tokens, or "
                "choose a prompt template that does not ask for it",
            )
