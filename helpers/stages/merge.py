"""Merge: an adapter goes into its base weights; what did rounding keep?

base in fp32 → with adapter → add → cast, save → measure what was saved

The sum is made in fp32 and then cast to the recipe's dtype. A 16-bit dtype
rounds away every change below half an ulp, so a short or timid run can be
erased by its own merge: ``merge_fidelity.json`` says how much survived.

An adapter that was trained on 4- or 8-bit weights has learnt around their
rounding error. So it is added to those weights, unpacked (dequantized), and
not to the 16-bit ones that they were made from.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.base import (
    LINEAGE,
    LabError,
    Recipe,
    RunDir,
    Tag,
    disk_errors,
    fingerprint_model,
    hash_file,
    open_stage,
    recipe_hash,
    require_current_merge,
    require_file,
    write_json,
)
from helpers.models import (
    GIB,
    DoesNotFit,
    fit_recipe,
    free_memory,
    is_base,
    is_out_of_memory,
    load_model,
    measure_cpu_room,
    measure_fp32,
    model_path,
    pick_device,
    render_prompt,
    resolve_dtype,
    save_tokenizer,
    settle_model,
)
from helpers.planner import estimate_space
from helpers.problems import hash_problems, load_problems
from helpers.stages.guards import check_merge_fidelity

PROBE_PROMPTS = 16
PROBE_TOKENS = 32


def run_merge(
    recipe: Recipe,
    run: RunDir,
    tag: str,
    *,
    force: bool = False,
    check: bool = False,
) -> dict[str, Any]:
    """Merge the adapter of ``tag``; write the model and its fidelity.

    Writes ``<tag>/merged`` (weights and tokenizer) and
    ``<tag>/merge_fidelity.json``. What is measured is the saved folder,
    loaded again.

    Args:
        tag: "sft", "dpo" or "dpo-<variant>". The base of "sft" is the
            recipe's model, that of the others ``sft/merged``.
        check: stop before a model is loaded; returns the recorded metrics
            or {}.

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
    # Step 1: the parts are there, before a model is looked at
    find_parts(recipe, run, tag)
    recipe = settle_model(recipe, run, check)
    adapter, base = find_parts(recipe, run, tag)
    # Step 2: all that the merged model depends on
    inputs = {
        "adapter": hash_file(adapter),
        "base": fingerprint_model(base, recipe.model.revision),
        "dev": hash_problems(recipe.data.dev),
        "recipe": recipe_hash(recipe, "model"),
    }
    # Step 3: merge, unless that is done
    with open_stage(
        run,
        f"merge/{tag}",
        inputs,
        outputs=[f"{tag}/merged", f"{tag}/merge_fidelity.json"],
        megabytes=estimate_space(recipe, "merge"),
        force=force,
        check=check,
    ) as stage:
        if not stage.done:
            load_problems(recipe.data.dev)  # or refused here
        if stage.is_needed:
            stage.metrics = merge_and_save(recipe, run, tag, inputs)
    return stage.metrics


def merge_and_save(
    recipe: Recipe, run: RunDir, tag: str, inputs: dict[str, str]
) -> dict[str, Any]:
    """Merge, save under a temporary name, measure the files, rename.

    ``inputs`` are saved beside the weights: they are what the model is
    known by, see :func:`helpers.base.fingerprint_model`.
    """
    import torch

    adapter, base = find_parts(recipe, run, tag)
    dtype = getattr(torch, recipe.model.dtype)
    # What was meant: the fp32 update, and the unmerged model's answers
    model, tokenizer = load_unmerged(recipe, adapter, base)
    fidelity = measure_update(model, dtype)
    probe = make_probe(recipe, model, tokenizer)
    # Add, cast, save
    target = run.file(tag, "merged")
    partial = target.with_name("merged.partial")
    with disk_errors(target):
        shutil.rmtree(partial, ignore_errors=True)
        merged = model.merge_and_unload(safe_merge=True).to(dtype)
        merged.save_pretrained(partial)
        save_tokenizer(tokenizer, partial)
        write_json(partial / LINEAGE, inputs)
    del model, merged
    # What was kept: the saved files, loaded again
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
    warning = check_merge_fidelity(
        *(fidelity[k] for k in ("cosine", "norm_kept", "entries_changed")),
        recipe.model.dtype,
    )
    if warning:
        print(f"Warning: {warning}")
    return fidelity


