"""What a checkpoint holds and whether it is complete, judged from its files alone: no config, no weights loaded.

verl 0.9.1 writes a checkpoint in this order, and not atomically:

    global_step_<N>/actor/      FSDP: for each rank model_, optim_, extra_state_world_size_<W>_rank_<R>.pt, then
                                huggingface/ (config, tokenizer), fsdp_config.json, lora_train_meta.json with LoRA,
                                huggingface/*.safetensors with hf_model.
                                Megatron: model/, optimizer/, extra/, then ckpt_contents.json, the only atomic write
    global_step_<N>/critic/     the same, if there is a critic
    global_step_<N>/data.pt     position of the data loader, once all ranks have saved all of the above
    global_step_<N>/transfer_queue/   asynchronous trainers only; renamed into place when it is complete
    latest_checkpointed_iteration.txt   the step; verl resumes from it without checking the rest

Megatron's layout is taken from verl's source and has not been tried.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_STEP = re.compile(r"global_step_(\d+)")
SHARD = re.compile(r"(model|optim|extra_state)_world_size_(\d+)_rank_(\d+)\.pt")
# Names in verl's save_contents, and the prefixes of its FSDP shards.
SHARD_NAMES = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
ROLES = ("actor", "critic")


@dataclass(frozen=True)
class Lora:
    """Rank and alpha of an adapter; None where a checkpoint or a config does not say."""

    rank: int | None = None
    alpha: int | None = None


@dataclass(frozen=True)
class HeldModel:
    """What the folder of a model holds, such as global_step_3/actor.

    Args:
        layout: The files of verl's engine: "fsdp", "megatron", or "megatron_fsdp", which has all in one folder.
        contents: What can be loaded, by the names of verl's save_contents. With Megatron "model" is the weights (or the
            adapter) in its own shards, and "hf_model" the weights that its bridge writes.
        world_size: Number of ranks that saved it.
        fsdp_version: 1 or 2; None with Megatron, or if fsdp_config.json is missing.
        lora: The adapter, None if the whole model is trained.
    """

    layout: str
    contents: frozenset[str]
    world_size: int
    fsdp_version: int | None = None
    lora: Lora | None = None


@dataclass(frozen=True)
class Held:
    """What a complete checkpoint holds.

    Args:
        models: The models by role: actor, and critic if there is one.
        loader_workers: Processes of the data loader that wrote data.pt, None if that cannot be read from it.
        is_shuffled: Whether that loader shuffled, None if that cannot be read from it.
        has_prompts: Whether there are prompts in flight.
        storage_units: Number of TransferQueue's storage units that hold them, None without that number.
    """

    models: dict[str, HeldModel] = field(default_factory=dict)
    loader_workers: int | None = None
    is_shuffled: bool | None = None
    has_prompts: bool = False
    storage_units: int | None = None


@dataclass(frozen=True)
class Broken:
    """Why a checkpoint is incomplete.

    Args:
        reason: What is missing or broken.
        is_unfinished: Whether the save was interrupted: data.pt is missing or cut off. Otherwise it had ended, and
            files were lost or cut off later.
    """

    reason: str
    is_unfinished: bool = False

    def __str__(self) -> str:
        """Return the kind and the reason."""
        return f"{'unfinished' if self.is_unfinished else 'damaged'}: {self.reason}"


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a folder global_step_<N>, complete or not."""
    return bool(_STEP.fullmatch(path.name)) and path.is_dir()


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("global_step_"))


def set_aside(checkpoint: Path) -> Path:
    """Rename an incomplete checkpoint and return its new path.

    The run will save at the same step again. If it were killed while saving, a mixture of old and new shards could
    pass for a complete checkpoint.
    """
    number = 1
    while (aside := checkpoint.with_name(f"{checkpoint.name}.incomplete{number}")).exists():
        number += 1
    return checkpoint.rename(aside)


def inspect(checkpoint: Path) -> Held | Broken:
    """Return what a checkpoint holds, or why it is incomplete.

    Args:
        checkpoint: A folder global_step_<N>.
    """
    if problem := _archive_problem(checkpoint / "data.pt"):
        return Broken(problem, is_unfinished=True)
    models = {}
    for role in ROLES:
        if role == "actor" or (checkpoint / role).is_dir():
            model = _inspect_model(checkpoint / role)
            if isinstance(model, str):
                return Broken(model)
            models[role] = model
    queue = checkpoint / "transfer_queue"
    if queue.is_dir() and (problem := next(_queue_problems(queue), None)):
        return Broken(f"transfer_queue/{problem}")
    workers, is_shuffled = _read_loader(checkpoint / "data.pt")
    return Held(models, workers, is_shuffled, queue.is_dir(), _storage_units(queue))


