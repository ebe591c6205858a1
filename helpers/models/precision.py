"""Which number format, and how many bits a weight: chosen by capability.

``dtype: auto`` of a recipe becomes the best format that the device computes
in, with the reason. ``quantization`` becomes a bitsandbytes configuration;
a quantized model is made ready for QLoRA by PEFT.

Under QLoRA the adapters are kept in fp32. TRL 1.16 turns them to bf16 on a
quantized base, where AdamW has no fp32 copy: a weight then stands still as
soon as a step is below 1/256 of it, and fp16 loss scaling has no bf16
kernel to unscale the gradients with.
"""

from __future__ import annotations

from typing import Any

from helpers.base import LabError, Recipe
from helpers.planner import BF16_CAPABILITY, check_precision


def pick_device(recipe: Recipe) -> str:
    """ "cuda", "mps" or "cpu", as the recipe asks.

    Raises:
        LabError: the recipe names a device that this machine lacks.
    """
    import torch

    have = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    wanted = recipe.hardware.device
    if wanted == "auto":
        return next(name for name, there in have.items() if there)
    if not have[wanted]:
        raise LabError(
            f"Recipe '{recipe.name}' asks for device '{wanted}', "
            "which torch does not find here.",
            fix="set hardware.device=auto, or start where there is one "
            "(mathslm doctor says what this machine has)",
        )
    return wanted


def resolve_dtype(recipe: Recipe) -> Recipe:
    """The recipe with ``dtype: auto`` replaced by what the device can do.

    The reason takes the place of ``dtype_reason``; other recipes come back
    as they are.
    """
    if recipe.model.dtype != "auto":
        return recipe
    dtype, reason = choose_dtype(pick_device(recipe))
    changes = {"dtype": dtype, "dtype_reason": f"chosen: {reason}"}
    model = recipe.model.model_copy(update=changes)
    return recipe.model_copy(update={"model": model})


def choose_dtype(device: str) -> tuple[str, str]:
    """(dtype, reason) for "cuda", "mps" or "cpu".

    The reason names the rule, not the card: it is stored with a run, which
    may go on on another card of the same kind.
    """
    import torch

    if device == "cuda":
        if torch.cuda.get_device_capability() >= BF16_CAPABILITY:
            return "bfloat16", "the card has bf16 (SM 8.0 or newer)"
        return "float16", "the card has no bf16 (SM below 8.0)"
    if device == "cpu":
        if torch.cpu._is_avx512_bf16_supported():
            return "bfloat16", "this CPU has bf16 instructions"
        if torch.cpu._is_amx_tile_supported():
            return "bfloat16", "this CPU has AMX tiles for bf16"
        return "float32", "this CPU has no bf16 instructions"
    return "float32", f"16 bits were not tried on {device}"


def explain_precision(recipe: Recipe, device: str) -> str:
    """One line: the 16-bit precision, why, and what this device makes of it.

    Raises:
        LabError: bfloat16 on a card that has none (compute capability
            below 8.0, such as a T4's 7.5).
    """
    import torch

    name, has = recipe.model.dtype, ""
    if name == "bfloat16" and device == "cuda":
        check_precision(
            torch.cuda.get_device_name(),
            torch.cuda.get_device_capability(),
            name,
        )
    if name == "bfloat16" and device == "cpu":
        has = "; this CPU computes in it"
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            has = "; this CPU only imitates it: model.dtype=float32 is faster"
    reason = recipe.model.dtype_reason or "as the recipe says"
    return f"precision {name}: {reason}{has}"


def require_trainable(recipe: Recipe, device: str) -> None:
    """LabError for a precision that cannot be trained on this device."""
    if recipe.model.dtype == "float16" and device == "cpu":
        raise LabError(
            f"Recipe '{recipe.name}' trains in float16, which needs a GPU.",
            why="fp16 is trained with loss scaling, which accelerate has no "
            "kernels for on a CPU",
            fix="--set model.dtype=auto picks what this machine can do",
        )


def make_quantization(
    kind: str | None, dtype: str, *, offload: bool = False
) -> Any:
    """The bitsandbytes configuration of a kind of quantization, or None.

    ``nf4`` is QLoRA's 4-bit NormalFloat with double quantization, computing
    in ``dtype``; ``int8`` is LLM.int8(). ``offload``: what does not fit
    stays outside the device, in ``dtype``.

    Raises:
        LabError: bitsandbytes is not installed.
    """
    if kind is None:
        return None
    require_bitsandbytes(kind)
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_enable_fp32_cpu_offload=offload,
    )


def require_bitsandbytes(kind: str) -> None:
    """LabError where the library that quantizes is missing."""
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise LabError(
            f"The recipe wants {kind} weights, and bitsandbytes is not "
            "installed.",
            fix='python -m pip install -c constraints.txt -e ".[gpu]"',
        )


def keep_layout(model: Any) -> Any:
    """Keep bitsandbytes 0.50 from repacking 4-bit weights on a CPU.

    The first forward pass in eval mode would turn them, where the CPU has
    AVX512-BF16, into a layout with bf16 scales that passes no gradient: a
    model that was asked once could not be trained any more.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def is_quantized(model: Any) -> bool:
    """True for a model that bitsandbytes holds in 4 or 8 bits."""
    return bool(
        getattr(model, "is_loaded_in_4bit", False)
        or getattr(model, "is_loaded_in_8bit", False)
    )


def prepare_training(model: Any) -> Any:
    """A quantized model as QLoRA trains it; another one unchanged.

    PEFT's preparation freezes the weights and keeps what was not quantized
    (embeddings, head, norms) in fp32. Checkpointing is left to the trainer.
    """
    if not is_quantized(model):
        return model
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=False
    )


def widen_adapter(model: Any) -> int:
    """Turn a 16-bit adapter on a quantized base to fp32; how many tensors.

    To be called after TRL has built its trainer and before the optimizer
    is made.
    """
    import torch

    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    if not is_quantized(inner):
        return 0
    narrow = [
        weight
        for weight in model.parameters()
        if weight.requires_grad and weight.dtype != torch.float32
    ]
    for weight in narrow:
        weight.data = weight.data.float()
    return len(narrow)
