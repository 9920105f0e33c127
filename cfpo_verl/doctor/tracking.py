"""Checks of the loggers: verl creates them once all models are loaded, and stops there if one cannot be."""

import netrc
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from cfpo_verl.doctor.environment import worker_env
from cfpo_verl.doctor.finding import Finding, failed

# verl.utils.tracking.Tracking.supported_backend, and the module that each imports.
LOGGERS = {
    "console": None,
    "file": None,
    "wandb": "wandb",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "vemlp_wandb": "volcengine_ml_platform",
    "tensorboard": "torch.utils.tensorboard",
    "clearml": "clearml",
    "trackio": "trackio",
    "rl_insight": "rl_insight",
}


def check_loggers(config: DictConfig) -> Iterator[Finding]:
    """Check that each logger is known to verl, installed, and logged in."""
    chosen = config.trainer.logger
    loggers = list(chosen) if isinstance(chosen, ListConfig) else [chosen]
    env = worker_env(config)
    for logger in loggers:
        if logger not in LOGGERS:
            yield failed(f"trainer.logger: verl has no {logger!r}", f"Choose among: {', '.join(LOGGERS)}")
            continue
        module = LOGGERS[logger]
        if module is not None and find_spec(module.partition(".")[0]) is None:
            yield failed(
                f"trainer.logger: {logger} needs {module}, which is not installed",
                f"Install it, or leave {logger} out of trainer.logger",
            )
        elif logger == "wandb" and not _wandb_can_start(env):
            yield failed(
                "trainer.logger: wandb has no login, and a worker has no terminal to ask for one",
                "Set WANDB_API_KEY, or `wandb login` on every node; or WANDB_MODE=offline and `wandb sync` later",
            )
        elif logger == "swanlab" and env.get("SWANLAB_MODE", "cloud") == "cloud" and not _swanlab_has_login(env):
            yield failed(
                "trainer.logger: swanlab has no login", "Set SWANLAB_API_KEY, `swanlab login`, or SWANLAB_MODE=local"
            )


def _wandb_can_start(env: Mapping[str, str]) -> bool:
    if env.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun") or env.get("WANDB_API_KEY"):
        return True
    host = env.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/").partition("://")[2].partition(":")[0]
    try:
        file = netrc.netrc(env.get("NETRC") or Path(env.get("HOME", os.path.expanduser("~")), ".netrc"))
    except (OSError, netrc.NetrcParseError):
        return False
    return host in file.hosts


def _swanlab_has_login(env: Mapping[str, str]) -> bool:
    folder = env.get("SWANLAB_SAVE_DIR") or Path(env.get("HOME", os.path.expanduser("~")), ".swanlab")
    return bool(env.get("SWANLAB_API_KEY")) or Path(folder, ".netrc").is_file()
