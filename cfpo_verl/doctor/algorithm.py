"""Checks of the algorithm: verl's own rules, the loss, the advantages, KL, sampling."""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from cfpo_verl.compat import SUPPORTED_VERL
from cfpo_verl.demands import generates_separately, generation_nodes, has_critic
from cfpo_verl.doctor.finding import Finding, failed, failed_with, ok, warning

# Losses of whole responses, which only one aggregation weights equally.
_RESPONSE_LOSSES = frozenset(("cfpo_sequence", "gspo"))

# verl's losses that average over responses in their own way, whatever actor.loss_agg_mode says.
_OWN_AGGREGATION = frozenset(("geo_mean", "sapo"))

# verl's trainers that train on responses of older weights.
_STALE_MODES = frozenset(("colocate_async", "separate_async"))

# Estimators that compare the responses to one prompt. For a single response, verl's grpo and rloo use its raw reward as
# its advantage, and ours return 0.
GROUP_ESTIMATORS = frozenset(
    (
        "cfpo_grpo",
        "cfpo_dr_grpo",
        "cfpo_rloo",
        "grpo",
        "grpo_vectorized",
        "grpo_passk",
        "rloo",
        "rloo_vectorized",
        "opo",
        "gdpo",
        "reinforce_plus_plus_baseline",
        "optimal_token_baseline",
        "tir_optimal_token_baseline",
    )
)


def our_losses() -> set[str]:
    """Return the names of our losses."""
    from cfpo_verl.config import LOSS_CONFIGS

    return {loss.NAME for loss in LOSS_CONFIGS}


def check_verl_config(config: DictConfig) -> Iterator[Finding]:
    """Build verl's typed config, our loss options included, and run verl's own validation."""
    from hydra.errors import InstantiationException
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    from cfpo_verl.config import TokenLossConfig, check_aggregation
    from cfpo_verl.registration import token_policy_loss

    try:
        # First, so that an error in it is reported as its own and not as the actor's.
        policy_loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss)
        omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
        validate_config(config, need_reference_policy(config), need_critic(config))
    except InstantiationException as error:
        yield failed_with(str(error.__cause__ or error))
        return
    except ImportError as error:
        yield failed(f"verl cannot be imported: {error}", f"Reinstall it: pip install 'verl{SUPPORTED_VERL}'")
        return
    except Exception as error:  # verl validates by assertions and arithmetic
        yield failed(f"verl refuses the config ({type(error).__name__}): {error}", "See the keys with --cfg job")
        return
    if config.actor_rollout_ref.actor.ppo_mini_batch_size < 1:  # verl accepts it and then divides by it
        yield failed(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={config.actor_rollout_ref.actor.ppo_mini_batch_size} must be "
            "at least 1",
            "Set it to the number of prompts of one optimiser step",
        )
        return
    adapted = POLICY_LOSS_REGISTRY.get(policy_loss.loss_mode) is token_policy_loss
    if adapted and not isinstance(policy_loss, TokenLossConfig):
        yield failed(
            f"policy_loss.loss_mode={policy_loss.loss_mode} does not go with the options of "
            f"{type(policy_loss).__name__}",
            f"Choose with policy_loss={policy_loss.loss_mode}, which sets both",
        )
        return
    try:
        check_aggregation(config.actor_rollout_ref.actor)
    except ValueError as error:
        yield failed_with(str(error))


