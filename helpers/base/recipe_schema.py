"""The shape of a recipe, as pydantic models.

A recipe is made of sections, from the model to the machine; YAML reads
``1e-4`` as text, and the float fields below accept it. Every section refuses
unknown keys.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from helpers.base.errors import LabError, did_you_mean

TEMPLATE_DIR = Path(__file__).parent.parent / "recipes" / "templates"
LORA_MODULES = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
# Commits of the models that recipes name, where public code names one.
PINNED_MODELS = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        "fe8a4ea1ffedaf415f4da2f062534de366a451e6"
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
        "ad9f0ae0864d7fbcd1cd905e3c6c5b069cc8b562"
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": (
        "916b56a44061fd5cd7d6a8fb632557ed4f724f60"
    ),
    "meta-llama/Llama-3.2-1B": "4e20de362430cd3b72f300e6b0f18e50e7166e08",
    "meta-llama/Llama-3.2-1B-Instruct": (
        "9213176726f574b556790deb65791e0c5aa438b6"
    ),
}


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


class Section(BaseModel):
    """A recipe section: unknown keys are errors.

    Fields named in ``only_when_set`` are left out of a dump while they are
    None. So one can be added without changing the hash of settings that do
    not use it, and with it every recorded run.
    """

    model_config = ConfigDict(extra="forbid")
    only_when_set: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _leave_out_unset(
        self, dump: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        return {
            key: value
            for key, value in dump(self).items()
            if value is not None or key not in self.only_when_set
        }


class ModelConfig(Section):
    """Which weights, in which precision, and why that precision.

    ``dtype: auto`` is chosen on the machine, by what its device computes
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


class DataConfig(Section):
    """Problem sets: a path relative to ``data/``, or a registry name."""

    train: str
    dev: str
    n_problems: int = Field(gt=0)
    prompt_template: str = "plain"

    @field_validator("prompt_template")
    @classmethod
    def _template_exists(cls, name: str) -> str:
        if name not in TEMPLATES:
            raise ValueError(
                f"no such template.{did_you_mean(name, TEMPLATES)} "
                f"There are: {', '.join(TEMPLATES)}"
            )
        return name


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


class SamplingConfig(Section):
    """Settings of self-distillation sampling."""

    n: int = Field(default=4, gt=0)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(gt=0)
    stop: tuple[str, ...] = ()


class HarvestConfig(Section):
    """What is kept of the graded samples.

    ``expected_sft_rows`` and ``expected_pairs`` are for planning only: what
    a harvest is known to give. None: a share of the problems is assumed.
    """

    only_when_set = frozenset({"expected_sft_rows", "expected_pairs"})

    pick: Literal["first", "shortest", "random"] = "first"
    min_pairs: int = Field(default=0, ge=0)
    min_distinct_fraction: float = Field(default=0.9, ge=0, le=1)
    expected_sft_rows: int | None = Field(default=None, gt=0)
    expected_pairs: int | None = Field(default=None, gt=0)


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


