"""What is checked before Ray starts. Each check returns its problems as sentences; none raises."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from omegaconf import DictConfig, ListConfig, OmegaConf

from cfpo_verl.data_prep.schema import DataError, check_file

# Imported and printed by a fresh interpreter, as a Ray worker would: nothing of this process helps it.
_REGISTRY_PROBE = """
import json
import verl
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
names, error = sorted(POLICY_LOSS_REGISTRY), None
if "cfpo" not in names:
    try:
        import cfpo_verl.plugin
        error = "verl did not load it"
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
print("registry=" + json.dumps([names, error]))
"""


class PreflightError(ValueError):
    """A run would fail; the message lists every problem that was found."""

    def __init__(self, problems: list[str]) -> None:
        """Number the problems if there are several."""
        self.problems = problems
        super().__init__("\n".join(problems))


def check_data(config: DictConfig) -> list[str]:
    """Check that every train and validation file can be trained on."""
    problems = []
    for key in ("train_files", "val_files"):
        files = config.data[key]
        for file in files if isinstance(files, ListConfig) else [files]:
            if "://" in str(file):
                continue  # remote: verl fetches it
            try:
                check_file(Path(file))
            except DataError as error:
                problems.append(f"data.{key}: {error}")
    return problems


def check_model(config: DictConfig) -> list[str]:
    """Check that a model given as a path is a Hugging Face folder. Hub ids are left to verl."""
    path = str(config.actor_rollout_ref.model.path)
    is_path = path.startswith((".", "/", "~")) or Path(path).is_dir()
    if is_path and not (Path(path).expanduser() / "config.json").is_file():
        return [
            f"actor_rollout_ref.model.path: {path} is not a model folder (no config.json in it). Give the folder of "
            "a Hugging Face model or a hub id; `cfpo-verl warmup --help` makes a tiny one"
        ]
    return []


def check_run_dir(run_dir: Path) -> list[str]:
    """Check that the run folder, or the nearest folder above it that exists, can be written to."""
    nearest = run_dir
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return [f"run_dir: {nearest} is a file, not a folder. Choose another one with run_dir=PATH"]
    try:
        # Tried, not asked: permissions do not tell of read-only file systems, and root has all of them.
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return [f"run_dir: {nearest} is not writable ({error.strerror}). Choose another one with run_dir=PATH"]
    return []


def check_packages(config: DictConfig) -> list[str]:
    """Check that the packages the configured trainer and rollout need are installed."""
    problems = []
    if config.actor_rollout_ref.rollout.name == "vllm" and find_spec("vllm") is None:
        problems.append(
            "actor_rollout_ref.rollout.name=vllm, but vLLM is not installed. With a GPU: pip install 'verl[vllm]'. "
            "Without one: pip install --no-deps -r requirements/cpu.txt"
        )
    if config.trainer.use_v1 and find_spec("transfer_queue") is None:
        problems.append("trainer.use_v1=true needs TransferQueue: pip install 'TransferQueue>=0.1.10'")
    return problems


def check_registry(loss_mode: str, env: Mapping[str, str]) -> list[str]:
    """Check in a fresh process that the loss is in verl's registry, as a Ray worker will find it.

    verl hides a plugin that fails to load, so without this a run would die at its first update.

    Args:
        loss_mode: Name of the loss.
        env: Environment of the workers.
    """
    probe = subprocess.run(
        [sys.executable, "-c", _REGISTRY_PROBE], env=dict(env), capture_output=True, text=True, check=False
    )
    found = [line for line in probe.stdout.splitlines() if line.startswith("registry=")]
    if not found:
        last_line = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        return [f"verl cannot be imported in a fresh process: {last_line}"]
    names, error = json.loads(found[-1].removeprefix("registry="))
    if loss_mode in names:
        return []
    message = f"policy_loss.loss_mode={loss_mode} is not in verl's registry in a fresh process"
    if error is None:
        return [f"{message}. Choose one of: {', '.join(names)}"]
    way_out = "Reinstall cfpo-verl in this environment (pip install cfpo-verl)"
    policy = env.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if policy.strip().lower() not in ("auto", "cfpo"):
        way_out = (
            f"VERL_USE_EXTERNAL_PLUGINS={policy} disables it: unset that variable, "
            "or also set VERL_USE_EXTERNAL_MODULES=cfpo_verl.plugin"
        )
    return [f"{message}, because the plugin cfpo_verl.plugin is not loaded ({error}). {way_out}"]


def check_verl_config(config: DictConfig) -> list[str]:
    """Build verl's typed config, our loss options included, and run verl's own validation."""
    from hydra.errors import InstantiationException
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    try:
        # First, because an error in it should be reported as itself and not as one of the actor's.
        omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss)
        validate_config(config, need_reference_policy(config), need_critic(config))
    except InstantiationException as error:
        return [str(error.__cause__ or error)]
    except (AssertionError, ValueError, TypeError) as error:
        return [str(error) or repr(error)]
    return []


def warnings(config: DictConfig) -> list[str]:
    """Return what is allowed but probably not meant."""
    actor = config.actor_rollout_ref.actor
    if actor.policy_loss.loss_mode != "cfpo":
        return []
    found = []
    changed = [key for key in ("clip_ratio", "clip_ratio_low", "clip_ratio_high") if actor[key] != 0.2]
    if changed:
        found.append(
            f"{', '.join(changed)} has no effect on the cfpo loss. "
            "Set actor_rollout_ref.actor.policy_loss.epsilon instead"
        )
    updates = config.data.train_batch_size / actor.ppo_mini_batch_size * actor.ppo_epochs
    if updates <= 1:
        found.append(
            "one optimiser step per rollout: the importance ratio is always 1, so CFPO, GRPO and REINFORCE are the "
            "same. Make actor_rollout_ref.actor.ppo_mini_batch_size smaller than data.train_batch_size"
        )
    return found


def worker_env(config: DictConfig) -> dict[str, str]:
    """Return the environment that Ray workers will have."""
    configured = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    return {**os.environ, **{str(name): str(value) for name, value in configured.items()}}


def check(config: DictConfig) -> None:
    """Run all checks, the quick ones first.

    Raises:
        PreflightError: With all problems of the quick checks, or else of those that start verl.
    """
    problems = [
        *check_packages(config),
        *check_run_dir(Path(config.run_dir)),
        *check_data(config),
        *check_model(config),
    ]
    if not problems:
        # Each imports verl, which takes seconds: the one in a process of its own, the other here.
        with ThreadPoolExecutor(max_workers=1) as pool:
            loss_mode = config.actor_rollout_ref.actor.policy_loss.loss_mode
            registry_problems = pool.submit(check_registry, loss_mode, worker_env(config))
            problems = check_verl_config(config) + registry_problems.result()
    if problems:
        raise PreflightError(problems)
