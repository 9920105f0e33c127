"""cfpo_verl.doctor.algorithm: each fault planted, and none found in a correct config."""

import pytest
from doctor_configs import failed, gpu_config, ok, quickstart, warnings
from omegaconf import OmegaConf, open_dict

from cfpo_verl.doctor import algorithm, composition

CHECKS = (
    algorithm.check_verl_config,
    composition.check_engine,
    composition.check_one_machine,
    algorithm.check_trainer_mode,
    algorithm.check_loss_options,
    algorithm.check_updates,
    algorithm.check_rollout_correction,
    algorithm.check_advantages,
    algorithm.check_reference,
    algorithm.check_filter_groups,
    algorithm.check_sampling,
)


@pytest.fixture
def config():
    return quickstart()


@pytest.fixture
def gpu():
    return gpu_config()


@pytest.mark.parametrize("compose", [quickstart, gpu_config])
def test_a_correct_config_has_no_problems(compose):
    found = [finding for check in CHECKS for finding in check(compose())]
    assert failed(found) == []
    assert warnings(found) == []
    assert ok(found) == ["4 optimiser steps per rollout"]


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        ("0", "must be greater than 0 and less than 1, got 0"),
        ("-0.1", "must be greater than 0 and less than 1, got -0.1"),
        ("nan", "must be greater than 0 and less than 1, got nan"),
        ("abc", "must be a number, got 'abc' (str)"),
        (None, "must be a number, got None"),
    ],
)
def test_epsilon(config, epsilon, message):
    # The value as Hydra reads it from the command line.
    config.actor_rollout_ref.actor.policy_loss.epsilon = (
        None if epsilon is None else OmegaConf.create(f"v: {'.nan' if epsilon == 'nan' else epsilon}").v
    )
    [problem] = failed(algorithm.check_verl_config(config))
    assert f"policy_loss.epsilon {message}" in problem
    assert "Set it with actor_rollout_ref.actor.policy_loss.epsilon=" in problem


def test_verls_own_rules_are_reported(config):
    config.actor_rollout_ref.actor.ppo_mini_batch_size = 64
    [problem] = failed(algorithm.check_verl_config(config))
    assert "train_batch_size (32) must be >= " in problem


def test_the_rollouts_own_rules_are_reported(gpu):
    gpu.actor_rollout_ref.rollout.pipeline_model_parallel_size = 2
    [problem] = failed(algorithm.check_verl_config(gpu))
    assert "not implemented pipeline_model_parallel_size > 1" in problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref.actor.ppo_mini_batch_size", 0),
        ("actor_rollout_ref.actor.ppo_mini_batch_size", None),
        ("trainer.n_gpus_per_node", 0),
        ("data.train_batch_size", "abc"),
    ],
)
def test_sizes_without_meaning(config, key, value):
    OmegaConf.update(config, key, value)
    assert len(failed(algorithm.check_verl_config(config))) == 1


@pytest.mark.parametrize(("group", "loss_mode"), [("cfpo", "vanilla"), ("vanilla", "cfpo")])
def test_the_name_of_a_loss_goes_with_its_options(config, group, loss_mode):
    target = {"cfpo": "cfpo_verl.config.CfpoLossConfig", "vanilla": "verl.workers.config.PolicyLossConfig"}[group]
    config.actor_rollout_ref.actor.policy_loss = {"_target_": target, "loss_mode": loss_mode}
    [problem] = failed(algorithm.check_verl_config(config))
    assert problem.startswith(f"policy_loss.loss_mode={loss_mode} does not go with the options of ")
    assert "Choose with policy_loss=cfpo" in problem


def test_an_aggregation_that_depends_on_the_cut_is_refused(config):
    config.actor_rollout_ref.actor.loss_agg_mode = "seq-mean-token-sum-norm"
    assert failed(algorithm.check_verl_config(config)) == []
    config.actor_rollout_ref.actor.loss_scale_factor = None
    [problem] = failed(algorithm.check_verl_config(config))
    assert problem.startswith("actor.loss_agg_mode=seq-mean-token-sum-norm needs actor.loss_scale_factor")
    assert "Set actor_rollout_ref.actor.loss_scale_factor, for example to '${data.max_response_length}'" in problem