def why_model_incomplete(folder: Path, layout: str, contents: Iterable[str]) -> str | None:
    """Return what is missing or broken in a model's folder, such as global_step_3/actor, None if it is complete.

    Args:
        folder: The folder.
        layout: "fsdp" or "megatron".
        contents: The required parts, as in verl's save_contents. Not used with Megatron, whose manifest names them.
    """
    if not folder.is_dir():
        return f"{folder.name}/ is missing"
    problems = _fsdp_problems(folder, contents) if layout == "fsdp" else _megatron_problems(folder)
    return next((f"{folder.name}/{problem}" for problem in problems), None)


def saved_world_size(model_folder: Path) -> int | None:
    """Return the number of ranks that saved the FSDP shards of a folder, None if there are no shards.

    A folder to which runs of several sizes have saved has shards of each. The last write decides: fsdp_config.json,
    or the newest shard if that file is missing.
    """
    try:
        return int(_json_object(model_folder / "fsdp_config.json")["world_size"])
    except (ValueError, KeyError, TypeError):
        shards = [path for path in model_folder.iterdir() if SHARD.fullmatch(path.name)]
        newest = max(shards, key=lambda path: path.stat().st_mtime, default=None)
        return int(SHARD.sub(r"\2", newest.name)) if newest else None


def _inspect_model(folder: Path) -> HeldModel | str:
    """Return what a model's folder holds, or what is missing or broken in it."""
    if not folder.is_dir():
        return f"{folder.name}/ is missing"
    if _is_megatron(folder):
        return why_model_incomplete(folder, "megatron", ()) or _read_megatron(folder)
    contents = held_shards(folder, saved_world_size(folder))
    if has_safetensors(folder / "huggingface"):
        contents.add("hf_model")
    problem = why_model_incomplete(folder, "fsdp", contents or {"model"})
    return problem or _read_fsdp(folder, frozenset(contents))


def held_shards(folder: Path, world_size: int | None) -> set[str]:
    """Return which of model, optimizer and extra have a shard of at least one rank."""
    shards = [found for path in folder.iterdir() if (found := SHARD.fullmatch(path.name))]
    prefixes = {found[1] for found in shards if int(found[2]) == world_size}
    return {content for content, prefix in SHARD_NAMES.items() if prefix in prefixes}


def has_safetensors(folder: Path) -> bool:
    """Return whether a folder has weights in Hugging Face's format, complete or not."""
    return any(folder.rglob("*.safetensors"))


def _is_megatron(folder: Path) -> bool:
    """Return whether Megatron wrote a model's folder. Of two engines that saved to it, the last one decides."""
    manifest = folder / "ckpt_contents.json"
    of_fsdp = [path for path in folder.iterdir() if path.name == "fsdp_config.json" or SHARD.fullmatch(path.name)]
    if not manifest.is_file():
        return not of_fsdp and any((folder / name).is_dir() for name in ("model", "optimizer", "extra"))
    return all(path.stat().st_mtime < manifest.stat().st_mtime for path in of_fsdp)


def _read_fsdp(folder: Path, contents: frozenset[str]) -> HeldModel:
    """Return what a complete folder of FSDP holds."""
    version = _json_object(folder / "fsdp_config.json").get("FSDP_version")
    lora = None
    if (folder / "lora_train_meta.json").is_file():
        written = _json_object(folder / "lora_train_meta.json")
        lora = Lora(written.get("r"), written.get("lora_alpha"))
    return HeldModel("fsdp", contents, saved_world_size(folder) or 0, version if version in (1, 2) else None, lora)


def _read_megatron(folder: Path) -> HeldModel:
    """Return what a complete folder of Megatron holds."""
    manifest = _json_object(folder / "ckpt_contents.json")
    parts, is_fsdp = manifest["contents"], _is_megatron_fsdp(folder, manifest)
    held = {"optimizer": "optimizer" in parts, "extra": "rng_state" in parts}
    if is_fsdp:  # whatever its manifest says of the format
        held["model"] = "model" in manifest["save_contents"]
    else:
        # Adapters are always in Megatron's own shards, beside the weights of the model that they adapt.
        held["model"] = "peft_adapters" in parts or _is_distributed(parts.get("model", {}))
    weights = [parts[name] for name in ("model", "hf_model") if name in parts]
    held["hf_model"] = any(part["format"] == "huggingface" for part in weights)
    has_lora = bool((manifest.get("backend") or {}).get("peft"))
    return HeldModel(
        "megatron_fsdp" if is_fsdp else "megatron",
        frozenset(content for content, is_held in held.items() if is_held),
        int(manifest.get("world_size", 0)),
        lora=Lora() if has_lora else None,
    )


def _is_distributed(part: dict[str, Any]) -> bool:
    return part.get("format") == "megatron_dist_checkpoint"


def _is_megatron_fsdp(folder: Path, manifest: dict[str, Any]) -> bool:
    """Return whether all is in model/dist_ckpt, and the other folders that the manifest names are empty."""
    others = {part["path"] for part in manifest["contents"].values() if _is_distributed(part)} - {"model/dist_ckpt"}
    return _has_files(folder / "model" / "dist_ckpt") and not any(_has_files(folder / path) for path in others)


