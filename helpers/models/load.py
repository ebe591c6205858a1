"""Find and load a model: which folder, which precision, how many bits.

find the folder → choose dtype and device → quantize → load → chat tokenizer

Where a model is looked for: a folder inside the repository (or an absolute
one), then the same name under ``MATHSLM_MODEL_DIR`` (a classroom without a
network copies its models there), then the hub or its local cache. The model
of tier smol comes from a Python package instead (:mod:`helpers.models.smol`).

``dtype: auto`` of a recipe becomes the best format that the device computes
in, with the reason. ``quantization`` becomes a bitsandbytes configuration; a
quantized model is made ready for QLoRA by PEFT. Under QLoRA the adapters are
kept in fp32: TRL 1.16 turns them to bf16 on a quantized base, where AdamW
has no fp32 copy. A weight then stands still as soon as a step is below 1/256
of it, and fp16 loss scaling has no bf16 kernel to unscale the gradients with.

torch is imported inside the functions: finding a path stays light.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

from helpers.base import (
    REPO_ROOT,
    LabError,
    Recipe,
    RunDir,
    Tag,
    read_json,
    use_cache_when_unreachable,
    write_json,
)
from helpers.models.ladder import (
    LadderResult,
    LadderStep,
    apply_step,
    list_steps,
    map_layers,
    measure_training_room,
    raise_out_of_memory,
    reserve_room,
    walk_ladder,
)
from helpers.models.smol import SMOL_ID, ensure_smol
from helpers.planner import BF16_CAPABILITY, check_precision

OWN_FOLDERS = ("data/", "runs/", "./", "../", "/")
# Tokens that never end a response, best first, for a tokenizer without pad.
PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "<unk>")


# --- where a model lies ---


def model_path(recipe: Recipe, run: RunDir, tag: str) -> Path:
    """Where the model called ``tag`` lies, or will lie.

    ``base`` gives a local folder or, when there is none, the hub id as a
    path; ``sft``, ``dpo`` and ``dpo-<variant>`` give ``<tag>/merged`` in the
    run folder.

    Raises:
        LabError: unknown tag, or the recipe names a missing folder.
    """
    if tag == "base":
        return find_base(recipe)
    recipe.dpo_variant(Tag.parse(tag).variant)
    return run.file(tag, "merged")


def find_base(recipe: Recipe) -> Path:
    """The base model's folder, or its hub id as a path."""
    name = recipe.model.id
    if name == SMOL_ID:
        return ensure_smol()
    if (REPO_ROOT / name).is_dir():
        return REPO_ROOT / name
    if copies := os.environ.get("MATHSLM_MODEL_DIR"):
        for local in (Path(copies) / name, Path(copies) / Path(name).name):
            if local.is_dir():
                return local
    if name.startswith(OWN_FOLDERS):
        raise LabError(
            f"There is no model folder {REPO_ROOT / name}.",
            fix="check model.id, or copy the folder there",
        )
    use_cache_when_unreachable()
    return Path(name)


def is_base(recipe: Recipe, path: str | Path | None) -> bool:
    """True for the recipe's own model, False for one merged in a run."""
    return path is None or Path(path) == find_base(recipe)


def fit_recipe(recipe: Recipe, path: str | Path | None) -> Recipe:
    """The recipe with the quantization that holds for the model in ``path``.

    A merged model is not quantized unless ``model.merged_quantization`` is
    set.
    """
    if recipe.model.quantization is None or is_base(recipe, path):
        return recipe
    changes = {"quantization": recipe.model.merged_quantization}
    model = recipe.model.model_copy(update=changes)
    return recipe.model_copy(update={"model": model})


# --- load it ---


def load_model(
    recipe: Recipe, path: str | Path | None = None, *, training: bool = False
) -> tuple[Any, Any]:
    """The model in the recipe's precision on its device, and its tokenizer.

    With ``model.ladder`` it goes down to fewer bits when memory runs out,
    and says so; see :mod:`helpers.models.ladder`.

    Args:
        recipe: says dtype, quantization, attention and device.
        path: a folder or hub id; None for the recipe's base model.
        training: make a quantized model ready for QLoRA, and leave room
            for what the planner says that training takes beside it.

    Returns:
        (model in eval mode, tokenizer).

    Raises:
        LabError: nothing to load there, or it does not fit the memory.
    """
    return load_down_the_ladder(recipe, path, training=training).loaded


