"""Add an adapter to its base weights, and measure what rounding keeps of it.

The sum is made in fp32 and then cast to the recipe's dtype. A 16-bit dtype
rounds away every change below half an ulp, so a short or timid run can be
erased by its own merge: ``merge_fidelity.json`` says how much survived.
"""

from __future__ import annotations

import gc
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.checkpoints import (
    LINEAGE,
    fingerprint_model,
    require_current_merge,
    require_file,
)
from helpers.errors import LabError
from helpers.problems import load_problems
from helpers.recipes import Recipe, recipe_hash
from helpers.records import disk_errors, write_json
from helpers.runs import RunDir, hash_file, require_space, resolve_data

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


def run_merge(
    recipe: Recipe, run: RunDir, tag: str, *, force: bool = False
) -> dict[str, Any]:
    """Merge the adapter of ``tag``; write the model and its fidelity.

    Writes ``<tag>/merged`` (weights and tokenizer) and
    ``<tag>/merge_fidelity.json``. What is measured is the saved folder,
    loaded again.

    Args:
        tag: "sft", "dpo" or "dpo-<variant>". The base of "sft" is the
            recipe's model, that of the others ``sft/merged``.

    Returns:
        cosine and norm_kept of the stored update against the fp32 one,
        entries_changed (a fraction), max_abs_logit_diff, greedy_agree of
        greedy_total tokens, dtype.

    Raises:
        LabError: no such tag, no adapter to merge, no dev problems, or a
            base that was merged from an earlier adapter.
    """
    adapter, base = find_parts(recipe, run, tag)
    inputs = {
        "adapter": hash_file(adapter),
        "base": fingerprint_model(base, recipe.model.revision),
        "dev": hash_file(resolve_data(recipe.data.dev)),
        "recipe": recipe_hash(recipe, "model"),
    }
    if run.is_done(f"merge/{tag}", inputs, force):
        print(f"The merge is done: {tag}/merged is loaded.")
        return run.metrics()[f"merge/{tag}"]
    require_space(run.path, 200)
    load_problems(recipe.data.dev)  # refused before a model is loaded
    outputs = [f"{tag}/merged", f"{tag}/merge_fidelity.json"]
    with run.stage(f"merge/{tag}", inputs) as record:
        fidelity = merge_and_save(recipe, run, tag, inputs)
        record.update(outputs=outputs, metrics=fidelity)
    return fidelity


def find_parts(recipe: Recipe, run: RunDir, tag: str) -> tuple[Path, Path]:
    """(adapter folder, base model folder or hub id) of a tag."""
    from helpers.models import model_path

    kind, _, variant = tag.partition("-")
    if kind not in ("sft", "dpo") or (kind == "sft" and variant):
        raise LabError(
            f"There is no adapter '{tag}'.",
            fix="choose sft, dpo or dpo-<variant>",
        )
    if variant:
        recipe.dpo_variant(variant)
    command = f"mathslm {kind}" + (f" --variant {variant}" if variant else "")
    adapter = require_file(run.file(tag, "adapter"), command, run)
    if kind == "sft":
        return adapter, model_path(recipe, run, "base")
    merged = model_path(recipe, run, "sft")
    require_current_merge(run, "sft")
    return adapter, require_file(merged, "mathslm merge --model sft", run)


def merge_and_save(
    recipe: Recipe, run: RunDir, tag: str, inputs: dict[str, str]
) -> dict[str, Any]:
    """Merge, save under a temporary name, measure the files, rename.

    ``inputs`` are saved beside the weights: they are what the model is
    known by, see :func:`helpers.checkpoints.fingerprint_model`.
    """
    import torch

    adapter, base = find_parts(recipe, run, tag)
    dtype = getattr(torch, recipe.model.dtype)
    model, tokenizer = load_unmerged(recipe, adapter, base)
    fidelity = measure_update(model, dtype)
    probe = make_probe(recipe, model, tokenizer)
    target = run.file(tag, "merged")
    partial = target.with_name("merged.partial")
    with disk_errors(target):
        shutil.rmtree(partial, ignore_errors=True)
        merged = model.merge_and_unload(safe_merge=True).to(dtype)
        merged.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / LINEAGE, inputs)
    del model, merged
    saved, _ = load_exact(recipe, partial)
    fidelity |= compare_logits(probe, saved)
    fidelity["dtype"] = recipe.model.dtype
    # Windows renames no file that a loaded model still maps.
    del saved
    gc.collect()
    with disk_errors(target):
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    write_json(run.file(tag, "merge_fidelity.json"), fidelity)
    return fidelity


def measure_fidelity(
    recipe: Recipe, run: RunDir, tag: str, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """What a merge into another dtype would keep; writes nothing.

    The base is rounded to that dtype first, as in a pipeline that stores
    every model in it. Same keys as :func:`run_merge`.
    """
    import torch

    adapter, base = find_parts(recipe, run, tag)
    model, tokenizer = load_unmerged(recipe, adapter, base)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" not in name:
                weight.copy_(weight.to(getattr(torch, dtype)))
    fidelity = measure_update(model, getattr(torch, dtype))
    probe = make_probe(recipe, model, tokenizer)
    merged = model.merge_and_unload(safe_merge=True)
    merged = merged.to(getattr(torch, dtype)).to(torch.float32)
    return fidelity | compare_logits(probe, merged) | {"dtype": dtype}


def load_exact(recipe: Recipe, path: Path) -> tuple[Any, Any]:
    """A model in fp32, unquantized, whatever the recipe computes in."""
    from helpers.models import load_model

    exact = recipe.model.model_copy(
        update={"dtype": "float32", "quantization": None}
    )
    model, tokenizer = load_model(
        recipe.model_copy(update={"model": exact}), path
    )
    return model.eval(), tokenizer


def load_unmerged(
    recipe: Recipe, adapter: Path, base: Path
) -> tuple[Any, Any]:
    """The fp32 base with its adapter beside it, and the tokenizer."""
    from peft import PeftModel

    from helpers.training import quiet_setup

    model, tokenizer = load_exact(recipe, base)
    with quiet_setup():
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval(), tokenizer


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

    from helpers.prompts import render_prompt

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


if __name__ == "__main__":
    from helpers.cli import main_stage

    main_stage("merge")
