"""Configs for the tests of the doctor: the quickstart's, and one shaped for GPUs on verl's own defaults."""

import json
from collections.abc import Iterable
from copy import deepcopy
from functools import cache
from pathlib import Path

import hydra
from omegaconf import DictConfig

from cfpo_verl import composing
from cfpo_verl.doctor.finding import Finding

# 8 GPUs of one node, FSDP: every value that the checks read divides.
_GPU = [
    "+policy_loss=cfpo",
    "algorithm.adv_estimator=cfpo_grpo",
    "data.train_batch_size=64",
    "data.max_prompt_length=512",
    "data.max_response_length=1024",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
    "reward.custom_reward_function.path=pkg://cfpo_verl.rewards",
    "trainer.n_gpus_per_node=8",
    "trainer.nnodes=1",
    "trainer.save_freq=10",
    "trainer.logger=[console]",
    "+run_dir=runs/gpu",
]


@cache
def _compose(primary: str, overrides: tuple[str, ...]) -> DictConfig:
    if primary == "train":
        return composing.compose(list(overrides))
    with hydra.initialize_config_dir(composing.verl_config_dir(), version_base=None):
        return hydra.compose(primary, overrides=list(overrides))


def quickstart(*overrides: str) -> DictConfig:
    """Compose the quickstart."""
    return deepcopy(_compose("train", ("experiment=cpu_quickstart", *overrides)))


def gpu_config(*overrides: str) -> DictConfig:
    """Compose verl's own defaults with our loss, for GPUs."""
    return deepcopy(_compose("ppo_trainer", (*_GPU, *overrides)))


def with_model(config: DictConfig, folder: Path, **shape: int) -> DictConfig:
    """Let a config name a folder with a config.json of a shape."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape))
    config.actor_rollout_ref.model.path = str(folder)
    return config


def failed(findings: Iterable[Finding]) -> list[str]:
    """Return the failures as sentences."""
    return [str(finding) for finding in findings if finding.status == "failed"]


def warnings(findings: Iterable[Finding]) -> list[str]:
    """Return the warnings as sentences."""
    return [str(finding) for finding in findings if finding.status == "warning"]


def ok(findings: Iterable[Finding]) -> list[str]:
    """Return what was found to be well."""
    return [str(finding) for finding in findings if finding.status == "ok"]