def load_down_the_ladder(
    recipe: Recipe, path: str | Path | None = None, *, training: bool = False
) -> LadderResult:
    """:func:`load_model` with the step that held and what each one cost."""
    device = pick_device(recipe)
    recipe = resolve_dtype(recipe)
    if recipe.model.dtype != "float32":
        print(explain_precision(recipe, device))
    if training:
        require_trainable(recipe, device)
    base = is_base(recipe, path)
    room = 0
    if training and device == "cuda":
        room = measure_training_room(recipe, base)
    steps = list_steps(recipe, base=base, training=training, device=device)

    def load(step: LadderStep) -> tuple[Any, Any]:
        loaded = load_step(recipe, path, step, device)
        if training:
            prepare_training(loaded[0])
        # After it: it turns embeddings and head to fp32, which is more.
        reserve_room(room, device)
        return loaded

    return walk_ladder(steps, load)


def load_step(
    recipe: Recipe, path: str | Path | None, step: LadderStep, device: str
) -> tuple[Any, Any]:
    """The model in ``path`` (None: the base) as one step holds it.

    Raises:
        LabError: nothing to load there.
        RuntimeError: it does not fit, in torch's or another's words.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if step.model:
        recipe, path = apply_step(recipe, step), None
    # A revision names a commit of the base on the hub, of nothing else.
    revision = recipe.model.revision if is_base(recipe, path) else None
    path = find_base(recipe) if path is None else Path(path)
    tokenizer = load_tokenizer(path, revision)
    place = {"": device} if step.quantization else None
    if step.offload:
        place = map_layers(path, revision, device, step)
    try:
        with raise_out_of_memory():
            model = AutoModelForCausalLM.from_pretrained(
                path.as_posix(),
                revision=revision,
                dtype=getattr(torch, step.dtype),
                attn_implementation=recipe.model.attn_implementation,
                quantization_config=make_quantization(
                    step.quantization, step.dtype, offload=step.offload
                ),
                device_map=place,
                offload_folder=tempfile.mkdtemp(prefix="mathslm-offload-")
                if step.offload
                else None,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _explain_missing(path, error) from None
    model = keep_layout(model.eval())
    if is_base(recipe, path):
        # An adapter names it; a cache folder would tie that to one machine.
        model.name_or_path = recipe.model.id
    return (model if place else model.to(device)), tokenizer


def _explain_missing(path: str | Path, error: Exception) -> LabError:
    first = str(error).strip().split("\n")[0]
    if Path(path).is_dir():
        return LabError(
            f"Cannot load a model from {path}: {first}",
            fix="check that the folder holds config.json, the weights and "
            "the tokenizer of one model",
        )
    return LabError(
        f"Cannot load the model {Path(path).as_posix()}: {first}",
        why="it is neither a local folder nor, as far as this machine can "
        "reach, a hub model",
        fix="check model.id and the network; for a gated model log in with "
        "'hf auth login'; without a network set MATHSLM_MODEL_DIR to a "
        "folder with a copy",
    )


# --- its tokenizer ---


def load_tokenizer(path: str | Path, revision: str | None = None) -> Any:
    """A tokenizer that pads on the left and has a pad and an end token.

    Raises:
        LabError: no such folder or hub model, no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            Path(path).as_posix(), revision=revision, padding_side="left"
        )
    except (OSError, ValueError) as error:
        raise _explain_missing(path, error) from None
    if tokenizer.eos_token is None:
        raise LabError(
            f"The tokenizer of {path} has no end token.",
            why="neither training nor sampling would know where to stop",
        )
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        known = [t for t in PAD_CANDIDATES if t in vocabulary]
        # The end token is the last resort: masking pads would mask it too.
        tokenizer.pad_token = known[0] if known else tokenizer.eos_token
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Save a tokenizer so that it comes back as it was.

    transformers leaves ``legacy`` out of the saved settings. Mistral's
    tokenizer has it: without it the saved one puts a space before the first
    word only, and encodes every prompt otherwise than the base model's.
    """
    tokenizer.save_pretrained(folder)
    if getattr(tokenizer, "legacy", False):
        path = Path(folder) / "tokenizer_config.json"
        write_json(path, {**read_json(path), "legacy": True})


# --- device and number format ---


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


# --- fewer bits ---


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
    if importlib.util.find_spec("bitsandbytes") is None:
        raise LabError(
            f"The recipe wants {kind} weights, and bitsandbytes is not "
            "installed.",
            fix='python -m pip install -c constraints.txt -e ".[gpu]"',
        )
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
