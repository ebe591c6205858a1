"""What a merge kept: of the update in the weights, and of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helpers.base import Recipe
from helpers.problems import load_problems

PROBE_PROMPTS = 16
PROBE_TOKENS = 32


@dataclass
class Probe:
    """Greedy continuations of dev prompts by the unmerged model.

    ``input_ids`` and ``attention_mask`` are (prompts, length), left-padded;
    ``logits`` (prompts, new tokens, vocabulary) predict the new tokens;
    ``valid`` marks those up to the end token.
    """

    input_ids: Any
    attention_mask: Any
    valid: Any
    logits: Any


def measure_update(model: Any, dtype: Any) -> dict[str, float]:
    """Compare the update that ``dtype`` can store with the fp32 one.

    Args:
        model: a PEFT model whose base is in fp32.
        dtype: the torch dtype that the merged weights are cast to.

    Returns:
        Over all entries of all adapted matrices together: ``cosine`` of the
        stored and the intended update, ``norm_kept`` (their norms' ratio),
        ``entries_changed`` (fraction whose stored value differs at all).
    """
    from peft.tuners.lora import LoraLayer

    dot = kept_square = true_square = 0.0
    changed = entries = 0
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        weight = layer.get_base_layer().weight.detach().float()
        delta = layer.get_delta_weight(model.active_adapter).detach().float()
        before = weight.to(dtype).float()
        kept = (weight + delta).to(dtype).float() - before
        dot += (kept.double() * delta.double()).sum().item()
        kept_square += kept.double().square().sum().item()
        true_square += delta.double().square().sum().item()
        changed += int((kept != 0).sum())
        entries += kept.numel()
    if true_square == 0:
        # A zero adapter: nothing was meant to change.
        return {"cosine": 1.0, "norm_kept": 1.0, "entries_changed": 0.0}
    norms = (kept_square * true_square) ** 0.5
    return {
        "cosine": dot / norms if norms else 0.0,
        "norm_kept": (kept_square / true_square) ** 0.5,
        "entries_changed": changed / entries,
    }


def make_probe(recipe: Recipe, model: Any, tokenizer: Any) -> Probe:
    """Let the unmerged model answer the first dev problems greedily."""
    import torch

    from helpers.models import render_prompt

    problems = load_problems(recipe.data.dev)[:PROBE_PROMPTS]
    template = recipe.data.prompt_template
    batch = tokenizer(
        [render_prompt(tokenizer, p.problem, template) for p in problems],
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(model.device)
    with torch.no_grad():
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=False,
            max_new_tokens=PROBE_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )
    is_end = ids[:, batch["input_ids"].shape[1] :] == tokenizer.eos_token_id
    valid = (is_end.int().cumsum(dim=1) - is_end.int()) == 0
    mask = torch.cat([batch["attention_mask"], valid.long()], dim=1)
    probe = Probe(ids, mask, valid, None)
    probe.logits = read_logits(probe, model)
    return probe


def read_logits(probe: Probe, model: Any) -> Any:
    """Logits (prompts, new tokens, vocabulary) that predict the new tokens."""
    import torch

    new = probe.valid.shape[1]
    with torch.no_grad():
        logits = model(
            input_ids=probe.input_ids.to(model.device),
            attention_mask=probe.attention_mask.to(model.device),
            logits_to_keep=new + 1,
        ).logits
    return logits[:, :-1].float().cpu()


def compare_logits(probe: Probe, model: Any) -> dict[str, Any]:
    """Largest logit difference and greedy agreement with the probe."""
    logits = read_logits(probe, model)
    valid = probe.valid.cpu()
    ours, theirs = logits[valid], probe.logits[valid]
    same = ours.argmax(dim=-1) == theirs.argmax(dim=-1)
    return {
        "max_abs_logit_diff": (ours - theirs).abs().max().item(),
        "greedy_agree": int(same.sum()),
        "greedy_total": int(same.numel()),
    }
