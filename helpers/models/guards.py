"""Is a prompt written as the model was trained to read it?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from helpers.base import LOADED, LabError, guard

# What a response may hold that later steps look for.
MARKERS = ("<think>", "</think>", "\\boxed{", "####")


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
    count = 0
    while bos is not None and count < len(ids) and ids[count] == bos:
        count += 1
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
