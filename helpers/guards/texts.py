"""Is the text that is trained on the text that was sampled, and varied?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from helpers.errors import LabError

# What a response may hold that later steps look for.
MARKERS = ("<think>", "</think>", "\\boxed{", "####")
Document = tuple[Sequence[int], Sequence[int]]


def check_distinct_fraction(
    fraction: float, floor: float, temperature: float
) -> None:
    """Refuse sampling whose completions of one problem are copies.

    Story: the published 7B run sampled with a fixed seed, and only 5.4 % of
    its problems gave a pair; a second run, without the seed and hotter, gave
    24.9 %. Its rule "no seed when n > 1" blames the wrong thing: vLLM handed
    one seed to all samples of a prompt in a few versions only. So the
    measured share decides, never whether a seed is set.

    Args:
        fraction: distinct completions / completions, over the first problems.
        floor: smallest accepted share.
        temperature: of sampling; at 0 copies are what was asked for.

    Raises:
        LabError: too few distinct completions at a temperature above 0.
    """
    if temperature <= 0 or fraction >= floor:
        return
    raise LabError(
        f"Only {fraction:.0%} of the sampled completions are distinct; at "
        f"temperature {temperature:g} at least {floor:.0%} should be.",
        why="copies bring no new pairs: the engine reuses one random stream "
        "for all samples of a problem, or the model is nearly sure of every "
        "token",
        fix="derive one seed per (problem, sample), raise "
        "sampling.temperature, or, for a very sure model, lower "
        "harvest.min_distinct_fraction",
    )


def check_initial_loss(
    first_loss: float, sampling_logprob: float | None
) -> str | None:
    """Compare the first training loss with what sampling recorded.

    The rows are the model's own samples, so before the first update its loss
    on them is the mean -log p it had while writing them. Another number means
    another text: a different chat template, a doubled BOS, or a loss on the
    prompt.

    Story: the published 7B run trained on its own samples and logged a first
    loss of 1.25, where about 0.3 was to be expected. A published run on a T4
    began at 6.07, with the chat format of another model and BOS twice.

    Args:
        first_loss: logged loss of step 1, in nats per token.
        sampling_logprob: mean log p per token of the same rows when sampled;
            None when it was not recorded.

    Returns:
        A warning, or None when the two agree within the larger of 0.05 nat
        and one half (the first batch is a sample of the rows).
    """
    if sampling_logprob is None:
        return None
    expected = -sampling_logprob
    if abs(first_loss - expected) <= max(0.05, 0.5 * expected):
        return None
    return (
        f"The first training loss is {first_loss:.3f}, but the model wrote "
        f"these completions at {expected:.3f} nats a token. Training and "
        "sampling do not see the same text: compare the chat template, the "
        "BOS token, and whether the loss covers the completion only."
    )


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


def check_supervision(
    documents: Iterable[Document],
    prompts: Iterable[Sequence[int]],
    bos: int | None,
    end: int | None,
) -> None:
    """Check token by token what the trainer will learn from.

    Each document is (input ids, labels) as the trainer made them. Its prompt
    must be exactly what sampling feeds (so with the same single BOS), carry
    no loss, and be followed by a completion that is supervised to its end
    token.

    Story: the published T4 run trained on the whole text, prompt included,
    and cut its rows at 2,048 tokens, where most answers had not been given
    yet. Both show in the tokens, and in no log.

    Args:
        prompts: token ids of the prompts as sampling feeds them.
        bos, end: ids of the beginning and the end token, or None.

    Raises:
        LabError: names the first document that differs and how.
    """
    known = {tuple(ids) for ids in prompts}
    for number, (ids, labels) in enumerate(documents, 1):
        start = next((i for i, x in enumerate(labels) if x != -100), None)
        if start is None:
            fault = "no token carries a loss"
        elif tuple(ids[:start]) not in known:
            fault = "its prompt tokens differ from those sampling feeds"
        elif list(ids[start:]) != list(labels[start:]):
            fault = "part of the completion carries no loss"
        elif ids[-1] != end:
            fault = "it does not end on the end token"
        elif bos not in (None, end) and bos in ids[max(start, 1) :]:
            fault = "a BOS token stands inside the completion"
        else:
            continue
        raise LabError(
            f"Training row {number} is not what it should be: {fault}.",
            why="the trainer's own tokens were compared with the prompt as "
            "sampled; training on another text undoes the base model",
            fix="look at that row with tokenizer.decode(ids); mend the chat "
            "template or the rows",
        )


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
