"""transformers configs of the shapes that `cfpo-verl plan` knows, and folders of that shape."""

from pathlib import Path

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from cfpo_verl.plan.shapes import ModelShape, shape_of
from cfpo_verl.warmup import train_tokenizer

# Tokens of the longest text, as the owners publish them: the one thing that a plan does not need. The first that fits.
_LONGEST = {"Qwen2.5-Math": 4096, "Qwen2.5": 32768, "Qwen3": 40960, "SmolLM2": 8192, "Llama": 131072}


def hf_config(shape: ModelShape) -> PretrainedConfig:
    """Write a shape as the config of its architecture."""
    common = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied_embeddings,
    }
    if shape.qkv_bias:
        return Qwen2Config(**common)
    common["head_dim"] = shape.head_dim
    if shape.experts:
        return Qwen3MoeConfig(
            **common,
            moe_intermediate_size=shape.intermediate,
            num_experts=shape.experts,
            num_experts_per_tok=shape.experts_per_token,
        )
    return (Qwen3Config if shape.qk_norm else LlamaConfig)(**common)


def config_of(hub_id: str) -> PretrainedConfig:
    """Return the transformers config of a model of the group `policy_model`."""
    config = hf_config(shape_of(hub_id))
    name = hub_id.rpartition("/")[2]
    config.max_position_embeddings = next(longest for start, longest in _LONGEST.items() if name.startswith(start))
    return config


def write_folder(folder: Path, config: PretrainedConfig) -> Path:
    """Write a Hugging Face folder with a config and a small tokenizer, without weights."""
    tokenizer = train_tokenizer(["3+4+5=12"], vocabulary=270)
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
