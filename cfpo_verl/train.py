"""`cfpo-verl train`: compose the config, check it, hand it to verl's own trainer."""

import difflib
import os
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cfpo_verl import preflight, run_dir
from cfpo_verl.processes import ending_what_it_starts
from cfpo_verl.progress import following


def _verl_config_dir() -> str:
    """Find verl's YAML files without importing verl, which would settle its platform."""
    spec = find_spec("verl")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "verl is not installed: pip install 'verl[vllm]', or on a CPU see requirements/cpu.txt"
        )
    return str(Path(spec.origin).parent / "trainer" / "config")


OmegaConf.register_new_resolver("verl_config_dir", _verl_config_dir, replace=True)


def train(config: DictConfig) -> None:
    """Check the config and run verl's trainer with it.

    Raises:
        PreflightError: Before Ray starts, with every problem that was found.
    """
    # Before verl is imported anywhere in this process: it settles its platform then.
    os.environ.update(preflight.worker_env(config))
    preflight.check(config)
    for warning in preflight.warnings(config):
        print(f"cfpo-verl: warning: {warning}", file=sys.stderr)

    folder = Path(config.run_dir).absolute()
    attempt = run_dir.next_attempt(folder)
    with open_dict(config):
        config.run_dir = str(folder)
        # verl's file logger reads its path in another process, from the environment.
        OmegaConf.update(
            config,
            "ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH",
            str(run_dir.metrics_path(folder, attempt)),
            force_add=True,
        )
    run_dir.write_attempt(folder, attempt, OmegaConf.to_yaml(config, resolve=True))
    log_path = run_dir.log_path(folder, attempt)
    print(
        f"cfpo-verl: attempt {attempt} in {folder}; the output of all processes goes to {log_path.name}",
        file=sys.stderr,
    )

    from verl.trainer.main_ppo import main as verl_main

    shown = following(run_dir.metrics_path(folder, attempt), config.trainer.total_training_steps, sys.stderr)
    with (
        shown,
        log_path.open("w", buffering=1) as log,
        redirect_stdout(log),
        redirect_stderr(log),
        ending_what_it_starts(),
    ):
        try:
            # The function inside verl's Hydra decorator: the very code that verl's own entry point runs.
            verl_main.__wrapped__(config)
        except Exception as error:
            error.add_note(f"The output of all processes up to here is in {log_path}")
            raise


def _similar_keys(message: str) -> str:
    """Return a hint naming the existing keys closest to one that Hydra refused, or an empty text."""
    refused = re.search(r"Could not override '([^']+)'", message)
    experiment = [argument for argument in sys.argv[1:] if argument.startswith("experiment=")]
    if refused is None or not experiment:
        return ""
    with hydra.initialize_config_module("cfpo_verl.hydra_configs", version_base=None):
        config = hydra.compose("train", overrides=experiment)

    def keys(node: object, prefix: str) -> list[str]:
        if not isinstance(node, DictConfig):
            return [prefix]
        return [prefix, *(key for name in node for key in keys(node._get_node(name), f"{prefix}.{name}"))]

    known = [key.lstrip(".") for key in keys(config, "")]
    close = difflib.get_close_matches(refused[1], known, n=3, cutoff=0.8)
    return f"\nDid you mean: {', '.join(close)}?" if close else ""


@hydra.main(config_path="pkg://cfpo_verl.hydra_configs", config_name="train", version_base=None)
def _hydra_main(config: DictConfig) -> None:
    train(config)


def main(arguments: list[str]) -> int:
    """Run `cfpo-verl train` with Hydra's arguments and return the exit status."""
    sys.argv = ["cfpo-verl train", *arguments]
    # Hydra then raises its errors instead of printing them and exiting, so that they look like all others.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _hydra_main()
    except preflight.PreflightError as error:
        for problem in error.problems:
            print(f"cfpo-verl train: {problem}", file=sys.stderr)
        print("Nothing was started.", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"cfpo-verl train: {error}{_similar_keys(str(error))}\nNothing was started.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cfpo-verl train: interrupted; everything it had started is ended", file=sys.stderr)
        return 130
    return 0
