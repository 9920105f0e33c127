"""Find a checkpoint of verl, and say what it is."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_STEP_FOLDER = re.compile(r"global_step_(\d+)")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class CheckpointError(ValueError):
    """There is no checkpoint that can be used; the message names the path, the rule and the way out."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of an actor.

    Args:
        folder: What verl's merger calls the local dir: .../global_step_N/actor.
        backend: Who wrote it.
        run_dir: Folder of the run it belongs to, if that is one of `cfpo-verl train`.
        step: Training step; None if the folders do not say.
    """

    folder: Path
    backend: Literal["fsdp", "megatron"]
    run_dir: Path | None
    step: int | None

    @property
    def huggingface(self) -> Path:
        """The folder with config and tokenizer, and with the weights if verl was told to save them so."""
        return self.folder / ("model/huggingface" if self.backend == "megatron" else "huggingface")

    @property
    def is_sharded(self) -> bool:
        """Whether there are shards to merge."""
        if self.backend == "megatron":
            return (self.folder / "model" / "dist_ckpt").is_dir()
        return any(self.folder.glob("model_world_size_*_rank_0.pt"))


def has_weights(folder: Path) -> bool:
    """Return whether a Hugging Face folder has weights."""
    return any(next(folder.glob(pattern), None) is not None for pattern in _WEIGHTS)


def is_model(path: Path) -> bool:
    """Return whether a folder is a model that transformers loads."""
    return (path / "config.json").is_file() and has_weights(path)


def find_checkpoint(path: Path, step: int | None = None) -> Checkpoint:
    """Find the checkpoint that a path means.

    Args:
        path: A run folder of `cfpo-verl train`, a folder with global_step_N folders, one of these, or its actor folder.
        step: Which one; None for the last one that verl finished.

    Raises:
        CheckpointError: If there is none, or it lacks what is needed.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such folder. Give a run folder of `cfpo-verl train`, or a checkpoint of verl"
        )
    roots = [path, path / "checkpoints"]
    of_run = next((root for root in roots if root.is_dir() and _steps(root)), None)
    if of_run is not None:
        path = _step_folder(of_run, step)
    elif step is not None and not _STEP_FOLDER.fullmatch(path.resolve().name):
        raise CheckpointError(f"{path}: --step {step} needs a folder with global_step_{step} in it")
    actor = path / "actor" if (path / "actor").is_dir() else path
    if (actor / "fsdp_config.json").is_file():
        backend: Literal["fsdp", "megatron"] = "fsdp"
    elif (actor / "model").is_dir():
        backend = "megatron"
    else:
        raise CheckpointError(
            f"{path}: no checkpoint of verl here: neither fsdp_config.json nor a folder model in {actor.name}. "
            "A run saves one every trainer.save_freq steps; with save_freq=-1, the default, none"
        )
    found = _STEP_FOLDER.fullmatch(actor.resolve().parent.name)
    checkpoint = Checkpoint(actor, backend, _run_dir(actor), int(found[1]) if found else None)
    if not (checkpoint.huggingface / "config.json").is_file():
        raise CheckpointError(f"{actor}: {checkpoint.huggingface.relative_to(actor)}/config.json is missing")
    if not checkpoint.is_sharded and not has_weights(checkpoint.huggingface):
        raise CheckpointError(f"{actor}: no weights in it: `model` must be among checkpoint.save_contents of the actor")
    return checkpoint


def _steps(root: Path) -> dict[int, Path]:
    found = {match: folder for folder in root.iterdir() if (match := _STEP_FOLDER.fullmatch(folder.name))}
    return {int(match[1]): folder for match, folder in found.items()}


def _step_folder(root: Path, step: int | None) -> Path:
    steps = _steps(root)
    if step is None:
        # verl writes it when a checkpoint is complete: a later folder may be torn.
        latest = root / "latest_checkpointed_iteration.txt"
        text = latest.read_text().strip() if latest.is_file() else ""
        step = int(text) if text.isdigit() and int(text) in steps else max(steps)
    if step not in steps:
        raise CheckpointError(f"{root}: no global_step_{step} here, but: {', '.join(map(str, sorted(steps)))}")
    return steps[step]


def _run_dir(actor: Path) -> Path | None:
    """Return the folder above that has a config of `cfpo-verl train`."""
    return next((folder for folder in actor.absolute().parents[:3] if any(folder.glob("config.*.yaml"))), None)


def run_config(run_dir: Path) -> dict[str, Any]:
    """Return the resolved config of the last attempt of a run; empty without one."""
    import yaml

    attempts = {int(path.name.split(".")[1]): path for path in run_dir.glob("config.*.yaml")}
    return dict(yaml.safe_load(attempts[max(attempts)].read_text())) if attempts else {}


def lookup(config: dict[str, Any], key: str, default: Any = None) -> Any:
    """Return the value of a dotted key of nested dicts, the default where it is missing or null.

    Example:
        >>> lookup({"data": {"max_response_length": 8}}, "data.max_response_length")
        8
    """
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return default if value is None else value


def weights_dtype(folder: Path) -> str | None:
    """Return the type of the numbers in a Hugging Face folder, as its config.json has it."""
    config = json.loads((folder / "config.json").read_text())
    return config.get("dtype") or config.get("torch_dtype")