def check_trainer_mode(config: DictConfig) -> Iterator[Finding]:
    """Check what verl's trainers assert about their mode after Ray has started."""
    rollout, mode = config.actor_rollout_ref.rollout, config.trainer.v1.trainer_mode
    if not config.trainer.use_v1:
        return
    modes = ("sync", "colocate_async", "separate_async")
    if mode not in modes:
        yield failed(f"trainer.v1.trainer_mode={mode} is not a trainer of verl", f"Choose one of: {', '.join(modes)}")
    sampler = config.trainer.v1.sampler.custom_sampler
    if mode == "colocate_async" and sampler.name == "FastPollingReplayBuffer":  # a CPU is refused separate_async
        yield failed(
            f"trainer.v1.trainer_mode={mode} with trainer.v1.sampler.custom_sampler.name={sampler.name}: that buffer, "
            "which platform=cpu sets, is one of the synchronous trainer and does not know the age of a response",
            "Choose updates=colocate_async, which sets it back, or set custom_sampler.path=null and name=null",
        )
    if not generates_separately(config):
        if not config.actor_rollout_ref.get("hybrid_engine", True):
            yield failed(
                f"actor_rollout_ref.hybrid_engine=false with trainer.v1.trainer_mode={mode}: no engine would generate",
                "Set actor_rollout_ref.hybrid_engine=true, or trainer.v1.trainer_mode=separate_async",
            )
        return
    steps = config.trainer.v1.separate_async.parameter_sync_step
    prompts, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    if prompts != steps * mini:
        yield failed(
            f"trainer.v1.trainer_mode=separate_async takes {steps} mini-batches (parameter_sync_step) of {mini} "
            "prompts (actor.ppo_mini_batch_size) between two weight updates, which is not "
            f"data.train_batch_size={prompts}",
            f"Set data.train_batch_size={steps * mini}, or updates_per_rollout, from which both others follow",
        )
    if generation_nodes(config).gpus < 1:
        yield failed(
            "trainer.v1.trainer_mode=separate_async generates on nodes of its own, and "
            f"actor_rollout_ref.rollout.nnodes={rollout.nnodes} with n_gpus_per_node={rollout.n_gpus_per_node} is none",
            "Choose updates=one_step_off or updates=fully_async, which set them",
        )
    if rollout.checkpoint_engine.backend == "naive":
        yield failed(
            "trainer.v1.trainer_mode=separate_async with actor_rollout_ref.rollout.checkpoint_engine.backend=naive: "
            "new weights would never reach the nodes that generate",
            "Set it to nccl (verl also has nixl and mooncake)",
        )


