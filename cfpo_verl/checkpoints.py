"""Which checkpoints are complete, judged from their files; no weights are loaded.

verl 0.9.1 writes a checkpoint in this order, and not atomically:

    global_step_<N>/actor/      FSDP: for each rank model_, optim_, extra_state_world_size_<W>_rank_<R>.pt, then
                                huggingface/ (config, tokenizer), fsdp_config.json.
                                Megatron: model/, optimizer/, extra/, then ckpt_contents.json, the only atomic write
    global_step_<N>/critic/     the same, if there is a critic
    global_step_<N>/data.pt     position of the data loader
    global_step_<N>/transfer_queue/   asynchronous trainers only
    latest_checkpointed_iteration.txt   the step; verl resumes from it without checking the rest

Megatron's layout is taken from verl's source and has not been tried.
"""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cfpo_verl.errors import UserError
from cfpo_verl.files import reading

_STEP = re.compile(r"global_step_(\d+)")
_SHARD = re.compile(r"(model|optim|extra_state)_world_size_(\d+)_rank_(\d+)\.pt")
# Names in verl's load_contents, and the prefixes of its FSDP shards.
_SHARD_NAMES = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
LAYOUTS = {"fsdp": "fsdp", "fsdp2": "fsdp", "veomni": "fsdp", "megatron": "megatron"}


@dataclass(frozen=True)
class Expected:
    """What a checkpoint must contain so that a run can resume from it.

    Args:
        world_size: Ranks of the run. FSDP loads only shards that the same number of ranks saved.
        layout: "fsdp" or "megatron", the files of verl's engine, see `LAYOUTS`.
        roles: Folders of models: actor, and critic if there is one.
        contents: verl's load_contents: model, optimizer, extra, hf_model.
        is_async: Whether the trainer is asynchronous; its unfinished prompts are saved too.
    """

    world_size: int
    layout: str = "fsdp"
    roles: tuple[str, ...] = ("actor",)
    contents: tuple[str, ...] = ("model", "optimizer", "extra")
    is_async: bool = False


@dataclass(frozen=True)
class Found:
    """The result of a search for a checkpoint.

    Args:
        path: The newest complete checkpoint, None if there is none.
        skipped: The newer incomplete ones, newest first, each with the reason.
    """

    path: Path | None
    skipped: dict[Path, str] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The step after which the checkpoint was saved, 0 without one."""
        return step_of(self.path) if self.path else 0


class WorldSizeError(UserError):
    """The checkpoint was saved by another number of ranks than the run has."""

    def __init__(self, found: str, way_out: str) -> None:
        """Keep both sentences."""
        self.found, self.way_out = found, way_out
        super().__init__(f"{found}. {way_out}")


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a folder global_step_<N>, complete or not."""
    return bool(_STEP.fullmatch(path.name)) and path.is_dir()


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("global_step_"))


def newest_complete(checkpoints_dir: Path, expected: Expected) -> Found:
    """Find the newest complete checkpoint. verl's tracker file is not used.

    Args:
        checkpoints_dir: Folder with the folders global_step_<N>; it need not exist.
        expected: What the checkpoint must contain.

    Raises:
        WorldSizeError: If that checkpoint was saved by another number of ranks. An older one that fits is not used
            instead, because the training since then would be lost silently.
        FileError: If the system refuses to read the folder or a checkpoint.
    """
    skipped: dict[Path, str] = {}
    with reading(checkpoints_dir):
        saved = filter(is_checkpoint, checkpoints_dir.iterdir()) if checkpoints_dir.is_dir() else ()
        for checkpoint in sorted(saved, key=step_of, reverse=True):
            reason = why_incomplete(checkpoint, expected)
            if reason is None:
                check_world_size(checkpoint, expected)
                return Found(checkpoint, skipped)
            skipped[checkpoint] = reason
    return Found(None, skipped)


def set_aside(checkpoint: Path) -> Path:
    """Rename an incomplete checkpoint and return its new path.

    The run will save at the same step again. If it were killed while saving, a mixture of old and new shards could
    pass for a complete checkpoint.
    """
    number = 1
    while (aside := checkpoint.with_name(f"{checkpoint.name}.incomplete{number}")).exists():
        number += 1
    return checkpoint.rename(aside)


def why_incomplete(checkpoint: Path, expected: Expected) -> str | None:
    """Return what is missing or broken in a checkpoint, None if it is complete. The number of ranks is not checked."""
    for role in expected.roles:
        problem = why_model_incomplete(checkpoint / role, expected.layout, expected.contents)
        if problem:
            return problem
    if expected.is_async and not _has_files(checkpoint / "transfer_queue"):
        return "transfer_queue/ is missing"
    return _archive_problem(checkpoint / "data.pt")


