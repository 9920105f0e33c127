"""What a new attempt takes over from earlier ones: the checkpoint, and the run of the tracking service."""

import secrets
import string
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from cfpo_verl.checkpoints import LAYOUTS, Expected, Found, newest_complete
from cfpo_verl.demands import has_critic, loggers, trainer_nodes
from cfpo_verl.files import reading, write_atomically

# Loggers that resume a run named by the variables <PREFIX>_RUN_ID and <PREFIX>_RESUME.
_PREFIXES = {"wandb": "WANDB", "swanlab": "SWANLAB"}


def expected_checkpoint(config: DictConfig) -> Expected | None:
    """Return what a checkpoint must contain for this run, None for an engine whose checkpoint layout is unknown."""
    trainer, actor = config.trainer, config.actor_rollout_ref.actor
    if actor.strategy not in LAYOUTS:
        return None
    return Expected(
        world_size=trainer_nodes(config).gpus,
        layout=LAYOUTS[actor.strategy],
        roles=("actor", "critic") if has_critic(config) else ("actor",),
        contents=tuple(actor.checkpoint.load_contents),
        is_async=bool(trainer.use_v1) and trainer.v1.trainer_mode != "sync",
    )


def find_checkpoint(config: DictConfig) -> Found | None:
    """Find the checkpoint that a run with resume_mode=auto resumes from, None where verl chooses it.

    Raises:
        WorldSizeError: If it was saved by another number of ranks than the run has.
        FileError: If the system refuses to read the checkpoints.
    """
    expected = expected_checkpoint(config) if config.trainer.resume_mode == "auto" else None
    return newest_complete(Path(config.trainer.default_local_dir).absolute(), expected) if expected else None


def describe(found: Found) -> str:
    """Return one line that says where a run resumes and what it skips; empty if there is no checkpoint."""
    skipped = "; ".join(f"{checkpoint.name} ({reason})" for checkpoint, reason in found.skipped.items())
    if found.path is None:
        return f"starts at step 1, because no checkpoint is complete: {skipped}" if skipped else ""
    return f"resumes from step {found.step}, {found.path}" + (
        f"; skips incomplete checkpoints: {skipped}" if skipped else ""
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
