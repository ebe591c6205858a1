"""Add an adapter to its base weights, and measure what rounding keeps of it.

The sum is made in fp32 and then cast to the recipe's dtype. A 16-bit dtype
rounds away every change below half an ulp, so a short or timid run can be
erased by its own merge: ``merge_fidelity.json`` says how much survived.
An adapter that was trained on 4- or 8-bit weights is added to those, unpacked
(:mod:`helpers.stages.merge_base`).
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from helpers.base import (
    LINEAGE,
    LabError,
    Recipe,
    RunDir,
    disk_errors,
    fingerprint_model,
    hash_file,
    recipe_hash,
    require_current_merge,
    require_file,
    require_space,
    write_json,
)
from helpers.models import (
    fit_recipe,
    fix_model,
    load_model,
    model_path,
    save_tokenizer,
)
from helpers.planner import estimate_space
from helpers.problems import hash_problems, load_problems
from helpers.stages.guards import check_merge_fidelity
from helpers.stages.merge_base import load_exact, load_unmerged, name_base
from helpers.stages.merge_probe import (
    compare_logits,
    make_probe,
    measure_update,
)


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
        greedy_total tokens, dtype; ``base`` says which weights the adapter
        was added to, ``as_loaded`` how the merged model answers in the
        precision of ``model.merged_quantization``, where that is set.

    Raises:
        LabError: no such tag, no adapter to merge, no dev problems, or a
            base that was merged from an earlier adapter.
    """
    find_parts(recipe, run, tag)  # refused before a model is settled
    recipe = fix_model(recipe, run)
    adapter, base = find_parts(recipe, run, tag)
    inputs = {
        "adapter": hash_file(adapter),
        "base": fingerprint_model(base, recipe.model.revision),
        "dev": hash_problems(recipe.data.dev),
        "recipe": recipe_hash(recipe, "model"),
    }
    if run.is_done(f"merge/{tag}", inputs, force):
        print(f"The merge is done: {tag}/merged is loaded.")
        return run.metrics()[f"merge/{tag}"]
    require_space(run.path, estimate_space(recipe, "merge"))
    load_problems(recipe.data.dev)  # refused before a model is loaded
    outputs = [f"{tag}/merged", f"{tag}/merge_fidelity.json"]
    with run.stage(f"merge/{tag}", inputs) as record:
        fidelity = merge_and_save(recipe, run, tag, inputs)
        warning = check_merge_fidelity(
            *(fidelity[k] for k in ("cosine", "norm_kept", "entries_changed")),
            recipe.model.dtype,
        )
        if warning:
            print(f"Warning: {warning}")
        record.update(outputs=outputs, metrics=fidelity)
    return fidelity


def find_parts(recipe: Recipe, run: RunDir, tag: str) -> tuple[Path, Path]:
    """(adapter folder, base model folder or hub id) of a tag."""
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
    known by, see :func:`helpers.base.checkpoints.fingerprint_model`.
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
        save_tokenizer(tokenizer, partial)
        write_json(partial / LINEAGE, inputs)
    del model, merged
    saved, _ = load_exact(recipe, partial)
    fidelity |= compare_logits(probe, saved)
    fidelity["dtype"] = recipe.model.dtype
    fidelity["base"] = name_base(recipe, base)
    if kind := recipe.model.merged_quantization:
        del saved
        saved, _ = load_model(recipe, partial)
        fidelity["as_loaded"] = compare_logits(probe, saved) | {"in": kind}
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


def compare_bases(
    recipe: Recipe, run: RunDir, tag: str = "sft"
) -> dict[str, dict[str, Any]]:
    """The model that was trained against its adapter on three bases.

    For a recipe that trains on quantized weights; writes nothing.

    Returns:
        ``{base: max_abs_logit_diff, greedy_agree, greedy_total}`` for the
        dequantized base, for the weights as stored, and for the first of
        them merged, rounded to the recipe's dtype and quantized again.
    """
    import torch
    from peft import PeftModel

    from helpers.stages.trainer import quiet_setup

    adapter, base = find_parts(recipe, run, tag)
    kind = fit_recipe(recipe, base).model.quantization
    quantized, tokenizer = load_model(recipe, base)
    with quiet_setup():
        trained = PeftModel.from_pretrained(quantized, str(adapter)).eval()
    probe = make_probe(recipe, trained, tokenizer)
    found = {}
    for name, exact in ((name_base(recipe, base), False), ("as stored", True)):
        model, _ = load_unmerged(recipe, adapter, base, exact=exact)
        merged = model.merge_and_unload()
        merged = merged.to(getattr(torch, recipe.model.dtype))
        found[name] = compare_logits(probe, merged.float())
        if not exact:
            again = load_again(recipe, merged, tokenizer, kind)
            found[f"merged, {kind} again"] = compare_logits(probe, again)
    return found


def load_again(recipe: Recipe, model: Any, tokenizer: Any, kind: str) -> Any:
    """The model saved in a temporary folder and loaded in ``kind``."""
    changes = {"merged_quantization": kind}
    part = recipe.model.model_copy(update=changes)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        return load_model(
            recipe.model_copy(update={"model": part}), Path(folder)
        )[0]