def find_parts(recipe: Recipe, run: RunDir, tag: str) -> tuple[Path, Path]:
    """(adapter folder, base model folder or hub id) of a tag."""
    which = Tag.parse(tag, trained=True)
    if which.variant:
        recipe.dpo_variant(which.variant)
    command = f"mathslm {which.options}"
    adapter = require_file(run.file(tag, "adapter"), command, run)
    if which.model == "sft":
        return adapter, model_path(recipe, run, "base")
    merged = model_path(recipe, run, "sft")
    require_current_merge(run, "sft")
    return adapter, require_file(merged, "mathslm merge --model sft", run)


# --- the base in fp32 ---


def load_unmerged(
    recipe: Recipe, adapter: Path, base: Path, *, exact: bool = False
) -> tuple[Any, Any]:
    """The fp32 base with its adapter beside it, and the tokenizer.

    ``exact``: the base as it is stored, also where training quantized it.
    """
    from peft import PeftModel

    from helpers.stages.trainer import quiet_setup

    load = load_exact if exact else load_trained_base
    model, tokenizer = load(recipe, base)
    with quiet_setup():
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval(), tokenizer


def load_trained_base(recipe: Recipe, path: Path) -> tuple[Any, Any]:
    """The weights as training saw them, in fp32, and the tokenizer.

    Quantized ones are made from the recipe's dtype, as for training, and
    unpacked.
    """
    if fit_recipe(recipe, path).model.quantization is None:
        return load_exact(recipe, path)
    # Before the device may change: a CPU could choose another format.
    recipe = resolve_dtype(recipe)
    return load_where_it_fits(load_unpacked, recipe, path)


def load_exact(recipe: Recipe, path: Path) -> tuple[Any, Any]:
    """A model in fp32, unquantized, whatever the recipe computes in.

    On a card that cannot hold it the CPU does.
    """
    recipe = recipe.with_model(
        dtype="float32",
        quantization=None,
        merged_quantization=None,
        ladder=None,
        offload=None,
    )
    return load_where_it_fits(load_model, recipe, path)


def load_unpacked(recipe: Recipe, path: Path) -> tuple[Any, Any]:
    """The quantized model, unpacked to fp32 on its device."""
    import torch

    model, tokenizer = load_model(recipe, path)
    # It warns of the very cast that is asked for.
    logging.getLogger("transformers.integrations.bitsandbytes").setLevel(
        logging.ERROR
    )
    return model.dequantize(torch.float32).float(), tokenizer


def load_where_it_fits(
    load: Callable[[Recipe, Path], tuple[Any, Any]],
    recipe: Recipe,
    path: Path,
) -> tuple[Any, Any]:
    """What ``load`` gives on the recipe's device; of a small card on the CPU.

    Raises:
        LabError: the CPU's memory is too small too; says how much it takes.
    """
    device = pick_device(recipe)
    try:
        return load(recipe, path)
    except Exception as error:
        if not (isinstance(error, DoesNotFit) or is_out_of_memory(error)):
            raise
    # Outside the handler: the error's frames held what was loaded.
    free_memory()
    need = measure_fp32(
        Path(path), recipe.model.revision, is_base(recipe, path)
    )
    room = measure_cpu_room()
    # A CPU promises more memory than it has, and then ends the process.
    if device == "cpu" or room < need:
        raise refuse_merge(need, room)
    print("In fp32 the model is too large for the card: merging on the CPU.")
    recipe = recipe.with_section("hardware", device="cpu")
    return load_where_it_fits(load, recipe, path)


def refuse_merge(need: int, room: int) -> LabError:
    """The error of a machine that holds no fp32 model of this size."""
    return LabError(
        f"The merge needs {need / GIB:.1f} GiB of memory for the model in "
        f"fp32; {room / GIB:.1f} GiB are free.",
        why="four bytes a parameter, on a card or else in the machine's "
        "memory",
        fix="close other programs, or copy the run folder to a machine with "
        "more memory and merge there",
    )


def name_base(recipe: Recipe, path: Path) -> str:
    """ "as stored", or "dequantized nf4" where training saw quantized ones."""
    kind = fit_recipe(recipe, path).model.quantization
    return f"dequantized {kind}" if kind else "as stored"


# --- what was kept ---


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


def make_probe(recipe: Recipe, model: Any, tokenizer: Any) -> Probe:
    """Let the unmerged model answer the first dev problems greedily."""
    import torch

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
