"""The shapes of the models of `policy_model`, as their owners publish them, and folders of that shape."""

from pathlib import Path

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from cfpo_verl.warmup import train_tokenizer

# Hidden size, layers, attention heads, key-value heads, longest text.
_QWEN2 = {
    "0.5B": (896, 24, 14, 2),
    "1.5B": (1536, 28, 12, 2),
    "3B": (2048, 36, 16, 2),
    "7B": (3584, 28, 28, 4),
    "14B": (5120, 48, 40, 8),
    "32B": (5120, 64, 40, 8),
}
_QWEN3 = {
    "0.6B": (1024, 28, 16, 8),
    "1.7B": (2048, 28, 16, 8),
    "4B": (2560, 36, 32, 8),
    "8B": (4096, 36, 32, 8),
    "14B": (5120, 40, 40, 8),
    "32B": (5120, 64, 64, 8),
    "30B-A3B": (2048, 48, 32, 4),
}
_LLAMA = {"Llama-3.2-1B": (2048, 16, 32, 8), "Llama-3.2-3B": (3072, 28, 24, 8), "Llama-3.1-8B": (4096, 32, 32, 8)}


def config_of(hub_id: str) -> PretrainedConfig:
    """Return the transformers config of a model of the group `policy_model`."""
    name = hub_id.rpartition("/")[2]
    stem = name.removesuffix("-Instruct").removesuffix("-Base")
    if stem.startswith("Qwen2.5"):
        longest = 4096 if "Math" in stem else 32768
        return Qwen2Config(**_sizes(_QWEN2[stem.rpartition("-")[2]], longest))
    if stem == "Qwen3-30B-A3B":
        experts = {"num_experts": 128, "num_experts_per_tok": 8}
        return Qwen3MoeConfig(**_sizes(_QWEN3["30B-A3B"], 40960), head_dim=128, **experts)
    if stem.startswith("Qwen3"):
        return Qwen3Config(**_sizes(_QWEN3[stem.removeprefix("Qwen3-")], 40960), head_dim=128)
    if stem == "SmolLM2-135M":
        return LlamaConfig(**_sizes((576, 30, 9, 3), 8192))
    if stem in _LLAMA:
        return LlamaConfig(**_sizes(_LLAMA[stem], 131072))
    raise KeyError(f"no shape for {hub_id}")


def _sizes(shape: tuple[int, int, int, int], longest: int) -> dict[str, int]:
    hidden, layers, heads, kv_heads = shape
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": longest,
    }


def write_folder(folder: Path, config: PretrainedConfig) -> Path:
    """Write a Hugging Face folder with a config and a small tokenizer, without weights."""
    tokenizer = train_tokenizer(["3+4+5=12"], vocabulary=270)
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
