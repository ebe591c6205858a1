"""models"""

from helpers.base.recipe_schema import TEMPLATES
from helpers.grading.extract import read_answer
from helpers.models.chat import (
    MARKS,
    check_template,
    decode_response,
    render_prompt,
)
from helpers.models.device_memory import (
    measure_cpu_room,
    measure_fp32,
    read_container_limit,
)
from helpers.models.guards import (
    MARKERS,
    check_markers,
    check_prompt_text,
    check_single_bos,
)
from helpers.models.ladder import (
    GIB,
    DoesNotFit,
    free_memory,
    is_out_of_memory,
)
from helpers.models.load import (
    find_base,
    fit_recipe,
    is_base,
    load_model,
    load_tokenizer,
    model_path,
    save_tokenizer,
)
from helpers.models.precision import pick_device, resolve_dtype, widen_adapter
from helpers.models.settle import SETTLED, settle_model
from helpers.models.smol import SMOL_ID

__all__ = [
    "GIB",
    "MARKERS",
    "MARKS",
    "SETTLED",
    "SMOL_ID",
    "TEMPLATES",
    "DoesNotFit",
    "check_markers",
    "check_prompt_text",
    "check_single_bos",
    "check_template",
    "decode_response",
    "find_base",
    "fit_recipe",
    "free_memory",
    "is_base",
    "is_out_of_memory",
    "load_model",
    "load_tokenizer",
    "measure_cpu_room",
    "measure_fp32",
    "model_path",
    "pick_device",
    "read_answer",
    "read_container_limit",
    "render_prompt",
    "resolve_dtype",
    "save_tokenizer",
    "settle_model",
    "widen_adapter",
]
