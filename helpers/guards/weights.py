"""Adapters that reach nothing, and merges that keep nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from helpers.errors import LabError, did_you_mean

MIN_COSINE = 0.9


def check_lora_targets(
    targets: Iterable[str],
    modules: Collection[str],
    *,
    layers: Sequence[int] | None = None,
    layer_count: int | None = None,
) -> None:
    """Refuse a LoRA target that matches nothing in the model.

    Story: a published T4 run listed ``W_pack``, a module of another family,
    among the targets of TinyLlama. peft said nothing and adapted the other
    seven. Where *no* target matches, peft does stop; where one of several
    does not, part of the plan is silently dropped.

    Args:
        targets: module names, as in ``lora.target_modules``.
        modules: last names of the model's modules.
        layers: numbers of the layers that get a LoRA; None: all.
        layer_count: how many layers the model has; None: unknown.

    Raises:
        LabError: names the target, or the layer, that is not there.
    """
    for target in targets:
        if target not in modules:
            raise LabError(
                f"The model has no module '{target}'."
                f"{did_you_mean(target, modules)}",
                why="LoRA is put on the modules named in lora.target_modules",
                fix="name the projections of this model's architecture",
            )
    beyond = [n for n in layers or () if layer_count and n >= layer_count]
    if beyond:
        raise LabError(
            f"The model has {layer_count} layers, numbered from 0; "
            f"lora.layers names {', '.join(map(str, beyond))}.",
            why="a layer that is not there gets no LoRA, silently",
            fix=f"name layers from 0 to {layer_count - 1}",
        )


def check_merge_fidelity(
    cosine: float, norm_kept: float, entries_changed: float, dtype: str
) -> str | None:
    """Warn when a merged model holds another update than was trained.

    Story: the published 7B run merged its DPO adapter into bf16 weights. Of
    an update of that size 1.4 % of the entries survive the rounding, with a
    fifth of its norm and a cosine of 0.16 to the true one. What was
    evaluated was hardly the model that had been trained.

    Args:
        cosine: of the stored and the intended update.
        norm_kept: ratio of their norms.
        entries_changed: share of entries whose stored value differs at all.
        dtype: that the merged weights are stored in.

    Returns:
        A warning, or None when the stored update is the intended one.
    """
    if entries_changed and cosine >= MIN_COSINE:
        return None
    if not entries_changed:
        return (
            f"The merge into {dtype} changed no weight at all: the adapter "
            "is zero, or every entry was rounded away. The merged model is "
            "its base; evaluating it again would measure nothing."
        )
    return (
        f"The merge into {dtype} kept another update than was trained: "
        f"cosine {cosine:.2f}, {norm_kept:.0%} of its norm, "
        f"{entries_changed:.1%} of the entries changed. Merge in float32 "
        "(--set model.dtype=float32), raise the learning rate or the steps, "
        "or evaluate the adapter unmerged."
    )
