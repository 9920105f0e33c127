"""What a new attempt takes over from earlier ones: the checkpoint, and the run of the tracking service."""

import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from cfpo_verl.checkpoints import Broken, Held, inspect, is_checkpoint, step_of
from cfpo_verl.demands import loggers
from cfpo_verl.files import reading, write_atomically
from cfpo_verl.mismatch import ResumeError, Wanted, leftover, mismatch, notes, wanted_checkpoint

# Loggers that resume a run named by the variables <PREFIX>_RUN_ID and <PREFIX>_RESUME.
_PREFIXES = {"wandb": "WANDB", "swanlab": "SWANLAB"}


@dataclass(frozen=True)
class Found:
    """The result of a search for a checkpoint.

    Args:
        path: The newest complete checkpoint, None if there is none.
        notes: What it holds that the run does not use, or what it lacks, although the run can load it.
        skipped: The newer incomplete ones, newest first.
    """

    path: Path | None
    notes: list[str] = field(default_factory=list)
    skipped: dict[Path, Broken] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The step after which the checkpoint was saved, 0 without one."""
        return step_of(self.path) if self.path else 0


def newest_complete(checkpoints_dir: Path, wanted: Wanted) -> Found:
    """Find the newest complete checkpoint. verl's tracker file is not used.

    Args:
        checkpoints_dir: Folder with the folders global_step_<N>; it need not exist.
        wanted: What the run wants of it.

    Raises:
        ResumeError: If the run cannot load that checkpoint: an older one that fits is not used instead, because the
            training since then would be lost silently. Or if none is complete, but the run must not start at step 1 as
            if there were none: one is damaged, or has files that the run's own would be mixed with.
        FileError: If the system refuses to read the folder or a checkpoint.
    """
    skipped: dict[Path, Broken] = {}
    with reading(checkpoints_dir):
        saved = filter(is_checkpoint, checkpoints_dir.iterdir()) if checkpoints_dir.is_dir() else ()
        for checkpoint in sorted(saved, key=step_of, reverse=True):
            held = inspect(checkpoint)
            if isinstance(held, Broken):
                skipped[checkpoint] = held
            else:
                return Found(checkpoint, _checked(checkpoint, held, wanted), skipped)
        _check_start(skipped, wanted)
    return Found(None, skipped=skipped)


def _checked(checkpoint: Path, held: Held, wanted: Wanted) -> list[str]:
    """Return the notes on a complete checkpoint, or raise the error that refuses it."""
    if error := mismatch(checkpoint, held, wanted):
        raise error
    return notes(held, wanted)


def _check_start(incomplete: Mapping[Path, Broken], wanted: Wanted) -> None:
    """Reject a start at step 1 that would lose a checkpoint, or mix an unfinished one with the run's own."""
    damaged = [
        f"{checkpoint} ({broken.reason})" for checkpoint, broken in incomplete.items() if not broken.is_unfinished
    ]
    if damaged:
        raise ResumeError(
            f"no checkpoint is complete, and these were, but have been damaged since: {'; '.join(damaged)}",
            "Restore the files; or, to start anew, remove these folders or choose another run_dir",
        )
    for checkpoint in incomplete:
        if left := leftover(checkpoint, wanted):
            raise ResumeError(
                f"no checkpoint is complete, and {checkpoint}, whose save was interrupted, has "
                f"{left.relative_to(checkpoint)}, which this run does not write: it would become a part of the run's "
                f"own checkpoint of step {step_of(checkpoint)}",
                "Remove that folder, as it is of no use, or choose another run_dir",
            )


def find_checkpoint(config: DictConfig) -> Found | None:
    """Find the checkpoint that a run with resume_mode=auto resumes from, None where verl or the user chooses it.

    Raises:
        ResumeError: If there is one that the run must not pass over, and cannot resume from.
        FileError: If the system refuses to read the checkpoints.
    """
    wanted = wanted_checkpoint(config) if config.trainer.resume_mode == "auto" else None
    return newest_complete(Path(config.trainer.default_local_dir).absolute(), wanted) if wanted else None


def chosen_checkpoint(config: DictConfig) -> Found | None:
    """Check the checkpoint that the user chose with resume_mode=resume_path, None with another mode.

    Raises:
        ResumeError: If it is no checkpoint, incomplete, or the run cannot load it.
        FileError: If the system refuses to read it.
    """
    if config.trainer.resume_mode != "resume_path":
        return None
    named, path = config.trainer.resume_from_path, Path(str(config.trainer.resume_from_path)).absolute()
    with reading(path):
        if not is_checkpoint(path):
            raise ResumeError(
                f"trainer.resume_from_path={named} is not a folder global_step_<N>",
                "Give one from trainer.default_local_dir, or set trainer.resume_mode=auto",
            )
        wanted = wanted_checkpoint(config)
        if wanted is None:
            return Found(path)
        held = inspect(path)
        if isinstance(held, Broken):
            raise ResumeError(
                f"trainer.resume_from_path={path} is incomplete ({held})",
                "Give another one, or set trainer.resume_mode=auto, which takes the newest complete one",
            )
        return Found(path, _checked(path, held, wanted))


def in_the_way(config: DictConfig, step: int) -> list[Path]:
    """Return the checkpoints that a run will write over which resumes from a step of the user's choice, or starts anew.

    Raises:
        FileError: If the system refuses to read their folder.
    """
    folder = Path(config.trainer.default_local_dir).absolute()
    with reading(folder):
        saved = filter(is_checkpoint, folder.iterdir()) if folder.is_dir() else ()
        return sorted((checkpoint for checkpoint in saved if step_of(checkpoint) > step), key=step_of)


def describe(found: Found) -> str:
    """Return one line that says where a run resumes and what it skips; empty if there is no checkpoint."""
    skipped = "; ".join(f"{checkpoint.name} ({broken})" for checkpoint, broken in found.skipped.items())
    if found.path is None:
        started = f"starts at step 1, because no save was finished: {skipped}"
        return f"{started}. They stay until a save at the same step replaces them" if skipped else ""
    return "; ".join(
        [
            f"resumes from step {found.step}, {found.path}",
            *found.notes,
            *([f"skips incomplete checkpoints: {skipped}"] if skipped else []),
        ]
    )


def use_checkpoint(config: DictConfig, found: Found) -> None:
    """Make verl load the checkpoint that was found instead of the one in its tracker file."""
    config.trainer.resume_mode = "resume_path" if found.path else "disable"
    config.trainer.resume_from_path = str(found.path) if found.path else None


def tracking_env(config: DictConfig, folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that make W&B and SwanLab resume the run of earlier attempts.

    Args:
        config: The composed config.
        folder: The run folder, where the id is stored.
        env: The environment of the workers; values set by the user are kept.
    """
    variables = {}
    for prefix in (_PREFIXES[logger] for logger in loggers(config) if logger in _PREFIXES):
        variables[f"{prefix}_RUN_ID"] = env.get(f"{prefix}_RUN_ID") or _tracking_id(folder)
        variables[f"{prefix}_RESUME"] = env.get(f"{prefix}_RESUME") or "allow"
    return variables


def _tracking_id(folder: Path) -> str:
    """Return the id stored in the run folder; the first attempt creates it."""
    path = folder / "tracking_id"
    if not path.is_file():
        # Older releases of SwanLab require exactly 21 of these characters; W&B accepts them too.
        new_id = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(21))
        write_atomically(path, f"{new_id}\n")
    with reading(path):
        return path.read_text(encoding="utf-8").strip()
