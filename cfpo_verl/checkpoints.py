"""Which checkpoint of a folder is whole. Pure functions on files: nothing is loaded, nothing is changed.

verl (0.9.1) writes a checkpoint in this order, and none of it atomically:

    global_step_<N>/actor/      FSDP: for each rank model_, optim_, extra_state_world_size_<W>_rank_<R>.pt, then
                                huggingface/ (config, tokenizer), fsdp_config.json.
                                Megatron: model/, optimizer/, extra/, then ckpt_contents.json, the one atomic file
    global_step_<N>/critic/     the same, if there is a critic
    global_step_<N>/data.pt     where the data loader is
    global_step_<N>/transfer_queue/   only for the trainer's asynchronous modes
    latest_checkpointed_iteration.txt   the step, which verl itself resumes from without a look at the rest

The layout of Megatron was read in verl's source and not tried.
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
# The name in verl's load_contents, and that of its FSDP shards.
_SHARD_NAMES = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
LAYOUTS = {"fsdp": "fsdp", "fsdp2": "fsdp", "veomni": "fsdp", "megatron": "megatron"}


@dataclass(frozen=True)
class Expected:
    """What a run has to find in a checkpoint to go on from it.

    Args:
        world_size: Ranks of the run. FSDP loads only what as many ranks saved.
        layout: "fsdp" or "megatron": how verl's engine lays out a model, see `LAYOUTS`.
        roles: Folders with a model: actor, and critic if there is one.
        contents: verl's load_contents: model, optimizer, extra, hf_model.
        is_async: Whether the trainer keeps prompts in flight, which are saved too.
    """

    world_size: int
    layout: str = "fsdp"
    roles: tuple[str, ...] = ("actor",)
    contents: tuple[str, ...] = ("model", "optimizer", "extra")
    is_async: bool = False


@dataclass(frozen=True)
class Found:
    """What there is in a folder of checkpoints.

    Args:
        path: The newest whole checkpoint, None if there is none.
        skipped: The newer ones, newest first, and why each is not whole.
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
    """Whether a path is a folder global_step_<N>, whole or not."""
    return bool(_STEP.fullmatch(path.name)) and path.is_dir()


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("global_step_"))


def newest_complete(checkpoints_dir: Path, expected: Expected) -> Found:
    """Find the newest checkpoint that is whole, without verl's tracker file.

    Args:
        checkpoints_dir: The folder with the folders global_step_<N>; it need not exist.
        expected: What the run needs of it.

    Raises:
        WorldSizeError: If that checkpoint is of another world size. An older one that would fit is not taken
            instead: what was trained since would be lost without a word.
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
    """Rename a checkpoint that is not whole, and return its new path.

    The run comes to that step again. If it were stopped while it saves there, old and new shards together could pass
    for a whole checkpoint.
    """
    number = 1
    while (aside := checkpoint.with_name(f"{checkpoint.name}.incomplete{number}")).exists():
        number += 1
    return checkpoint.rename(aside)


def why_incomplete(checkpoint: Path, expected: Expected) -> str | None:
    """Say what is missing or broken in a checkpoint, None if it is whole, for whatever number of ranks."""
    for role in expected.roles:
        problem = why_model_incomplete(checkpoint / role, expected.layout, expected.contents)
        if problem:
            return problem
    if expected.is_async and not _has_files(checkpoint / "transfer_queue"):
        return "transfer_queue/ is missing"
    return _archive_problem(checkpoint / "data.pt")


def why_model_incomplete(folder: Path, layout: str, contents: Iterable[str]) -> str | None:
    """Say what is missing or broken in the folder of one model, such as global_step_3/actor, None if it is whole.

    Args:
        folder: The folder.
        layout: "fsdp" or "megatron".
        contents: What of it is needed, as in verl's load_contents.
    """
    if not folder.is_dir():
        return f"there is no {folder.name}/"
    check = _fsdp_problems if layout == "fsdp" else _megatron_problems
    return next((f"{folder.name}/{problem}" for problem in check(folder, contents)), None)


def saved_world_size(model_folder: Path) -> int | None:
    """Return how many ranks saved the FSDP shards of a folder, None if there are none.

    Where there are several, left over by a run that was saved again to the same folder, the file that was written
    last decides: fsdp_config.json, else the newest shard.
    """
    try:
        return int(json.loads((model_folder / "fsdp_config.json").read_text())["world_size"])
    except (OSError, ValueError, KeyError, TypeError):
        shards = [path for path in model_folder.iterdir() if _SHARD.fullmatch(path.name)]
        newest = max(shards, key=lambda path: path.stat().st_mtime, default=None)
        return int(_SHARD.sub(r"\2", newest.name)) if newest else None


def check_world_size(checkpoint: Path, expected: Expected) -> None:
    """Refuse a checkpoint that verl's FSDP engine could not load.

    Raises:
        WorldSizeError: With the way out.
    """
    if expected.layout != "fsdp":
        return  # Megatron's are made to be loaded by any number of ranks
    saved = saved_world_size(checkpoint / expected.roles[0])
    if saved != expected.world_size:
        raise WorldSizeError(
            f"{checkpoint} was saved by {saved} ranks, and FSDP can load it only into as many: this run has "
            f"{expected.world_size} (trainer.nnodes * trainer.n_gpus_per_node)",
            f"Run it on {saved}; or begin anew from its weights, without the optimiser's state: "
            "`python -m verl.model_merger merge --backend fsdp "
            f"--local_dir {checkpoint / expected.roles[0]} --target_dir MODEL`, then "
            "actor_rollout_ref.model.path=MODEL and another run_dir",
        )


def _fsdp_problems(folder: Path, contents: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with the folder of a model, as verl's FSDPCheckpointManager writes it."""
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
    """Yield what is wrong with the folder of a model, as verl's MegatronCheckpointManager writes it."""
    try:
        manifest = json.loads((folder / "ckpt_contents.json").read_text())
        saved, parts = manifest["save_contents"], manifest["contents"].values()
        paths = {part["path"]: part["format"] for part in parts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield "ckpt_contents.json, which is written last, is missing or broken"
        return
    yield from (
        f"{content} was not saved, and load_contents asks for it" for content in contents if content not in saved
    )
    for path, form in paths.items():
        if not (folder / path).exists():
            yield f"{path} is missing"
        elif form == "huggingface":
            yield from _hugging_face_problems(folder, path, has_weights=True)
    distributed = [folder / path for path, form in paths.items() if form == "megatron_dist_checkpoint"]
    # Megatron-FSDP puts all into the model's folder, and leaves the others empty.
    written = [path for path in distributed if _has_files(path)]
    if distributed and not written:
        yield "dist_ckpt/ are empty"
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
    """Say what is wrong with a file of torch.save: a zip archive, whose table of contents is written last."""
    if not path.is_file():
        return f"{path.name} is missing"
    if not path.stat().st_size:
        return f"{path.name} is empty"
    try:
        with zipfile.ZipFile(path):
            return None
    except zipfile.BadZipFile:
        return f"{path.name} is cut off"


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
