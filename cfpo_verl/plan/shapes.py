"""Shapes of decoder-only transformers, and the parameters and floating-point operations that follow from them."""

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from cfpo_verl.files import reading
from cfpo_verl.plan.errors import PlanError

# {model_type of a Hugging Face config: (q, k and v have a bias, every q and k head has a norm)}.
_FAMILIES = {
    "llama": (False, False),
    "qwen2": (True, False),
    "qwen3": (False, True),
    "qwen3_moe": (False, True),
}


@dataclass(frozen=True)
class ModelShape:
    """The dimensions of a Llama-like model: gated MLP, RMS norms, grouped-query attention.

    Args:
        hidden: Width of the residual stream.
        layers: Transformer layers.
        heads: Attention heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        intermediate: Width of the MLP, or of one expert.
        vocabulary: Rows of the embedding.
        tied_embeddings: Whether the output layer shares its weights with the embedding.
        qkv_bias: Whether q, k and v have a bias (Qwen2).
        qk_norm: Whether every head of q and k is normalised (Qwen3).
        experts: Experts in each layer; 0 for a dense model.
        experts_per_token: Experts that process each token.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied_embeddings: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: int = 0
    experts_per_token: int = 0

    @property
    def q_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def attention_matrices(self) -> int:
        """Parameters of the four projections of a layer, without biases."""
        return self.hidden * (2 * self.q_width + 2 * self.kv_width)

    @property
    def expert_parameters(self) -> int:
        """Parameters of all experts of a layer; 0 for a dense model."""
        return self.experts * 3 * self.hidden * self.intermediate

    @property
    def layer_parameters(self) -> int:
        """Parameters of a layer."""
        biases = self.q_width + 2 * self.kv_width if self.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        mlp = self.expert_parameters + self.hidden * self.experts or 3 * self.hidden * self.intermediate
        return self.attention_matrices + biases + norms + mlp

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding; the output layer has the same number unless it is tied."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        tables = 1 if self.tied_embeddings else 2
        return self.layers * self.layer_parameters + tables * self.embedding_parameters + self.hidden

    @property
    def active_matrices_per_layer(self) -> int:
        """Parameters that a token is multiplied with in a layer: projections, router and the token's experts."""
        mlp = 3 * self.hidden * self.intermediate
        if self.experts:
            mlp = self.experts_per_token * mlp + self.hidden * self.experts
        return self.attention_matrices + mlp

    def forward_flops(self, tokens: float, squared_lengths: float) -> float:
        """Return the floating-point operations of a forward pass.

        Two for each parameter that a token is multiplied with (arXiv 2001.08361: 6ND for forward and backward), and
        for causal attention 2 * length**2 * q_width in each layer: scores and weighted values are 2 operations each,
        over half of the square. The embedding lookup costs nothing; the output layer is included.

        Args:
            tokens: Total tokens of the sequences.
            squared_lengths: Sum of length**2 over the sequences.
        """
        matrices = self.layers * self.active_matrices_per_layer + self.embedding_parameters
        return 2 * matrices * tokens + 2 * self.layers * self.q_width * squared_lengths

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Return the bytes that the keys and values of one token take, over all layers."""
        return 2 * self.layers * self.kv_width * bytes_per_value

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "ModelShape":
        """Return the shape in a Hugging Face config.

        Raises:
            PlanError: If its architecture is not supported, or a size is missing or not a positive integer.
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or model_type not in _FAMILIES:
            raise PlanError(f"model_type {model_type!r} is not supported by plan, only: {', '.join(_FAMILIES)}")
        qkv_bias, qk_norm = _FAMILIES[model_type]
        # Published configs have num_experts; transformers 5 writes num_local_experts.
        has_experts = bool(config.get("num_experts") or config.get("num_local_experts"))
        experts = _count(config, "num_experts", "num_local_experts") if has_experts else 0
        if experts and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
            raise PlanError("a model with experts in some layers only is not supported by plan")
        heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
        return cls(
            hidden=hidden,
            layers=_count(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=_count(config, "num_key_value_heads", "num_attention_heads"),
            head_dim=_count(config, "head_dim") if config.get("head_dim") else hidden // heads,
            intermediate=_count(config, "moe_intermediate_size" if experts else "intermediate_size"),
            vocabulary=_count(config, "vocab_size"),
            tied_embeddings=config.get("tie_word_embeddings", False),
            qkv_bias=config.get("attention_bias", qkv_bias) if model_type != "qwen2" else qkv_bias,
            qk_norm=qk_norm,
            experts=experts,
            experts_per_token=_count(config, "num_experts_per_tok") if experts else 0,
        )


@cache
def table() -> list[tuple[str, ModelShape]]:
    """Return (name, shape) of each published model, in the order of shapes.yaml."""
    entries = yaml.safe_load((files("cfpo_verl.plan") / "shapes.yaml").read_text())
    return [(name, ModelShape(**entry["shape"])) for entry in entries for name in entry["names"]]


def _read(config_file: Path) -> ModelShape:
    with reading(config_file):
        text = config_file.read_text(encoding="utf-8")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanError(f"{config_file}, line {error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(config, dict):
        raise PlanError(f"{config_file}: not the config of a language model, but a {type(config).__name__}")
    try:
        return ModelShape.from_hf(config)
    except PlanError as error:
        raise PlanError(f"{config_file}: {error}") from error


def _count(config: dict[str, Any], *keys: str) -> int:
    """Return the value of the first of these keys that is set.

    Raises:
        PlanError: If none is set, or the value is not an integer of at least 1.
    """
    key = next((key for key in keys if config.get(key) is not None), keys[0])
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(f"{key} must be an integer of at least 1, got {value!r}")
    return value


def shape_of(model_path: str) -> ModelShape:
    """Return the shape of the model in a local folder, or of a published model.

    Args:
        model_path: A folder with a config.json, a hub id, or a path that ends in the name of a published model.

    Raises:
        PlanError: If it is neither.
    """
    config_file = Path(model_path).expanduser() / "config.json"
    if config_file.is_file():
        return _read(config_file)
    name = PurePosixPath(model_path).name
    for pattern, shape in table():
        if fnmatchcase(name, pattern):
            return shape
    raise PlanError(
        f"actor_rollout_ref.model.path={model_path}: no folder with a config.json, and no published model of "
        f"that name. Give a folder, or one of: {', '.join(name for name, _shape in table())}"
    )