def test_an_engine_with_the_strategy_of_another_passes_verl_and_not_us():
    config = gpu_config("model_engine=megatron", "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2")
    assert failed(composition.check_engine(config)) == []
    config.actor_rollout_ref.actor.strategy = "fsdp2"
    assert failed(algorithm.check_verl_config(config)) == []
    [problem] = failed(composition.check_engine(config))
    assert problem.startswith(
        "model_engine=megatron does not go with actor_rollout_ref.actor.strategy=fsdp2: the config"
    )
    assert "Choose with backend=NAME, which sets both" in problem


def test_modes_of_the_trainer(gpu):
    gpu.trainer.v1.trainer_mode = "async"
    [problem] = failed(algorithm.check_trainer_mode(gpu))
    assert "trainer.v1.trainer_mode=async is not a trainer of verl. Choose one of: sync, colocate_async" in problem
    gpu.trainer.v1.trainer_mode = "sync"
    gpu.actor_rollout_ref.hybrid_engine = False
    [problem] = failed(algorithm.check_trainer_mode(gpu))
    assert "no engine would generate" in problem


def test_the_sampler_of_the_synchronous_trainer_is_refused_in_others():
    config = quickstart("trainer.v1.trainer_mode=colocate_async")
    [problem] = failed(algorithm.check_trainer_mode(config))
    assert "custom_sampler.name=FastPollingReplayBuffer: that buffer" in problem
    assert failed(algorithm.check_trainer_mode(quickstart("updates=colocate_async"))) == []
    assert failed(algorithm.check_trainer_mode(quickstart())) == []


def test_what_the_separate_async_trainer_asserts(gpu):
    gpu.trainer.v1.trainer_mode = "separate_async"  # parameter_sync_step is 4: 4 x 16 = 64 prompts
    problems = failed(algorithm.check_trainer_mode(gpu))
    assert [problem.rpartition(". ")[2] for problem in problems] == [
        "Choose updates=one_step_off or updates=fully_async, which set them",
        "Set it to nccl (verl also has nixl and mooncake)",
    ]
    gpu.actor_rollout_ref.rollout.nnodes = 1
    gpu.actor_rollout_ref.rollout.checkpoint_engine.backend = "nccl"
    assert failed(algorithm.check_trainer_mode(gpu)) == []
    gpu.data.train_batch_size = 128
    [problem] = failed(algorithm.check_trainer_mode(gpu))
    assert "takes 4 mini-batches (parameter_sync_step) of 16 prompts" in problem
    assert "which is not data.train_batch_size=128. Set data.train_batch_size=64, or" in problem


def test_warns_of_a_clip_ratio_without_effect(config):
    config.actor_rollout_ref.actor.clip_ratio_high = 0.28
    [warning] = warnings(algorithm.check_loss_options(config))
    assert warning.startswith("clip_ratio_high has no effect on the loss cfpo")
    config.actor_rollout_ref.actor.policy_loss.loss_mode = "vanilla"
    assert warnings(algorithm.check_loss_options(config)) == []


@pytest.mark.parametrize(
    ("loss_mode", "message"),
    [
        (
            "cfpo_sequence",
            "cfpo_sequence with actor_rollout_ref.actor.loss_agg_mode=token-mean: only seq-mean-token-mean",
        ),
        ("gspo", "gspo with actor_rollout_ref.actor.loss_agg_mode=token-mean: only seq-mean-token-mean"),
        (
            "sapo",
            "verl's loss sapo ignores actor_rollout_ref.actor.loss_agg_mode=token-mean and averages over responses",
        ),
        ("geo_mean", "verl's loss geo_mean ignores actor_rollout_ref.actor.loss_agg_mode=token-mean"),
    ],
)
def test_warns_of_an_aggregation_that_a_loss_ignores_or_that_does_not_fit(config, loss_mode, message):
    actor = config.actor_rollout_ref.actor
    actor.policy_loss.loss_mode, actor.loss_agg_mode = loss_mode, "seq-mean-token-mean"
    assert warnings(algorithm.check_loss_options(config)) == []
    actor.loss_agg_mode = "token-mean"
    [warning] = warnings(algorithm.check_loss_options(config))
    assert warning.startswith(message)
    assert "Set actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean" in warning
    actor.policy_loss.loss_mode = "cfpo"
    assert warnings(algorithm.check_loss_options(config)) == []


