"""cfpo_verl.demands: what a config asks for, compared with verl's own rules."""

import warnings

import pytest
from doctor_configs import gpu_config, quickstart
from omegaconf import open_dict
from verl.trainer.ppo.utils import need_critic

from cfpo_verl import demands
from cfpo_verl.config_groups import platform_env

ACTOR = "actor_rollout_ref.actor"


@pytest.mark.parametrize(
    ("overrides", "separate", "generating"),
    [
        ([], False, (1, 8)),
        # verl's other trainers do not read the nodes of the rollout.
        (["actor_rollout_ref.rollout.nnodes=2"], False, (1, 8)),
        (["trainer.v1.trainer_mode=colocate_async", "actor_rollout_ref.rollout.nnodes=2"], False, (1, 8)),
        (
            [
                "trainer.v1.trainer_mode=separate_async",
                "actor_rollout_ref.rollout.nnodes=2",
                "actor_rollout_ref.rollout.n_gpus_per_node=4",
            ],
            True,
            (2, 4),
        ),
        (
            ["trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.rollout.nnodes=2", "trainer.use_v1=false"],
            False,
            (1, 8),
        ),
    ],
)
def test_nodes_that_generate(overrides, separate, generating):
    config = gpu_config(*overrides)
    assert demands.generates_separately(config) is separate
    assert demands.generation_nodes(config) == demands.Nodes(*generating)
    assert demands.trainer_nodes(config) == demands.Nodes(1, 8)
    assert demands.gpus_needed(config) == 8 + separate * 8


def test_verl_makes_a_pool_for_rewards_without_a_reward_model():
    pool = ["reward.reward_model.enable_resource_pool=true", "reward.reward_model.nnodes=1"]
    config = gpu_config(*pool, "reward.reward_model.n_gpus_per_node=4")
    assert demands.gpus_needed(config) == 12

    from verl.trainer.ppo.v1 import PPOTrainerSeparateAsync

    trainer = object.__new__(PPOTrainerSeparateAsync)
    trainer.config = config
    trainer._init_resource_pool_mgr()
    assert trainer.resource_pool_manager.get_n_gpus() == 12


@pytest.mark.parametrize("enable", [None, True, False])
@pytest.mark.parametrize("estimator", ["gae", "grpo", "cfpo_grpo", "remax"])
def test_a_critic_is_needed_where_verl_needs_one(enable, estimator):
    config = gpu_config(f"algorithm.adv_estimator={estimator}")
    config.critic.enable = enable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert demands.has_critic(config) == need_critic(config)


def test_a_reference_is_a_model_of_its_own_without_lora():
    config = gpu_config()
    assert not demands.has_reference(config)
    config.actor_rollout_ref.actor.use_kl_loss = True
    assert demands.has_reference(config)
    config.actor_rollout_ref.model.lora_rank = 8
    assert demands.has_lora(config)
    assert not demands.has_reference(config)
    config.actor_rollout_ref.model.lora_rank, config.actor_rollout_ref.model.lora_adapter_path = 0, "adapter"
    assert demands.has_lora(config)


def test_workers_get_the_variables_of_the_platform():
    assert platform_env("cpu").items() <= demands.worker_variables(quickstart()).items()
    assert demands.worker_variables(gpu_config()).keys().isdisjoint(platform_env("cpu"))


def test_workers_get_the_configured_environment(monkeypatch):
    config = quickstart()
    monkeypatch.setenv("VERL_PLATFORM", "nvidia")
    assert demands.worker_env(config)["VERL_PLATFORM"] == "cpu"
    with open_dict(config):
        config.pop("ray_kwargs")
    assert demands.worker_env(config)["VERL_PLATFORM"] == "nvidia"


def test_files_and_loggers_are_lists():
    config = gpu_config("data.train_files=a.parquet", "data.val_files=[b.parquet,c.parquet]", "trainer.logger=console")
    assert demands.data_files(config, "train_files") == ["a.parquet"]
    assert demands.data_files(config, "val_files") == ["b.parquet", "c.parquet"]
    assert demands.loggers(config) == ["console"]
    config.data.train_files = None
    assert demands.data_files(config, "train_files") == [None]


def test_counts_that_start_ray_on_one_machine():
    assert demands.ray_counts(quickstart()) == ["num_cpus", "num_gpus"]
    assert demands.ray_counts(gpu_config()) == []
