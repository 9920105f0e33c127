"""Find a verl checkpoint and determine its format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cfpo_verl.checkpoints import is_checkpoint, step_of, why_model_incomplete
from cfpo_verl.errors import UserError
from cfpo_verl.files import read_json_object, reading
from cfpo_verl.run_dir import attempt_files

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class CheckpointError(UserError):
    """There is no usable checkpoint; the message names the path, the rule and the way out."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of the actor.

    Args:
        folder: Folder of the actor, .../global_step_N/actor: --local_dir of verl's merger.
        backend: Training backend that wrote it.
        run_dir: Folder of its `cfpo-verl train` run; None if it was not found.
        step: Training step; None if the folder names do not contain it.
    """

    folder: Path
    backend: Literal["fsdp", "megatron"]
    run_dir: Path | None
    step: int | None

    @property
    def huggingface(self) -> Path:
        """Folder with config and tokenizer, and with whole weights if save_contents has hf_model."""
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
    """Return whether a folder holds a model that transformers can load.

    Raises:
        FileError: If the system refuses to read it.
    """
    with reading(path):
        return (path / "config.json").is_file() and has_weights(path)


def find_checkpoint(path: Path, step: int | None = None) -> Checkpoint:
    """Find the checkpoint that a path refers to.

    Args:
        path: A run folder of `cfpo-verl train`, a folder with global_step_N folders, one of these, or its actor folder.
        step: Step of the checkpoint; None for the newest one with complete weights.

    Raises:
        CheckpointError: If there is none, or a part of it is missing.
        FileError: If the system refuses to read it.
    """
    with reading(path):
        return _find(path, step)


def _find(path: Path, step: int | None) -> Checkpoint:
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder. Give a run folder of `cfpo-verl train`, or a verl checkpoint")
    roots = [path, path / "checkpoints"]
    of_run = next((steps for root in roots if root.is_dir() and (steps := _steps(root))), None)
    if of_run is not None:
        path = _choose(of_run, step)
    elif step is not None and not is_checkpoint(path.resolve()):
        raise CheckpointError(f"{path}: --step {step} needs a folder that contains global_step_{step}")
    actor = path / "actor" if (path / "actor").is_dir() else path
    if (actor / "fsdp_config.json").is_file():
        backend: Literal["fsdp", "megatron"] = "fsdp"
    elif (actor / "model").is_dir():
        backend = "megatron"
    else:
        raise CheckpointError(
            f"{path}: not a verl checkpoint: {actor.name} has neither fsdp_config.json nor a folder model. "
            "A run saves one every trainer.save_freq steps; with save_freq=-1, the default, it saves none"
        )
    saved_as = actor.resolve().parent
    checkpoint = Checkpoint(actor, backend, _run_dir(actor), step_of(saved_as) if is_checkpoint(saved_as) else None)
    if not (checkpoint.huggingface / "config.json").is_file():
        raise CheckpointError(f"{actor}: {checkpoint.huggingface.relative_to(actor)}/config.json is missing")
    if not checkpoint.is_sharded and not has_weights(checkpoint.huggingface):
        raise CheckpointError(f"{actor}: it has no weights: actor.checkpoint.save_contents must include `model`")
    return checkpoint


def _steps(root: Path) -> dict[int, Path]:
    """Return {step: folder}, newest first."""
    return {step_of(folder): folder for folder in sorted(filter(is_checkpoint, root.iterdir()), key=step_of)[::-1]}


def _choose(steps: dict[int, Path], step: int | None) -> Path:
    root = next(iter(steps.values())).parent
    if step is not None:
        if step not in steps:
            raise CheckpointError(f"{root}: no global_step_{step}. Available: {', '.join(map(str, sorted(steps)))}")
        return steps[step]
    # Ignore verl's tracker file: the checkpoint that it names may be incomplete, and a later one complete.
    reasons = {}
    for folder in steps.values():
        reason = _why_torn(folder / "actor")
        if reason is None:
            return folder
        reasons[folder.name] = reason
    listed = "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
    raise CheckpointError(
        f"{root}: no checkpoint has complete weights: {listed}. Weights are saved if actor.checkpoint.save_contents "
        "includes `model`. To export another checkpoint, give its path"
    )


def _why_torn(actor: Path) -> str | None:
    """Return why the weights of an actor are incomplete, or None if they are complete."""
    if (actor / "model").is_dir():
        return why_model_incomplete(actor, "megatron", ())
    has_shards = any(actor.glob("model_world_size_*_rank_*.pt"))
    reason = why_model_incomplete(actor, "fsdp", ("model",) if has_shards else ("hf_model",))
    if reason is None and not (actor / "fsdp_config.json").is_file():
        return "actor/fsdp_config.json, which is written last, is missing"
    return reason


def _run_dir(actor: Path) -> Path | None:
    """Return the folder of the `cfpo-verl train` run that a checkpoint is in, found by its config."""
    return next((folder for folder in actor.absolute().parents[:3] if attempt_files(folder, "config")), None)


def run_config(run_dir: Path) -> dict[str, Any]:
    """Return the resolved config of the last attempt of a run; empty without one.

    Raises:
        CheckpointError: If the file is not the config of a run.
        FileError: If the system refuses to read it.
    """
    import yaml

    files = list(attempt_files(run_dir, "config").values())
    if not files:
        return {}
    try:
        with reading(files[-1]):
            config = yaml.safe_load(files[-1].read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CheckpointError(f"{files[-1]}: not YAML ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{files[-1]}: not the config of a run, which is a mapping")
    return config


def lookup(config: dict[str, Any], key: str, default: Any = None) -> Any:
    """Return the value of a dotted key in nested dicts; the default if it is missing or null.

    Example:
        >>> lookup({"data": {"max_response_length": 8}}, "data.max_response_length")
        8
    """
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return default if value is None else value


def weights_dtype(folder: Path) -> str | None:
    """Return the data type of the weights in a Hugging Face folder, from its config.json."""
    config = read_json_object(folder / "config.json")
    return config.get("dtype") or config.get("torch_dtype")
