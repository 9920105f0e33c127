"""Checks of the model, that it exists or can be downloaded, and readers of its shape."""

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cfpo_verl.doctor.finding import Finding, failed, ok, warning
from cfpo_verl.errors import first_line

_HUB_TIMEOUT_S = 5.0
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


def model_path(config: DictConfig) -> str:
    """Return `actor_rollout_ref.model.path` as text."""
    return str(config.actor_rollout_ref.model.path)


def is_folder(path: str) -> bool:
    """Return whether a model is given as a folder and not as a hub id."""
    # os.path answers False where Path would raise, for example without permission to look.
    return path.startswith((".", "/", "~")) or os.path.isdir(path)


def local_folder(path: str) -> Path | None:
    """Return the folder of a model that is on this machine, as a path or in the hub's cache, else None."""
    if is_folder(path):
        folder = Path(path).expanduser()
        return folder if os.path.isfile(folder / "config.json") else None
    if "://" in path:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(path, "config.json")
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def read_model_config(config: DictConfig) -> dict[str, Any]:
    """Return the model's config.json, empty if it is not on this machine or cannot be read."""
    folder = local_folder(model_path(config))
    try:
        return json.loads((folder / "config.json").read_text()) if folder else {}
    except (OSError, ValueError):
        return {}


def _from_text_config(model_config: Mapping[str, Any], key: str) -> int | None:
    # Multimodal models keep the language model's shape one level down.
    value = model_config.get(key, (model_config.get("text_config") or {}).get(key))
    return int(value) if isinstance(value, int) else None


def attention_heads(model_config: Mapping[str, Any]) -> int | None:
    """Return the number of attention heads, None if the config does not say."""
    return _from_text_config(model_config, "num_attention_heads")


def hidden_layers(model_config: Mapping[str, Any]) -> int | None:
    """Return the number of layers, None if the config does not say."""
    return _from_text_config(model_config, "num_hidden_layers")


def context_length(model_config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence of the model in tokens, None if the config does not say."""
    return _from_text_config(model_config, "max_position_embeddings")


def count_parameters(folder: Path) -> int | None:
    """Count the parameters of a model from the headers of its safetensors files, None if there are none."""
    files = sorted(folder.glob("*.safetensors"))
    total = 0
    for path in files:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total if files else None


def check_model(config: DictConfig) -> Iterator[Finding]:
    """Check that a model given as a path is a Hugging Face folder with weights."""
    path = model_path(config)
    if not is_folder(path):
        return
    folder = Path(path).expanduser()
    if local_folder(path) is None:
        yield failed(
            f"actor_rollout_ref.model.path: {path} is not a model folder (no config.json in it)",
            "Give the folder of a Hugging Face model or a hub id; `cfpo-verl warmup` makes a tiny one",
        )
    elif not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        yield failed(
            f"actor_rollout_ref.model.path: {path} has a config.json but no weights ({', '.join(_WEIGHTS)})",
            "Copy or download the whole model",
        )
    else:
        parameters = count_parameters(folder)
        yield ok(f"{path}" + (f", {parameters:,} parameters" if parameters else ""))


def check_hub(config: DictConfig) -> Iterator[Finding]:
    """Check that a model given as a hub id is in the cache, or that the hub can be reached and has it."""
    path = model_path(config)
    if is_folder(path) or "://" in path:
        return
    if local_folder(path) is not None:
        yield ok(f"{path} is in the hub's cache")
        return
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    download = f"On a machine with access: hf download {path}; then copy the cache, or give the folder as the path"
    if constants.HF_HUB_OFFLINE:
        yield failed(f"actor_rollout_ref.model.path: {path} is not in the cache, and HF_HUB_OFFLINE is set", download)
        return
    try:
        HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(path, timeout=_HUB_TIMEOUT_S)
    except HFValidationError:
        yield failed(
            f"actor_rollout_ref.model.path: {path} is neither a folder nor a hub id",
            "Give a folder, or an id such as Qwen/Qwen2.5-0.5B",
        )
    except GatedRepoError:
        yield failed(
            f"{path} is gated: the hub asks you to accept its terms", "Accept them on its page, then run: hf auth login"
        )
    except RepositoryNotFoundError:
        yield failed(
            f"the hub has no model {path}, or it is private", "Check the name; for a private model run: hf auth login"
        )
    except Exception as error:  # depends on the HTTP client
        yield failed(
            f"actor_rollout_ref.model.path: {path} is not in the cache, and the hub cannot be reached "
            f"({first_line(error)})",
            download,
        )
    else:
        yield warning(
            f"{path} is not in the cache: every node will download it when the run starts",
            f"Download it first: hf download {path}",
        )