def why_model_incomplete(folder: Path, layout: str, contents: Iterable[str]) -> str | None:
    """Return what is missing or broken in a model's folder, such as global_step_3/actor, None if it is complete.

    Args:
        folder: The folder.
        layout: "fsdp" or "megatron".
        contents: The required parts, as in verl's load_contents.
    """
    if not folder.is_dir():
        return f"{folder.name}/ is missing"
    check = _fsdp_problems if layout == "fsdp" else _megatron_problems
    return next((f"{folder.name}/{problem}" for problem in check(folder, contents)), None)


def saved_world_size(model_folder: Path) -> int | None:
    """Return the number of ranks that saved the FSDP shards of a folder, None if there are no shards.

    A folder to which runs of several sizes have saved has shards of each. The last write decides: fsdp_config.json,
    or the newest shard if that file is missing.
    """
    try:
        return int(json.loads((model_folder / "fsdp_config.json").read_text())["world_size"])
    except (OSError, ValueError, KeyError, TypeError):
        shards = [path for path in model_folder.iterdir() if _SHARD.fullmatch(path.name)]
        newest = max(shards, key=lambda path: path.stat().st_mtime, default=None)
        return int(_SHARD.sub(r"\2", newest.name)) if newest else None


def check_world_size(checkpoint: Path, expected: Expected) -> None:
    """Reject a checkpoint that verl's FSDP engine cannot load.

    Raises:
        WorldSizeError: If it was saved by another number of ranks.
    """
    if expected.layout != "fsdp":
        return  # any number of ranks can load Megatron's checkpoints
    saved = saved_world_size(checkpoint / expected.roles[0])
    if saved != expected.world_size:
        raise WorldSizeError(
            f"{checkpoint} was saved by {saved} ranks, and FSDP can load it only on the same number: this run has "
            f"{expected.world_size} (trainer.nnodes * trainer.n_gpus_per_node)",
            f"Run on {saved} GPUs; or start a new run from its weights, without the optimiser state: "
            "`python -m verl.model_merger merge --backend fsdp "
            f"--local_dir {checkpoint / expected.roles[0]} --target_dir MODEL`, then "
            "actor_rollout_ref.model.path=MODEL and another run_dir",
        )


def _fsdp_problems(folder: Path, contents: Iterable[str]) -> Iterator[str]:
    """Yield the problems of a model's folder written by verl's FSDPCheckpointManager."""
    world_size = saved_world_size(folder)
    if world_size is None:
        yield "model_world_size_<W>_rank_<R>.pt are missing"
        return
    for content in contents:
        for rank in range(world_size if content in _SHARD_NAMES else 0):
            problem = _archive_problem(folder / f"{_SHARD_NAMES[content]}_world_size_{world_size}_rank_{rank}.pt")
            if problem:
                yield problem
    yield from _hugging_face_problems(folder, "huggingface", "hf_model" in contents)


def _megatron_problems(folder: Path, contents: Iterable[str]) -> Iterator[str]:
    """Yield the problems of a model's folder written by verl's MegatronCheckpointManager."""
    try:
        manifest = json.loads((folder / "ckpt_contents.json").read_text())
        saved, parts = manifest["save_contents"], manifest["contents"].values()
        paths = {part["path"]: part["format"] for part in parts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield "ckpt_contents.json, which is written last, is missing or broken"
        return
    yield from (
        f"{content} was not saved, but load_contents requires it" for content in contents if content not in saved
    )
    for path, form in paths.items():
        if not (folder / path).exists():
            yield f"{path} is missing"
        elif form == "huggingface":
            yield from _hugging_face_problems(folder, path, has_weights=True)
    distributed = [folder / path for path, form in paths.items() if form == "megatron_dist_checkpoint"]
    # Megatron-FSDP writes everything to the model's folder and leaves the others empty.
    written = [path for path in distributed if _has_files(path)]
    if distributed and not written:
        yield "dist_ckpt/ is empty"
    for path in written:
        names = [".metadata", *(["metadata.json"] if (path / "common.pt").exists() else [])]
        yield from (f"{path.relative_to(folder) / name} is missing" for name in names if not (path / name).is_file())
        yield from (f"{file.relative_to(folder)} is empty" for file in path.glob("*.distcp") if not file.stat().st_size)


def _hugging_face_problems(folder: Path, name: str, has_weights: bool) -> Iterator[str]:
    for file in ("config.json", "tokenizer_config.json"):
        if not (folder / name / file).is_file() or not (folder / name / file).stat().st_size:
            yield f"{name}/{file} is missing or empty"
    if has_weights:
        weights = list((folder / name).rglob("*.safetensors"))
        if not weights or not all(file.stat().st_size for file in weights):
            yield f"{name}/*.safetensors are missing or empty"


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


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