def test_warns_of_one_step_per_rollout(config):
    config.actor_rollout_ref.actor.ppo_mini_batch_size = 32
    [warning] = warnings(algorithm.check_updates(config))
    assert "one optimiser step per rollout" in warning
    config.actor_rollout_ref.actor.ppo_epochs = 2
    assert ok(algorithm.check_updates(config)) == ["2 optimiser steps per rollout"]
    config.actor_rollout_ref.actor.ppo_epochs = 1
    config.actor_rollout_ref.actor.policy_loss.loss_mode = "vanilla"
    assert warnings(algorithm.check_updates(config)) == []


@pytest.mark.parametrize("loss_mode", ["cfpo", "vanilla"])
def test_a_correction_that_verl_would_leave_out_is_refused(config, loss_mode):
    config.actor_rollout_ref.actor.policy_loss.loss_mode = loss_mode
    correction = config.algorithm.rollout_correction
    correction.rollout_is, correction.rollout_is_threshold = "token", 2.0
    assert failed(algorithm.check_rollout_correction(config)) == []
    correction.bypass_mode = True
    [problem] = failed(algorithm.check_rollout_correction(config))
    assert "with bypass_mode=true only verl's own loss bypass_mode applies rollout_is=token" in problem
    config.actor_rollout_ref.actor.policy_loss.loss_mode = "bypass_mode"
    assert failed(algorithm.check_rollout_correction(config)) == []
    config.actor_rollout_ref.actor.policy_loss.loss_mode = loss_mode
    correction.rollout_is = None
    assert failed(algorithm.check_rollout_correction(config)) == []


def test_warns_of_the_bypass_mode(config):
    config.algorithm.rollout_correction.bypass_mode = True
    [warning] = warnings(algorithm.check_rollout_correction(config))
    assert warning.startswith(
        "algorithm.rollout_correction.bypass_mode=true: cfpo uses the ratio to the rollout engine's probabilities"
    )
    config.actor_rollout_ref.actor.ppo_mini_batch_size = 32
    assert warnings(algorithm.check_updates(config)) == []  # the ratio is not 1 then


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
@pytest.mark.parametrize("loss_mode", ["cfpo", "vanilla"])
def test_warns_of_stale_data_without_correction(gpu, mode, loss_mode):
    correction = gpu.algorithm.rollout_correction
    gpu.trainer.v1.trainer_mode, gpu.actor_rollout_ref.actor.policy_loss.loss_mode = mode, loss_mode
    [warning] = warnings(algorithm.check_rollout_correction(gpu))
    assert warning.startswith(f"trainer.v1.trainer_mode={mode} trains on responses of older weights, and nothing")
    assert "Set algorithm.rollout_correction.bypass_mode=true" in warning
    for key, value in (("rollout_is", "token"), ("rollout_rs", "token_k1")):
        correction[key] = value
        assert warnings(algorithm.check_rollout_correction(gpu)) == []
        correction[key] = None
    correction.bypass_mode = True
    found = list(algorithm.check_rollout_correction(gpu))
    assert warnings(found) == []
    assert ok(found) == [f"bypass_mode: {loss_mode} uses the ratio to the policy that sampled each token"]
    correction.bypass_mode, gpu.trainer.use_v1 = False, False  # the older trainer has no such mode
    assert warnings(algorithm.check_rollout_correction(gpu)) == []


@pytest.mark.parametrize("updates", ["colocate_async", "one_step_off", "fully_async"])
def test_the_asynchronous_presets_correct_for_stale_data(updates):
    config = quickstart(f"updates={updates}")
    assert config.trainer.v1.trainer_mode != "sync"
    found = list(algorithm.check_rollout_correction(config))
    assert failed(found) + warnings(found) == []
    assert ok(found) == ["bypass_mode: cfpo uses the ratio to the policy that sampled each token"]