def _fsdp_problems(folder: Path, contents: Iterable[str]) -> Iterator[str]:
    """Yield the problems of a model's folder written by verl's FSDPCheckpointManager."""
    world_size = saved_world_size(folder)
    if world_size is None:
        yield "model_world_size_<W>_rank_<R>.pt are missing"
        return
    for prefix in (prefix for content, prefix in SHARD_NAMES.items() if content in contents):
        for rank in range(world_size):
            problem = _archive_problem(folder / f"{prefix}_world_size_{world_size}_rank_{rank}.pt")
            if problem:
                yield problem
    yield from _hugging_face_problems(folder, "huggingface", "hf_model" in contents)


def _megatron_problems(folder: Path) -> Iterator[str]:
    """Yield the problems of a model's folder written by verl's MegatronCheckpointManager."""
    manifest = _json_object(folder / "ckpt_contents.json")
    try:
        paths = {part["path"]: part["format"] for part in manifest["contents"].values()}
        world_size, _contents = int(manifest["world_size"]), list(manifest["save_contents"])
    except (ValueError, KeyError, TypeError, AttributeError):
        yield "ckpt_contents.json, which is written last, is missing or broken"
        return
    for path, form in paths.items():
        if not (folder / path).exists():
            yield f"{path} is missing"
        elif form == "huggingface":
            yield from _hugging_face_problems(folder, path, has_weights=True)
    distributed = {path for path, form in paths.items() if form == "megatron_dist_checkpoint"}
    if _is_megatron_fsdp(folder, manifest):
        distributed = {"model/dist_ckpt"}
    for path in sorted(distributed):
        yield from (f"{path}/{problem}" for problem in _distributed_problems(folder / path, world_size))


def _distributed_problems(folder: Path, world_size: int) -> Iterator[str]:
    """Yield the problems of a folder dist_ckpt. Files of ranks that the last save did not have do not matter."""
    for name in (".metadata", *(["metadata.json"] if (folder / "common.pt").exists() else [])):
        if not (folder / name).is_file():
            yield f"{name} is missing"
    for file in folder.glob("*.distcp"):
        found = re.match(r"__(\d+)_", file.name)
        if not file.stat().st_size and (found is None or int(found[1]) < world_size):
            yield f"{file.name} is empty"


def _hugging_face_problems(folder: Path, name: str, has_weights: bool) -> Iterator[str]:
    for file in ("config.json", "tokenizer_config.json"):
        if not (folder / name / file).is_file() or not (folder / name / file).stat().st_size:
            yield f"{name}/{file} is missing or empty"
    if has_weights:
        weights = list((folder / name).rglob("*.safetensors"))
        if not weights or not all(file.stat().st_size for file in weights):
            yield f"{name}/*.safetensors are missing or empty"


def _queue_problems(folder: Path) -> Iterator[str]:
    """Yield the problems of TransferQueue's folder, which is complete when it gets its name."""
    names = ["metadata.json", "controller_state.pkl"]
    if _json_object(folder / "metadata.json").get("storage_saved"):
        names.append("storage_units/su_info.json")
    for name in names:
        if not (folder / name).is_file() or not (folder / name).stat().st_size:
            yield f"{name} is missing or empty"


def _storage_units(folder: Path) -> int | None:
    """Return the number of storage units that a folder of TransferQueue was saved by, None if it does not say."""
    try:
        return len(json.loads((folder / "storage_units" / "su_info.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _read_loader(path: Path) -> tuple[int | None, bool | None]:
    """Return the number of worker processes of the loader that wrote a data.pt, and whether it shuffled."""
    import torch

    try:
        state = torch.load(path, weights_only=True)
        snapshot = state.get("_snapshot")
        main = state if snapshot is None else snapshot["_main_snapshot"]
        sampler = main["_sampler_iter_state"] or main["_index_sampler_state"]
        is_shuffled = "sampler_iter_state" in sampler if "samples_yielded" in sampler else None
        return (0 if snapshot is None else int(main["_num_workers"])), is_shuffled
    # A loader of another kind, or one whose data set saves objects of its own.
    except (pickle.UnpicklingError, RuntimeError, AttributeError, KeyError, TypeError, ValueError):
        return None, None


def _archive_problem(path: Path) -> str | None:
    """Return the problem of a file written by torch.save, a zip archive whose table of contents comes last."""
    if not path.is_file():
        return f"{path.name} is missing"
    if not path.stat().st_size:
        return f"{path.name} is empty"
    try:
        with zipfile.ZipFile(path):
            return None
    except zipfile.BadZipFile:
        return f"{path.name} is truncated"


def _json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is none. A file that the system refuses to read is an error."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