def check_loss_options(config: DictConfig) -> Iterator[Finding]:
    """Find options that a clipping-free loss does not read, and aggregations that a loss ignores or that do not fit."""
    actor = config.actor_rollout_ref.actor
    loss_mode = actor.policy_loss.loss_mode
    by_response = actor.loss_agg_mode == "seq-mean-token-mean"
    if loss_mode in _OWN_AGGREGATION and not by_response:
        yield warning(
            f"verl's loss {loss_mode} ignores actor_rollout_ref.actor.loss_agg_mode={actor.loss_agg_mode} and averages "
            "over responses; only the reference KL and the entropy follow the setting",
            "Set actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean, also for the losses to compare it with",
        )
    if loss_mode in _RESPONSE_LOSSES and not by_response:
        yield warning(
            f"{loss_mode} with actor_rollout_ref.actor.loss_agg_mode={actor.loss_agg_mode}: only seq-mean-token-mean "
            "weights every response equally, as a loss of whole responses should",
            "Set actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        )
    if loss_mode not in our_losses():
        return
    changed = [key for key in ("clip_ratio", "clip_ratio_low", "clip_ratio_high") if actor[key] != 0.2]
    if changed:
        yield warning(
            f"{', '.join(changed)} has no effect on the loss {loss_mode}",
            "Set the options of the loss, in actor_rollout_ref.actor.policy_loss",
        )


def check_updates(config: DictConfig) -> Iterator[Finding]:
    """Check that a clipping-free loss takes more than one optimiser step per rollout."""
    actor, bypass = config.actor_rollout_ref.actor, config.algorithm.rollout_correction.bypass_mode
    steps = -(-config.data.train_batch_size // actor.ppo_mini_batch_size) * actor.ppo_epochs
    if actor.policy_loss.loss_mode in our_losses() and steps == 1 and not bypass:
        yield warning(
            "one optimiser step per rollout: the importance ratio is 1, up to the numerical difference of two passes, "
            "so CFPO, GRPO and REINFORCE do not differ",
            "Make actor_rollout_ref.actor.ppo_mini_batch_size smaller than data.train_batch_size",
        )
    else:
        yield ok(f"{steps} optimiser steps per rollout")


def check_rollout_correction(config: DictConfig) -> Iterator[Finding]:
    """Check which policy the loss takes as the old one, and that corrections for another one are applied."""
    correction, rollout = config.algorithm.rollout_correction, config.actor_rollout_ref.rollout
    loss_mode = config.actor_rollout_ref.actor.policy_loss.loss_mode
    mode = config.trainer.v1.trainer_mode
    is_stale = config.trainer.use_v1 and mode in _STALE_MODES
    asked = [key for key in ("rollout_is", "rollout_rs") if correction[key] is not None]
    if (asked or correction.bypass_mode) and not rollout.calculate_log_probs:
        settings = ", ".join([*asked, *(["bypass_mode"] if correction.bypass_mode else [])])
        yield failed(
            f"algorithm.rollout_correction: {settings} needs the log-probabilities of the rollout engine, which are "
            "not returned",
            "Set actor_rollout_ref.rollout.calculate_log_probs=true",
        )
        return
    if is_stale and not asked and not correction.bypass_mode:
        yield warning(
            f"trainer.v1.trainer_mode={mode} trains on responses of older weights, and nothing corrects for them: verl "
            "computes the old probabilities with the trainer's weights, so neither ratio nor trust region is that of "
            "the policy that sampled",
            "Set algorithm.rollout_correction.bypass_mode=true, as the files of the group updates do, or "
            "rollout_is=token",
        )
    if not correction.bypass_mode:
        return
    if asked and loss_mode != "bypass_mode":
        settings = ", ".join(f"{key}={correction[key]}" for key in asked)
        yield failed(
            f"algorithm.rollout_correction: with bypass_mode=true only verl's own loss bypass_mode applies {settings}, "
            f"and {loss_mode} would run without it",
            f"Set bypass_mode=false, or {' and '.join(f'{key}=null' for key in asked)}",
        )
        return
    is_ours = loss_mode in our_losses()
    if is_stale:
        yield ok(f"bypass_mode: {loss_mode} uses the ratio to the policy that sampled each token")
    elif is_ours:
        yield warning(
            f"algorithm.rollout_correction.bypass_mode=true: {loss_mode} uses the ratio to the rollout engine's "
            "probabilities, which differ from the trainer's for the same weights",
            "Where the engines disagree, policy_loss.tail=linear keeps single tokens from dominating a mini-batch",
        )
    if is_ours and not config.trainer.use_v1:
        # tests/test_stack.py sees that the workers of verl 0.9.1 keep the loss they were built with.
        yield warning(
            "bypass_mode with trainer.use_v1=false: that trainer writes loss_mode=bypass_mode into its copy of the "
            f"config in each step, and {loss_mode} is used only because the workers have copies of their own",
            "Set trainer.use_v1=true, verl's default trainer, which leaves the loss alone",
        )


def check_advantages(config: DictConfig) -> Iterator[Finding]:
    """Check that the estimator has what it needs: several responses to a prompt, or a critic."""
    estimator, responses = config.algorithm.adv_estimator, config.actor_rollout_ref.rollout.n
    if estimator in GROUP_ESTIMATORS and responses < 2:
        yield failed(
            f"algorithm.adv_estimator={estimator} compares the responses to a prompt, and "
            f"actor_rollout_ref.rollout.n={responses}: advantages would be the raw reward, or 0",
            "Set actor_rollout_ref.rollout.n to 2 or more (8 and 16 are usual), or choose another estimator",
        )
    if estimator == "gae":
        if has_critic(config):
            yield warning(
                "algorithm.adv_estimator=gae (verl's default) trains a critic, a second model: "
                f"{config.critic.model.path}",
                "For CFPO set algorithm.adv_estimator=cfpo_grpo",
            )
        else:
            yield failed(
                "algorithm.adv_estimator=gae needs a critic, and critic.enable=false (as in our experiments) leaves "
                "it out",
                "Choose an estimator without one, such as algorithm.adv_estimator=cfpo_grpo, or set "
                "critic.enable=true and critic.model.path=MODEL",
            )
    elif has_critic(config):
        yield warning(
            f"critic.enable=true, but algorithm.adv_estimator={estimator} uses no values: a second model would be "
            "trained for nothing",
            "Set critic.enable=false",
        )
    if config.trainer.critic_warmup > 0 and not has_critic(config):
        yield failed(
            f"trainer.critic_warmup={config.trainer.critic_warmup} without a critic: nothing would be trained before "
            "that step",
            "Set trainer.critic_warmup=0",
        )


# verl's agent loops, which return one output for a conversation.
_SINGLE_OUTPUT_LOOPS = ("single_turn_agent", "tool_agent")


def check_agent_loop(config: DictConfig) -> Iterator[Finding]:
    """Say what an agent loop of the user's own must not return with our estimators."""
    agent, estimator = config.actor_rollout_ref.rollout.agent, config.algorithm.adv_estimator
    is_own = agent.default_agent_loop not in _SINGLE_OUTPUT_LOOPS or agent.get("agent_loop_config_path")
    if is_own and estimator.startswith("cfpo_"):
        yield warning(
            f"actor_rollout_ref.rollout.agent: {agent.default_agent_loop} may be an agent loop of your own. If it "
            f"returns several outputs for one conversation, algorithm.adv_estimator={estimator} ends the run in the "
            "first step, because verl tells only its own grpo which rows belong together",
            "Return one output, or set algorithm.adv_estimator=grpo, with which every policy_loss works",
        )


def check_reference(config: DictConfig) -> Iterator[Finding]:
    """Check that the KL to a reference is counted once, has an effect, and is to the intended model."""
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    in_reward = config.algorithm.use_kl_in_reward
    if in_reward and actor.use_kl_loss:
        yield warning(
            "algorithm.use_kl_in_reward and actor_rollout_ref.actor.use_kl_loss are both true: the KL is subtracted "
            "from the reward and added to the loss",
            "Set one of them to false",
        )
    if actor.use_kl_loss and actor.kl_loss_coef == 0 and not in_reward:
        yield warning(
            "actor_rollout_ref.actor.kl_loss_coef=0: a reference model is loaded and run in each step only for a "
            "metric",
            "Set actor_rollout_ref.actor.use_kl_loss=false",
        )
    if (in_reward or actor.use_kl_loss) and model.get("lora_adapter_path") is not None:
        yield warning(
            f"actor_rollout_ref.model.lora_adapter_path={model.lora_adapter_path}: the reference is the base model "
            "without the adapter, not the policy that training starts from",
            "Merge the adapter into the model first if the starting policy should be the reference",
        )


def check_length_penalty(config: DictConfig) -> Iterator[Finding]:
    """Check that a penalty for length leaves a right answer worth more than a wrong one."""
    overlong = OmegaConf.select(config, "reward.reward_kwargs.overlong_buffer_cfg")
    if config.reward.reward_manager.name != "dapo" or not overlong or not overlong.enable:
        return
    if overlong.penalty_factor >= 1 and config.reward.custom_reward_function.path == "pkg://cfpo_verl.rewards":
        yield warning(
            f"reward.reward_kwargs.overlong_buffer_cfg.penalty_factor={overlong.penalty_factor}: our reward is 0 or 1, "
            "so a right answer at the length limit would be worth no more than a short wrong one. DAPO's penalty is at "
            "most half of the reward's range",
            "Set reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=0.5",
        )


def check_filter_groups(config: DictConfig) -> Iterator[Finding]:
    """Check that dynamic sampling takes effect."""
    groups = config.algorithm.filter_groups
    if not groups.enable:
        return
    sampler = config.trainer.v1.sampler.custom_sampler
    reward = config.reward.custom_reward_function
    if not config.trainer.use_v1:
        yield failed(
            "algorithm.filter_groups.enable=true with trainer.use_v1=false: the older trainer ignores it and would "
            "train on every group",
            "Set trainer.use_v1=true, or choose an algo without dynamic sampling",
        )
    elif sampler.path and sampler.name:
        # verl's trainer gives a custom sampler neither the metric nor the batch sizes.
        yield failed(
            f"algorithm.filter_groups.enable=true with trainer.v1.sampler.custom_sampler.name={sampler.name}: verl "
            "leaves the filtering to that class, which would keep every group",
            "Set trainer.v1.sampler.custom_sampler.path=null and name=null",
        )
    # check_advantages refuses a single response where the estimator compares groups too.
    if config.actor_rollout_ref.rollout.n < 2 and config.algorithm.adv_estimator not in GROUP_ESTIMATORS:
        yield failed(
            "algorithm.filter_groups.enable=true with "
            f"actor_rollout_ref.rollout.n={config.actor_rollout_ref.rollout.n}: a single response has nothing to be "
            "compared with, and no group would be left out",
            "Set actor_rollout_ref.rollout.n to 2 or more",
        )
    if reward.path == "pkg://cfpo_verl.rewards":
        diagnostics = ("has_answer", "fast_path", "timed_out", "verify_seconds")
        known = ["reward", "score", "acc"]
        if (reward.get("reward_kwargs") or {}).get("diagnostics"):
            known += diagnostics
        if groups.metric not in known:
            yield failed(
                f"algorithm.filter_groups.metric={groups.metric} is not returned by the reward function: verl stops "
                "when the first group is finished",
                f"Choose one of: {', '.join(known)}",
            )
    elif groups.metric != "reward":
        yield warning(
            f"algorithm.filter_groups.metric={groups.metric} must be a key of what the reward function returns, or "
            "verl stops when the first group is finished",
            "algorithm.filter_groups.metric=reward always works",
        )
    if groups.max_num_gen_batches > 0:
        yield warning(
            f"algorithm.filter_groups.max_num_gen_batches={groups.max_num_gen_batches} is ignored by verl's default "
            "trainer: generation continues until the batch is full",
            "Limit what is generated at once with algorithm.filter_groups.max_inflight_gen_batches",
        )


def check_sampling(config: DictConfig) -> Iterator[Finding]:
    """Check that responses are sampled from the distribution whose probabilities the actor computes."""
    rollout, validation = config.actor_rollout_ref.rollout, config.actor_rollout_ref.rollout.val_kwargs
    if rollout.temperature <= 0:
        yield failed(
            f"actor_rollout_ref.rollout.temperature={rollout.temperature}: the actor divides its logits by it, and "
            "greedy responses to a prompt are all the same",
            "Set actor_rollout_ref.rollout.temperature=1",
        )
    cut = [
        f"{key}={rollout[key]}"
        for key, whole in (("top_p", (1,)), ("top_k", (-1, 0)))
        if rollout[key] is not None and rollout[key] not in whole
    ]
    if cut:
        yield warning(
            f"actor_rollout_ref.rollout: training samples with {', '.join(cut)}, but the actor computes the "
            "probabilities of the full distribution: every ratio to the rollout is wrong",
            "Set top_p=1 and top_k=-1 for training; val_kwargs has values of its own for validation",
        )
    if validation.n > 1 and validation.temperature == 0:
        yield warning(
            f"actor_rollout_ref.rollout.val_kwargs.n={validation.n} with temperature=0: all responses to a prompt are "
            "the same, at that many times the cost",
            "Set val_kwargs.n=1, or val_kwargs.temperature=1 and val_kwargs.do_sample=true",
        )
