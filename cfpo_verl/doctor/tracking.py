"""Checks of the loggers: verl creates them after loading the models, and stops if one cannot be created."""

import netrc
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from cfpo_verl.demands import loggers, worker_env
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
    """Check that each logger is known to verl, installed and logged in."""
    env = worker_env(config)
    for logger in loggers(config):
        if logger not in LOGGERS:
            yield failed(f"trainer.logger: verl has no logger {logger!r}", f"Choose among: {', '.join(LOGGERS)}")
            continue
        module = LOGGERS[logger]
        if module is not None and find_spec(module.partition(".")[0]) is None:
            yield failed(
                f"trainer.logger: {logger} needs {module}, which is not installed",
                f"Install it, or leave {logger} out of trainer.logger",
            )
        elif logger == "wandb" and not _wandb_can_start(env):
            yield failed(
                "trainer.logger: wandb is not logged in, and a worker has no terminal to ask for a key",
                "Set WANDB_API_KEY, or run `wandb login` on every node; or set WANDB_MODE=offline and run `wandb "
                "sync` later",
            )
        elif logger == "swanlab" and env.get("SWANLAB_MODE", "cloud") == "cloud" and not _swanlab_has_login(env):
            yield failed(
                "trainer.logger: swanlab is not logged in",
                "Set SWANLAB_API_KEY or SWANLAB_MODE=local, or run `swanlab login`",
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
