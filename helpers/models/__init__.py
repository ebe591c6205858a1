"""Models: find and load them, hold them in fewer bits, talk to them.

Nothing here imports torch before a model is loaded.
"""

from helpers.models.chat import (
    MARKERS,
    MARKS,
    check_markers,
    check_prompt_text,
    check_single_bos,
    check_template,
    decode_response,
    render_prompt,
)
from helpers.models.ladder import (
    MODEL_FILE,
    DoesNotFit,
    fix_model,
    free_memory,
    is_out_of_memory,
    measure_cpu_room,
    measure_fp32,
    read_container_limit,
)
from helpers.models.load import (
    find_base,
    fit_recipe,
    is_base,
    load_model,
    load_tokenizer,
    model_path,
    pick_device,
    resolve_dtype,
    save_tokenizer,
    widen_adapter,
)
from helpers.models.smol import SMOL_ID

__all__ = [
    "MARKERS",
    "MARKS",
    "MODEL_FILE",
    "SMOL_ID",
    "DoesNotFit",
    "check_markers",
    "check_prompt_text",
    "check_single_bos",
    "check_template",
    "decode_response",
    "find_base",
    "fit_recipe",
    "fix_model",
    "free_memory",
    "is_base",
    "is_out_of_memory",
    "load_model",
    "load_tokenizer",
    "measure_cpu_room",
    "measure_fp32",
    "model_path",
    "pick_device",
    "read_container_limit",
    "render_prompt",
    "resolve_dtype",
    "save_tokenizer",
    "widen_adapter",
]
