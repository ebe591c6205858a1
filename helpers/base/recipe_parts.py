"""Sections of a recipe that stand alone: model, engine, and so on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    field_validator,
    model_validator,
)

from helpers.base.errors import LabError
from helpers.base.recipe_pins import PINNED_MODELS
from helpers.base.recipe_section import Section

TEMPLATE_DIR = Path(__file__).parent.parent / "recipes" / "templates"


class ModelConfig(Section):
    """Which weights, in which precision, and why that precision.

    ``dtype: auto`` is settled on the machine, by what its device computes
    in. ``quantization`` is of the base model; a merged model is loaded in
    16 bits unless ``merged_quantization`` says otherwise, because quantizing
    it again loses most of what was merged. ``ladder``: go down to 8 and 4
    bits, to ``offload`` and to the model ``smaller`` when memory runs out.
    ``revision`` is a commit on the hub; None becomes the pinned one where
    there is one, else it is the newest.
    """

    only_when_set = frozenset(
        {"merged_quantization", "ladder", "offload", "smaller"}
    )

    id: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    dtype_reason: str = ""
    quantization: Literal["nf4", "int8"] | None = None
    merged_quantization: Literal["nf4", "int8"] | None = None
    ladder: bool | None = None
    offload: bool | None = None
    smaller: str | None = None
    attn_implementation: str = "sdpa"

    @model_validator(mode="after")
    def _pin(self) -> ModelConfig:
        """The pinned commit of this model, never one of another's."""
        if self.revision is None or self.revision in PINNED_MODELS.values():
            self.revision = PINNED_MODELS.get(self.id)
        return self


class EngineConfig(Section):
    """How completions are sampled.

    ``transformers`` runs in this process; ``vllm`` starts servers of its own
    or, with ``url``, uses one that runs already. None of the sizes: chosen by
    the planner.
    """

    name: Literal["transformers", "vllm"] = "transformers"
    # transformers: most rows, and most tokens in the cache, at once
    max_batch_size: int = Field(default=128, gt=0)
    max_batch_tokens: int | None = Field(default=None, gt=0)
    # vllm
    url: str | None = None
    command: str = "vllm"
    tensor_parallel_size: int | None = Field(default=None, gt=0)
    data_parallel_size: int | None = Field(default=None, gt=0)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    max_model_len: int | None = Field(default=None, gt=0)
    max_concurrency: int = Field(default=256, gt=0)
    enforce_eager: bool = False
    startup_timeout_s: float = Field(default=900, gt=0)
    request_timeout_s: float = Field(default=600, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _forget_recording(cls, settings: Any) -> Any:
        """A setting that earlier runs still name, and that had no value."""
        if isinstance(settings, dict) and settings.get("recording", 0) is None:
            return {k: v for k, v in settings.items() if k != "recording"}
        return settings


class SolutionsConfig(Section):
    """Worked solutions that SFT trains on instead of own samples.

    ``mix``: problems wanted by source, a registered set or a problem file;
    0 takes a source of the parent recipe out.
    ``against``: sets that no row may overlap with; None: the recipe's
    benchmarks. ``templated``: problems made from templates share their
    words, so only a whole problem counts as the same. ``least``: a source
    that ends with a smaller share of what was wanted is lost, which is an
    error. ``mark``: how an answer is marked where the prompt template does
    not say. ``cap``: most rows. ``chat`` off leaves the chat format away in
    training only, as an ablation should and nothing else.
    """

    mix: dict[str, NonNegativeInt]
    against: tuple[str, ...] | None = None
    templated: bool = False
    least: float = Field(default=0.5, gt=0, le=1)
    mark: Literal["boxed", "hash"] = "boxed"
    cap: int | None = Field(default=None, gt=0)
    chat: bool = True

    @field_validator("mix")
    @classmethod
    def _some_source(cls, mix: dict[str, int]) -> dict[str, int]:
        """Without the sources that a recipe takes out of its parent's."""
        left = {name: wanted for name, wanted in mix.items() if wanted}
        if not left:
            raise ValueError("no source is left in the mix")
        return left


class CourseConfig(Section):
    """How many problems the notebooks ask a model beside the stages.

    ``dev``: of the dev set, before and after a stage; ``sweep``: at each
    temperature; ``seeding``: in each arm of the seed experiment.
    ``samples``: how many of each problem of the main set, for pass@k.
    """

    dev: int = Field(default=200, gt=0)
    sweep: int = Field(default=48, gt=0)
    seeding: int = Field(default=100, gt=1)
    samples: int = Field(default=4, gt=1)


def read_templates(folder: Path = TEMPLATE_DIR) -> dict[str, str]:
    """``{name: text}`` of the files ``<name>.txt``; each has one slot.

    The line break that ends a file is not part of its text.

    Raises:
        LabError: a file without ``{problem}``, or with several.
    """
    texts = {}
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="utf-8").removesuffix("\n")
        if text.count("{problem}") != 1:
            raise LabError(
                f"The prompt template {path} has {{problem}} "
                f"{text.count('{problem}')} times instead of once.",
                fix="write it where the problem's text shall stand",
            )
        texts[path.stem] = text
    return texts


TEMPLATES = read_templates()