def test_warns_of_the_trainer_that_writes_another_loss_into_its_config(config):
    config.algorithm.rollout_correction.bypass_mode = True
    config.trainer.use_v1 = False
    [_bypass, warning] = warnings(algorithm.check_rollout_correction(config))
    assert "bypass_mode with trainer.use_v1=false: that trainer writes loss_mode=bypass_mode" in warning
    config.actor_rollout_ref.actor.policy_loss.loss_mode = "vanilla"
    assert warnings(algorithm.check_rollout_correction(config)) == []


@pytest.mark.parametrize(("key", "value"), [("bypass_mode", True), ("rollout_is", "token"), ("rollout_rs", "token_k1")])
def test_corrections_need_the_rollouts_probabilities(config, key, value):
    config.algorithm.rollout_correction[key] = value
    assert failed(algorithm.check_rollout_correction(config)) == []
    config.actor_rollout_ref.rollout.calculate_log_probs = False
    [problem] = failed(algorithm.check_rollout_correction(config))
    assert f"algorithm.rollout_correction: {key} needs the log-probabilities of the rollout engine" in problem


def test_warns_of_a_length_penalty_as_large_as_the_reward():
    config = quickstart("algo=dapo")
    assert list(algorithm.check_length_penalty(config)) == []
    config.reward.reward_kwargs.overlong_buffer_cfg.penalty_factor = 1.0
    [warning] = warnings(algorithm.check_length_penalty(config))
    assert (
        "penalty_factor=1.0: our reward is 0 or 1, so a right answer at the length limit would be worth no" in warning
    )
    assert warning.endswith("Set reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=0.5")
    config.reward.custom_reward_function.path = "mine.py"
    assert list(algorithm.check_length_penalty(config)) == []


@pytest.mark.parametrize("estimator", ["cfpo_grpo", "cfpo_dr_grpo", "cfpo_rloo"])
def test_warns_of_agent_loops_that_may_return_several_outputs(config, estimator):
    agent = config.actor_rollout_ref.rollout.agent
    config.algorithm.adv_estimator = estimator
    assert list(algorithm.check_agent_loop(config)) == []
    agent.default_agent_loop = "tool_agent"
    assert list(algorithm.check_agent_loop(config)) == []
    agent.default_agent_loop = "mine"
    [warning] = warnings(algorithm.check_agent_loop(config))
    assert f"algorithm.adv_estimator={estimator} ends the run in the first step" in warning
    config.algorithm.adv_estimator = "grpo"
    assert list(algorithm.check_agent_loop(config)) == []


@pytest.mark.parametrize("estimator", sorted(algorithm.GROUP_ESTIMATORS))
def test_groups_of_one_are_refused(config, estimator):
    config.algorithm.adv_estimator = estimator
    assert failed(algorithm.check_advantages(config)) == []
    config.actor_rollout_ref.rollout.n = 1
    [problem] = failed(algorithm.check_advantages(config))
    assert problem.startswith(f"algorithm.adv_estimator={estimator} compares the responses to a prompt, and")


def test_every_estimator_of_verl_is_known_to_be_one_of_groups_or_not(run_forked):
    """A new one in verl must be looked at."""
    code = "from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY as r; print('\\n' + ' '.join(map(str, r)))"
    names = set(run_forked(code).stdout.splitlines()[-1].split())
    single = {"gae", "reinforce_plus_plus", "remax", "gpg"}
    assert {name.rpartition(".")[2].lower() for name in names} == algorithm.GROUP_ESTIMATORS | single


def test_a_critic_that_is_needed_or_useless(config):
    config.algorithm.adv_estimator = "gae"
    [problem] = failed(algorithm.check_advantages(config))
    assert "needs a critic, and critic.enable=false (as in our experiments) leaves it out" in problem
    config.critic.enable = None
    [warning] = warnings(algorithm.check_advantages(config))
    assert "trains a critic, a second model: ~/models/deepseek-llm-7b-chat" in warning
    config.algorithm.adv_estimator, config.critic.enable = "grpo", True
    [warning] = warnings(algorithm.check_advantages(config))
    assert "critic.enable=true, but algorithm.adv_estimator=grpo uses no values" in warning