class LoraSettings(Section):
    """PEFT LoRA settings; the default targets are all seven projections.

    ``layers``: numbers of the layers that get a LoRA, from 0. None: all.
    """

    only_when_set = frozenset({"layers"})

    r: int = Field(default=16, gt=0)
    alpha: int = Field(default=32, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    target_modules: tuple[str, ...] = LORA_MODULES
    layers: tuple[NonNegativeInt, ...] | None = Field(
        default=None, min_length=1
    )


class TrainConfig(Section):
    """What SFT and DPO share.

    ``effective_batch`` is per optimizer step over all devices; gradient
    accumulation is solved from it. ``optim`` is a name of transformers; None
    is the trainer's own default, and what a paged optimizer, which needs
    CUDA, becomes elsewhere.
    """

    only_when_set = frozenset({"optim"})

    lora: LoraSettings = LoraSettings()
    learning_rate: float = Field(gt=0)
    epochs: float = Field(gt=0)
    max_steps: int = -1
    effective_batch: int = Field(gt=0)
    per_device_batch: int = Field(gt=0)
    lr_scheduler: Literal[
        "cosine", "linear", "constant", "constant_with_warmup"
    ] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(gt=0)
    logging_steps: int = Field(default=1, gt=0)
    gradient_checkpointing: bool = False
    optim: (
        Literal[
            "adamw_torch",
            "adamw_torch_fused",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _batch_divides(self):
        if self.effective_batch % self.per_device_batch:
            raise ValueError(
                f"effective_batch={self.effective_batch} is not a multiple "
                f"of per_device_batch={self.per_device_batch}"
            )
        return self

    def pick_optimizer(self, device: str) -> dict[str, str]:
        """``{"optim": name}``, or nothing for the trainer's own default."""
        if self.optim is None:
            return {}
        if "paged" in self.optim and device != "cuda":
            print(f"{self.optim} needs CUDA: the default AdamW is used here.")
            return {}
        return {"optim": self.optim}


class SftConfig(TrainConfig):
    """Supervised fine-tuning on the harvest, or on worked solutions.

    ``prompt_loss``: learn the prompts too, which only an ablation should.
    """

    only_when_set = frozenset({*TrainConfig.only_when_set, "prompt_loss"})

    packing: bool = False
    min_steps_per_epoch: int = Field(default=30, ge=0)
    prompt_loss: bool | None = None


class DpoConfig(TrainConfig):
    """Direct preference optimisation on the harvested pairs.

    ``stop_below_nats``: end the run after ``noop_after_steps`` steps when
    its mean margin over beta, projected to the last step, is smaller: the
    evaluation will show nothing.
    None: never.
    """

    only_when_set = TrainConfig.only_when_set | {"stop_below_nats"}

    beta: float = Field(default=0.1, gt=0)
    precompute_ref_log_probs: bool = True
    noop_margin: float = Field(default=0.02, ge=0)
    noop_after_steps: int = Field(default=20, gt=0)
    overfit_margin: float = Field(default=5.0, gt=0)
    stop_below_nats: float | None = Field(default=None, gt=0)


class GrpoConfig(Section):
    """Group-relative policy optimisation, for planning: no stage runs it yet.

    Batches count completions, ``num_generations`` of them a prompt.
    ``reward_weights`` are those of ``rewards``, in the same order; ``lora``
    None trains all weights.
    """

    lora: LoraSettings | None = LoraSettings()
    learning_rate: float = Field(gt=0)
    epochs: float = Field(default=1, gt=0)
    max_steps: int = -1
    effective_batch: int = Field(gt=0)
    per_device_batch: int = Field(gt=0)
    num_generations: int = Field(gt=1)
    max_completion_length: int = Field(gt=0)
    temperature: float = Field(default=1.0, gt=0)
    beta: float = Field(default=0.0, ge=0)
    rewards: tuple[str, ...] = ()
    reward_weights: tuple[float, ...] = ()
    lr_scheduler: Literal[
        "cosine", "cosine_with_min_lr", "linear", "constant"
    ] = "cosine"
    min_lr_rate: float = Field(default=0.0, ge=0, lt=1)
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = True

    @model_validator(mode="after")
    def _groups_are_whole(self):
        if len(self.rewards) != len(self.reward_weights):
            raise ValueError(
                f"{len(self.rewards)} rewards, but "
                f"{len(self.reward_weights)} reward_weights"
            )
        for name in ("per_device_batch", "num_generations"):
            if self.effective_batch % getattr(self, name):
                raise ValueError(
                    f"effective_batch={self.effective_batch} is not a "
                    f"multiple of {name}={getattr(self, name)}"
                )
        return self


class BenchmarkConfig(Section):
    """One evaluation set: a path relative to ``data/`` and its role."""

    name: str
    path: str
    n: int = Field(gt=0)
    role: str = ""


class EvaluateConfig(Section):
    """Evaluation: greedy unless a temperature is given.

    ``n``: samples a problem; more than one need a temperature above 0.
    """

    benchmarks: tuple[BenchmarkConfig, ...]
    main: str
    max_new_tokens: int = Field(gt=0)
    temperature: float = Field(default=0.0, ge=0)
    n: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _main_exists(self):
        names = [b.name for b in self.benchmarks]
        if len(set(names)) != len(names):
            raise ValueError(f"two benchmarks share a name: {names}")
        if self.main not in names:
            raise ValueError(f"main benchmark '{self.main}' not in {names}")
        return self


class HardwareConfig(Section):
    """The machine the recipe is written for.

    ``card`` is a name of the planner's table; ``strategy`` how training is
    spread over several cards.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    card: str | None = None
    strategy: Literal["ddp", "zero2", "zero3"] = "ddp"
    cards: int = Field(default=0, ge=0)
    usd_per_hour: float = Field(default=0.0, ge=0)


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


class Recipe(Section):
    """Everything one run depends on.

    ``quick``: overrides that make the course short, for ``--quick``.
    """

    only_when_set = frozenset({"solutions", "quick"})

    name: str
    description: str = ""
    seed: int = 42
    model: ModelConfig
    data: DataConfig
    engine: EngineConfig = EngineConfig()
    sampling: SamplingConfig
    harvest: HarvestConfig = HarvestConfig()
    solutions: SolutionsConfig | None = None
    sft: SftConfig
    dpo: DpoConfig
    dpo_variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    grpo: GrpoConfig | None = None
    evaluate: EvaluateConfig
    hardware: HardwareConfig = HardwareConfig()
    course: CourseConfig = CourseConfig()
    quick: dict[str, Any] | None = None

    def with_section(self, section: str, **changes: Any) -> Recipe:
        """A copy with other values in one section, not checked again."""
        changed = getattr(self, section).model_copy(update=changes)
        return self.model_copy(update={section: changed})

    def with_model(self, **changes: Any) -> Recipe:
        """A copy with other settings of its model: ``dtype="float32"``."""
        return self.with_section("model", **changes)

    @property
    def sampled_model(self) -> str:
        """Whose samples are harvested: "base", or "sft" where SFT trained on
        worked solutions first."""
        return "sft" if self.solutions else "base"

    @property
    def sft_flaws(self) -> list[str]:
        """What an ablation does wrong in SFT on purpose, in words."""
        flaws = ["the prompts are learnt too"] if self.sft.prompt_loss else []
        if self.solutions and not self.solutions.chat:
            flaws.append("training leaves out the chat format")
        return flaws

    @model_validator(mode="after")
    def _variants_are_valid(self):
        for name in self.dpo_variants:
            self.dpo_variant(name)
        return self

    def dpo_variant(self, name: str | None = None) -> DpoConfig:
        """The DPO settings, with a named variant's changes on top.

        ``None`` gives the default. Raises LabError for an unknown name.
        """
        if name is None:
            return self.dpo
        if name not in self.dpo_variants:
            raise LabError(
                f"There is no DPO variant '{name}'."
                f"{did_you_mean(name, self.dpo_variants)}",
                fix="choose one of: " + ", ".join(self.dpo_variants)
                if self.dpo_variants
                else "write one under dpo_variants of the recipe",
            )
        merged = self.dpo.model_dump() | self.dpo_variants[name]
        return DpoConfig.model_validate(merged)


def recipe_hash(recipe: Recipe, *sections: str) -> str:
    """Short SHA-256 of the named sections (all of them when none is named)."""
    data = recipe.model_dump(mode="json")
    if sections:
        data = {name: data[name] for name in sections}
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
