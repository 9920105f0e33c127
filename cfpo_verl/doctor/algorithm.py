"""Checks of the algorithm: verl's own rules, the loss, the advantages, KL, sampling."""

from collections.abc import Iterable, Iterator

from omegaconf import DictConfig

from cfpo_verl import combinations
from cfpo_verl.doctor.finding import Finding, failed, ok, warning

# Estimators that compare the responses to one prompt. With one response a group, verl's grpo and rloo take its raw
# reward for its advantage, and ours give 0.
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
    from cfpo_verl.plugin import token_policy_loss

    try:
        # First, because an error in it should be reported as itself and not as one of the actor's.
        policy_loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss)
        omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
        validate_config(config, need_reference_policy(config), need_critic(config))
    except InstantiationException as error:
        yield failed(*_sentences(str(error.__cause__ or error)))
        return
    except ImportError as error:
        yield failed(f"verl cannot be imported: {error}", "Reinstall it: pip install 'verl>=0.9.1,<0.10'")
        return
    except Exception as error:  # verl checks with whatever its arithmetic raises
        yield failed(f"verl refuses the config ({type(error).__name__}): {error}", "See the keys with --cfg job")
        return
    if config.actor_rollout_ref.actor.ppo_mini_batch_size < 1:  # verl lets it through and then divides by it
        yield failed(
            "actor_rollout_ref.actor.ppo_mini_batch_size must be at least 1, the prompts of one optimiser step",
            "Set actor_rollout_ref.actor.ppo_mini_batch_size",
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
        yield failed(*_sentences(str(error)))


def _sentences(message: str) -> tuple[str, str]:
    """Split a message of ours into what was found and, from its last sentence, the way out."""
    found, stop, way_out = message.rpartition(". ")
    return (found, way_out) if stop else (message, "See the keys with --cfg job")


def check_combinations(config: DictConfig) -> Iterator[Finding]:
    """Check that the choices of the config groups go together: engine and strategy, loss and aggregation, and so on."""
    return _failures(combinations.problems(config))


def check_engine_packages(config: DictConfig) -> Iterator[Finding]:
    """Check that the packages of the model engine are installed."""
    return _failures(combinations.missing_packages(config))


def _failures(problems: Iterable[str]) -> Iterator[Finding]:
    """Cut sentences whose last one is the way out."""
    for problem in problems:
        found, _stop, way_out = problem.rpartition(". ")
        yield failed(found, way_out)


def check_trainer_mode(config: DictConfig) -> Iterator[Finding]:
    """Check what verl's trainers assert about their mode once Ray has started."""
    rollout, mode = config.actor_rollout_ref.rollout, config.trainer.v1.trainer_mode
    if not config.trainer.use_v1:
        return
    modes = ("sync", "colocate_async", "separate_async")
    if mode not in modes:
        yield failed(f"trainer.v1.trainer_mode={mode} is not a trainer of verl", f"Choose one of: {', '.join(modes)}")
    if mode != "separate_async":
        if not config.actor_rollout_ref.get("hybrid_engine", True):
            yield failed(
                f"actor_rollout_ref.hybrid_engine=false with trainer_mode={mode}: no engine would generate",
                "Set actor_rollout_ref.hybrid_engine=true, or trainer.v1.trainer_mode=separate_async",
            )
        return
    steps = config.trainer.v1.separate_async.parameter_sync_step
    prompts, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    if prompts != steps * mini:
        yield failed(
            f"separate_async needs data.train_batch_size ({prompts}) = trainer.v1.separate_async.parameter_sync_step "
            f"({steps}) x actor_rollout_ref.actor.ppo_mini_batch_size ({mini})",
            f"Set data.train_batch_size={steps * mini}",
        )
    if rollout.nnodes < 1:
        yield failed(
            f"separate_async generates on nodes of its own, and actor_rollout_ref.rollout.nnodes is {rollout.nnodes}",
            "Set actor_rollout_ref.rollout.nnodes and n_gpus_per_node",
        )
    if rollout.checkpoint_engine.backend == "naive":
        yield failed(
            "separate_async cannot send weights with actor_rollout_ref.rollout.checkpoint_engine.backend=naive",
            "Set the backend to nccl, nixl or mooncake",
        )


def check_loss_options(config: DictConfig) -> Iterator[Finding]:
    """Find options that a clipping-free loss does not read, and aggregations that do not fit it."""
    actor = config.actor_rollout_ref.actor
    loss_mode = actor.policy_loss.loss_mode
    if loss_mode not in our_losses():
        return
    changed = [key for key in ("clip_ratio", "clip_ratio_low", "clip_ratio_high") if actor[key] != 0.2]
    if changed:
        yield warning(
            f"{', '.join(changed)} has no effect on the loss {loss_mode}",
            "Set the options in actor_rollout_ref.actor.policy_loss instead",
        )
    if loss_mode == "cfpo_sequence" and actor.loss_agg_mode != "seq-mean-token-mean":
        yield warning(
            f"cfpo_sequence with loss_agg_mode={actor.loss_agg_mode}: only seq-mean-token-mean weighs every response "
            "the same, as a loss of whole responses is meant to",
            "Set actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        )


def check_updates(config: DictConfig) -> Iterator[Finding]:
    """Check that a clipping-free loss takes more than one optimiser step per rollout."""
    actor, bypass = config.actor_rollout_ref.actor, config.algorithm.rollout_correction.bypass_mode
    steps = -(-config.data.train_batch_size // actor.ppo_mini_batch_size) * actor.ppo_epochs
    if actor.policy_loss.loss_mode in our_losses() and steps == 1 and not bypass:
        yield warning(
            "one optimiser step per rollout: the importance ratio is always 1, so CFPO, GRPO and REINFORCE are the "
            "same",
            "Make actor_rollout_ref.actor.ppo_mini_batch_size smaller than data.train_batch_size",
        )
    else:
        yield ok(f"{steps} optimiser steps per rollout")


def check_rollout_correction(config: DictConfig) -> Iterator[Finding]:
    """Check what becomes of a loss of ours, and of a correction for the mismatch of the engines, in bypass mode."""
    correction, rollout = config.algorithm.rollout_correction, config.actor_rollout_ref.rollout
    loss_mode = config.actor_rollout_ref.actor.policy_loss.loss_mode
    asked = [key for key in ("rollout_is", "rollout_rs") if correction[key] is not None]
    if (asked or correction.bypass_mode) and not rollout.calculate_log_probs:
        settings = ", ".join([*asked, *(["bypass_mode"] if correction.bypass_mode else [])])
        yield failed(
            f"algorithm.rollout_correction: {settings} needs the rollout engine's log-probabilities, which it does not "
            "return",
            "Set actor_rollout_ref.rollout.calculate_log_probs=true",
        )
    if not correction.bypass_mode or loss_mode not in our_losses():
        return
    if asked:
        settings = ", ".join(f"{key}={correction[key]}" for key in asked)
        yield failed(
            f"algorithm.rollout_correction: with bypass_mode=true only verl's own loss bypass_mode applies {settings}; "
            "this loss would run without",
            "Set bypass_mode=false, or unset them (=null)",
        )
        return
    yield warning(
        f"bypass_mode: the loss {loss_mode} runs, with the ratio to the rollout engine's probabilities",
        "Where the engines disagree, policy_loss.tail=linear keeps single tokens from owning a mini-batch",
    )
    if not config.trainer.use_v1:
        # tests/test_stack.py sees that the workers of verl 0.9.1 keep the loss they were built with.
        yield warning(
            "bypass_mode with trainer.use_v1=false: that trainer writes loss_mode=bypass_mode into its own copy "
            "of the "
            f"config in each step; {loss_mode} stays in place only because the workers have copies of theirs",
            "Use verl's default trainer, trainer.use_v1=true, which changes nothing",
        )


def check_advantages(config: DictConfig) -> Iterator[Finding]:
    """Check that the estimator has what it needs: several responses to a prompt, or a critic."""
    estimator, responses = config.algorithm.adv_estimator, config.actor_rollout_ref.rollout.n
    if estimator in GROUP_ESTIMATORS and responses < 2:
        yield failed(
            f"algorithm.adv_estimator={estimator} compares the responses to a prompt, and "
            f"actor_rollout_ref.rollout.n is {responses}: advantages would be the raw reward, or 0",
            "Set actor_rollout_ref.rollout.n to 2 or more (8 and 16 are usual), or choose another estimator",
        )
    needs_critic = estimator == "gae"
    has_critic = needs_critic if config.critic.enable is None else bool(config.critic.enable)
    if needs_critic and not has_critic:
        yield failed("algorithm.adv_estimator=gae needs the critic, which critic.enable=false leaves out", "Unset it")
    if has_critic and not needs_critic:
        yield warning(
            f"critic.enable=true, but algorithm.adv_estimator={estimator} reads no values: a second model would be "
            "trained for nothing",
            "Set critic.enable=false",
        )
    if needs_critic:
        yield warning(
            "algorithm.adv_estimator=gae (verl's default) trains a critic, a second model of its own size: "
            f"{config.critic.model.path}",
            "For CFPO set algorithm.adv_estimator=cfpo_grpo",
        )
    if config.trainer.critic_warmup > 0 and not has_critic:
        yield failed(
            f"trainer.critic_warmup={config.trainer.critic_warmup} without a critic: the actor would not be updated "
            "before that step, and nothing else either",
            "Set trainer.critic_warmup=0",
        )


def check_reference(config: DictConfig) -> Iterator[Finding]:
    """Check that the KL to a reference is counted once, has an effect, and is to the model that is meant."""
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    in_reward = config.algorithm.use_kl_in_reward
    if in_reward and actor.use_kl_loss:
        yield warning(
            "algorithm.use_kl_in_reward and actor_rollout_ref.actor.use_kl_loss: the KL is subtracted from the reward "
            "and added to the loss as well",
            "Set one of them to false",
        )
    if actor.use_kl_loss and actor.kl_loss_coef == 0 and not in_reward:
        yield warning(
            "actor_rollout_ref.actor.kl_loss_coef=0: a reference model is loaded and run in each step for nothing but "
            "a metric",
            "Set actor_rollout_ref.actor.use_kl_loss=false",
        )
    if (in_reward or actor.use_kl_loss) and model.get("lora_adapter_path") is not None:
        yield warning(
            "with actor_rollout_ref.model.lora_adapter_path the reference is the base model without the adapter, not "
            "the policy that training starts from",
            "Merge the adapter into the model first if the starting policy is meant",
        )


def check_filter_groups(config: DictConfig) -> Iterator[Finding]:
    """Check that dynamic sampling really takes place where it is asked for."""
    groups = config.algorithm.filter_groups
    if not groups.enable:
        return
    sampler = config.trainer.v1.sampler.custom_sampler
    reward = config.reward.custom_reward_function
    if not config.trainer.use_v1:
        yield failed(
            "algorithm.filter_groups.enable=true has no effect with trainer.use_v1=false: no group would be left out",
            "Set trainer.use_v1=true",
        )
    elif sampler.path and sampler.name:
        # verl's trainer hands a custom sampler neither the metric nor the batch sizes.
        yield failed(
            f"algorithm.filter_groups.enable=true has no effect with trainer.v1.sampler.custom_sampler={sampler.name}: "
            "verl leaves filtering to that class, and no group would be left out",
            "Unset trainer.v1.sampler.custom_sampler.path and name (=null)",
        )
    if reward.path == "pkg://cfpo_verl.rewards":
        diagnostics = ("has_answer", "fast_path", "timed_out", "verify_seconds")
        known = ["reward", "score", "acc"]
        if (reward.get("reward_kwargs") or {}).get("diagnostics"):
            known += diagnostics
        if groups.metric not in known:
            yield failed(
                f"algorithm.filter_groups.metric={groups.metric} is not reported by the reward: verl stops when the "
                "first group is finished",
                f"Choose one of: {', '.join(known)}",
            )
    elif groups.metric != "reward":
        yield warning(
            f"algorithm.filter_groups.metric={groups.metric} must be a key of what the reward function returns, or "
            "verl "
            "stops when the first group is finished",
            "algorithm.filter_groups.metric=reward always works",
        )
    if groups.max_num_gen_batches > 0:
        yield warning(
            f"algorithm.filter_groups.max_num_gen_batches={groups.max_num_gen_batches} is ignored by verl's default "
            "trainer: generation goes on until the batch is full",
            "Bound what is generated at once with algorithm.filter_groups.max_inflight_gen_batches",
        )


def check_sampling(config: DictConfig) -> Iterator[Finding]:
    """Check that responses are sampled from the distribution whose probabilities the actor computes."""
    rollout, validation = config.actor_rollout_ref.rollout, config.actor_rollout_ref.rollout.val_kwargs
    if rollout.temperature <= 0:
        yield failed(
            f"actor_rollout_ref.rollout.temperature={rollout.temperature}: the actor divides its logits by it, and "
            "greedy responses to one prompt are all the same",
            "Set actor_rollout_ref.rollout.temperature=1",
        )
    cut = [
        f"{key}={rollout[key]}"
        for key, whole in (("top_p", (1,)), ("top_k", (-1, 0)))
        if rollout[key] is not None and rollout[key] not in whole
    ]
    if cut:
        yield warning(
            f"actor_rollout_ref.rollout: training samples with {', '.join(cut)}, and the actor computes the "
            "probabilities of the whole distribution: every ratio to the rollout is off",
            "Set top_p=1 and top_k=-1 for training; val_kwargs has its own",
        )
    if validation.n > 1 and validation.temperature == 0:
        yield warning(
            f"actor_rollout_ref.rollout.val_kwargs.n={validation.n} with temperature=0: all responses to a prompt are "
            "the same, at that many times the cost",
            "Set val_kwargs.n=1, or val_kwargs.temperature and do_sample=true",
        )