def test_a_warm_up_of_a_critic_that_is_not_there(config):
    config.trainer.critic_warmup = 20
    [problem] = failed(algorithm.check_advantages(config))
    assert "trainer.critic_warmup=20 without a critic: nothing would be trained" in problem


def test_a_kl_that_counts_twice_or_not_at_all(config):
    config.actor_rollout_ref.actor.use_kl_loss = True
    assert warnings(algorithm.check_reference(config)) == []
    config.actor_rollout_ref.actor.kl_loss_coef = 0
    [warning] = warnings(algorithm.check_reference(config))
    assert "a reference model is loaded and run in each step only for a metric" in warning
    config.algorithm.use_kl_in_reward = True
    [warning] = warnings(algorithm.check_reference(config))
    assert "subtracted from the reward and added to the loss" in warning


def test_a_reference_without_the_adapter(config):
    config.actor_rollout_ref.actor.use_kl_loss = True
    config.actor_rollout_ref.model.lora_adapter_path = "adapters/sft"
    [warning] = warnings(algorithm.check_reference(config))
    assert "the reference is the base model without the adapter" in warning


def test_dynamic_sampling_that_would_not_take_place(gpu):
    gpu.algorithm.filter_groups.enable = True
    assert failed(algorithm.check_filter_groups(gpu)) == []
    gpu.trainer.use_v1 = False
    [problem] = failed(algorithm.check_filter_groups(gpu))
    assert "with trainer.use_v1=false: the older trainer ignores it and would train on every group" in problem


def test_dynamic_sampling_with_a_custom_sampler(config):
    """The CPU platform has one; verl's trainer hands such a class no metric."""
    config.algorithm.filter_groups.enable = True
    [problem] = failed(algorithm.check_filter_groups(config))
    assert "with trainer.v1.sampler.custom_sampler.name=FastPollingReplayBuffer: verl leaves the filtering" in problem


def test_the_metric_of_dynamic_sampling(gpu):
    groups, reward = gpu.algorithm.filter_groups, gpu.reward.custom_reward_function
    groups.enable, groups.metric = True, "seq_reward"
    [problem] = failed(algorithm.check_filter_groups(gpu))
    assert problem.startswith("algorithm.filter_groups.metric=seq_reward is not returned by the reward function")
    assert problem.endswith("Choose one of: reward, score, acc")
    groups.metric = "has_answer"
    with open_dict(reward):
        reward.reward_kwargs = {"diagnostics": True}
    assert failed(algorithm.check_filter_groups(gpu)) == []
    reward.path = "pkg://my.rewards"
    [warning] = warnings(algorithm.check_filter_groups(gpu))
    assert "must be a key of what the reward function returns" in warning
    groups.metric, groups.max_num_gen_batches = "reward", 10
    [warning] = warnings(algorithm.check_filter_groups(gpu))
    assert "max_num_gen_batches=10 is ignored" in warning


@pytest.mark.parametrize(("key", "value"), [("top_p", 0.95), ("top_k", 20)])
def test_warns_of_a_cut_distribution_in_training(config, key, value):
    config.actor_rollout_ref.rollout[key] = value
    [warning] = warnings(algorithm.check_sampling(config))
    assert f"training samples with {key}={value}, but the actor computes the probabilities of the full" in warning


def test_temperatures(config):
    config.actor_rollout_ref.rollout.temperature = 0
    [problem] = failed(algorithm.check_sampling(config))
    assert problem.startswith("actor_rollout_ref.rollout.temperature=0: the actor divides its logits by it")
    config.actor_rollout_ref.rollout.temperature = 1
    config.actor_rollout_ref.rollout.val_kwargs.temperature = 0
    [warning] = warnings(algorithm.check_sampling(config))
    assert "val_kwargs.n=4 with temperature=0: all responses to a prompt are the same" in warning
