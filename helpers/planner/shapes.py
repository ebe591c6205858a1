"""Model shapes: what a ``config.json`` says about size, and exact counts.

The shapes of the models this kit knows are shipped in
``helpers/recipes/shapes``, so that planning needs no network and no torch.
A shape can also be read from any model folder on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from helpers.base import REPO_ROOT, LabError, did_you_mean

SHAPE_DIR = Path(__file__).resolve().parents[1] / "recipes" / "shapes"
# (bias on q, k, v; bias on o; norms on queries and keys), as transformers
# 5.23 builds them; None: the config's ``attention_bias`` decides.
FAMILIES: dict[str, tuple[bool | None, bool | None, bool]] = {
    "llama": (None, None, False),
    "mistral": (False, False, False),
    "mixtral": (False, False, False),
    "qwen2": (True, False, False),
    "qwen3": (None, None, True),
}
NEEDED = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
)


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder-only language model, named as in its config.

    ``num_local_experts`` is 0 for a dense model; ``max_position_embeddings``
    is 0 when the config does not say.
    """

    name: str
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    num_local_experts: int = 0
    num_experts_per_tok: int = 0
    max_position_embeddings: int = 0
    gated: bool = False

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """``{projection: (inputs, outputs)}`` of one layer's matrices.

        An expert model has no ``gate_proj``, ``up_proj`` or ``down_proj``;
        its experts are stacked in one parameter.
        """
        hidden, inner = self.hidden_size, self.intermediate_size
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        attention = {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
        }
        dense = {
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }
        return attention | ({} if self.num_local_experts else dense)

    @property
    def embedding_parameters(self) -> int:
        """Entries of the token embedding table."""
        return self.vocab_size * self.hidden_size

    @property
    def layer_parameters(self) -> int:
        """All parameters of one decoder layer."""
        matrices = sum(i * o for i, o in self.modules.values())
        queries, keys, _, out = (o for _, o in self._attention())
        biases = self.qkv_bias * (queries + 2 * keys) + self.o_bias * out
        norms = 2 * self.hidden_size + self.qk_norm * 2 * self.head_dim
        if self.num_local_experts:
            router = self.num_local_experts * self.hidden_size
            matrices += router + self.num_local_experts * self.ffn_parameters
        elif self.mlp_bias:
            biases += 2 * self.intermediate_size + self.hidden_size
        return matrices + biases + norms

    @property
    def ffn_parameters(self) -> int:
        """The three matrices of one feed-forward block (one expert)."""
        return 3 * self.hidden_size * self.intermediate_size

    def _attention(self) -> list[tuple[int, int]]:
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        return [self.modules[name] for name in names]

    def kv_bytes_per_token(self, kv_dtype_bytes: float = 2) -> float:
        """Bytes of keys and values that one token leaves in the cache."""
        width = self.num_key_value_heads * self.head_dim
        return 2 * self.num_hidden_layers * width * kv_dtype_bytes


def count_parameters(shape: ModelShape) -> int:
    """Exact number of parameters, as ``model.num_parameters()`` counts."""
    layers = shape.num_hidden_layers * shape.layer_parameters
    tables = 1 if shape.tie_word_embeddings else 2
    return layers + tables * shape.embedding_parameters + shape.hidden_size


def count_active_parameters(shape: ModelShape) -> int:
    """Parameters that one token is multiplied with, output head included.

    The input embedding is a lookup; an expert model uses only the experts
    that the router picks.
    """
    idle = shape.num_local_experts - shape.num_experts_per_tok
    per_layer = shape.layer_parameters - idle * shape.ffn_parameters
    return (
        shape.num_hidden_layers * per_layer
        + shape.embedding_parameters
        + shape.hidden_size
    )


def count_streamed_parameters(shape: ModelShape) -> int:
    """Parameters that a decode step of a full batch reads from memory.

    All but an untied input embedding, of which only the rows of the batch
    are read; every expert is used by some token of a large batch.
    """
    lookup = 0 if shape.tie_word_embeddings else shape.embedding_parameters
    return count_parameters(shape) - lookup


def read_shape(
    config: Mapping[str, Any], name: str = "the model", *, gated: bool = False
) -> ModelShape:
    """A shape from the contents of a ``config.json``.

    Raises:
        LabError: an architecture whose parameters this kit cannot count, or
            a config without a size it needs.
    """
    family = str(config.get("model_type"))
    missing = [key for key in NEEDED if not config.get(key)]
    if missing or family not in FAMILIES:
        raise LabError(
            f"The planner cannot count the parameters of {name}: "
            + (
                f"its config lacks {', '.join(missing)}."
                if missing
                else f"'{family}' is no architecture it knows."
            ),
            why="a plan with a wrong size would be worse than none",
            fix=f"use a model of one of these: {', '.join(FAMILIES)}",
        )
    sizes = {key: int(config[key]) for key in NEEDED[1:]}
    heads = sizes["num_attention_heads"]
    by_config = bool(config.get("attention_bias", False))
    qkv, out, norm = FAMILIES[family]
    head_dim = config.get("head_dim") or sizes["hidden_size"] // heads
    return ModelShape(
        name=name,
        model_type=family,
        **sizes,
        num_key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(head_dim),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=by_config if qkv is None else qkv,
        o_bias=by_config if out is None else out,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=norm,
        num_local_experts=int(config.get("num_local_experts") or 0),
        num_experts_per_tok=int(config.get("num_experts_per_tok") or 0),
        max_position_embeddings=int(
            config.get("max_position_embeddings") or 0
        ),
        gated=gated,
    )


@cache
def list_shapes() -> dict[str, Path]:
    """``{model id: file}`` of the shipped shapes."""
    files = sorted(SHAPE_DIR.glob("*.json"))
    return {_read_json(path)["id"]: path for path in files}


def find_shape(model: str | Path) -> ModelShape:
    """The shape of a model folder, or of a hub id this kit ships.

    Args:
        model: a folder with a ``config.json`` (also one inside the
            repository, as recipes name it), a hub id, or its last part.

    Raises:
        LabError: neither a folder nor a known id.
    """
    for folder in (Path(model), REPO_ROOT / model):
        if (folder / "config.json").is_file():
            return read_shape(_read_json(folder / "config.json"), str(model))
    known = list_shapes()
    wanted = str(model).rstrip("/").lower()
    for name, path in known.items():
        if wanted in (name.lower(), name.split("/")[-1].lower()):
            data = _read_json(path)
            return read_shape(data["config"], name, gated=data["gated"])
    raise LabError(
        f"The planner has no shape of '{model}'."
        f"{did_you_mean(str(model), known)}",
        why="it is no folder with a config.json, and none of the shipped ones",
        fix="name a folder, or one of: " + ", ".join(known),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(
            f"Cannot read {path}: {error}",
            fix="it must be the model's config.json",
        ) from None
    if not isinstance(data, dict):
        raise LabError(f"{path} holds no config.", fix="look into the file")
    return data
