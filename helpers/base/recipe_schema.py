"""The shape of a recipe, as pydantic models.

YAML reads ``1e-4`` as text; the float fields below accept it. Every model
refuses unknown keys.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    field_validator,
    model_validator,
)

from helpers.base.errors import LabError, did_you_mean
from helpers.base.recipe_parts import (
    TEMPLATES,
    CourseConfig,
    EngineConfig,
    ModelConfig,
    SolutionsConfig,
)
from helpers.base.recipe_section import Section

LORA_MODULES = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


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
    The rule and its threshold: :mod:`helpers.experiments.dpo_sweep`. None: never.
    """

    only_when_set = TrainConfig.only_when_set | {"stop_below_nats"}

    beta: float = Field(default=0.1, gt=0)
    precompute_ref_log_probs: bool = True
    noop_margin: float = Field(default=0.02, ge=0)
    noop_after_steps: int = Field(default=20, gt=0)
    overfit_margin: float = Field(default=5.0, gt=0)
    stop_below_nats: float | None = Field(default=None, gt=0)


class GrpoConfig(Section):
    """Group-relative policy optimisation: no stage runs or plans it yet.

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
