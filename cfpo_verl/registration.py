"""Our losses and advantages in verl's registries. Importing this module adds them.

A plugin with a loss or an estimator of its own imports from here what it needs; docs/extending.md has an example.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import (
    ADV_ESTIMATOR_REGISTRY,
    POLICY_LOSS_REGISTRY,
    agg_loss,
    register_adv_est,
    register_policy_loss,
)
from verl.workers.config import ActorConfig

from cfpo_verl import __version__
from cfpo_verl.advantages import (
    check_one_output_each,
    check_rewards,
    dr_grpo_advantages,
    grpo_advantages,
    has_response,
    number_groups,
    rloo_advantages,
    spread,
)
from cfpo_verl.compat import check_verl_version
from cfpo_verl.config import LOSS_CONFIGS, TokenLossConfig, check_aggregation
from cfpo_verl.losses import NonFiniteError, TokenLoss, check_finite

__all__ = ["TokenLoss", "TokenLossConfig", "register_group_estimator", "register_token_loss", "token_policy_loss"]

VERL_VERSION = check_verl_version()

logger = logging.getLogger(__name__)

# Micro-batches that this process has left out, by name of the loss.
_left_out: Counter[str] = Counter()


def token_policy_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Adapt the token loss that `config.policy_loss` describes to verl: weigh, aggregate, check, report.

    verl adds reference KL and entropy outside this function.

    Args:
        old_log_prob: Log-probabilities under the policy that verl calls old, in nats. [B, T].
        log_prob: Log-probabilities under the current policy, in nats. [B, T].
        advantages: In reward units. [B, T].
        response_mask: 1 for response tokens, 0 for padding. [B, T].
        loss_agg_mode: One of verl's aggregation modes.
        config: The actor's config; its policy_loss is a `TokenLossConfig`.
        rollout_is_weights: Importance weights against an engine mismatch, or None. [B, T].
            They multiply the whole token loss, as in verl's own losses.

    Returns:
        The scalar loss, and the metrics of `TokenLossConfig.metrics`, which verl averages over micro-batches and ranks.

    Raises:
        TypeError: If policy_loss is no `TokenLossConfig`, because only its loss_mode was set.
        NonFiniteError: If a response token has a NaN or an infinity.
        ValueError: If loss_agg_mode has no scale, so that the loss would depend on how a mini-batch is cut, or if the
            token loss returns other shapes than a `TokenLoss` has.
    """
    policy_loss = getattr(config, "policy_loss", None)
    if config is None or not isinstance(policy_loss, TokenLossConfig):
        name = getattr(policy_loss, "loss_mode", "cfpo")
        raise TypeError(
            f"the loss {name} needs its own options in policy_loss, got {type(policy_loss).__name__}. Select the "
            f"config group policy_loss={name} (with verl's own entry point: +policy_loss={name}) instead of setting "
            "loss_mode alone"
        )
    check_aggregation(config)
    mask = response_mask.bool()
    token_loss = policy_loss.score(log_prob, old_log_prob, advantages, mask, **policy_loss.options(config))
    _check_shapes(policy_loss.loss_mode, token_loss, mask)
    values, checked = token_loss.values, [token_loss.statistics, torch.count_nonzero(mask).view(1)]
    if rollout_is_weights is not None:
        weights = rollout_is_weights.to(values.dtype).masked_fill(~mask, 0)
        values = values * weights
        checked.append(weights.sum().view(1))
    loss = agg_loss(loss_mat=values, loss_mask=mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)
    checked.append(loss.detach().view(1))
    sums = torch.cat(checked).tolist()  # the only synchronisation with the host
    names = token_loss.names
    skipped = False
    if not all(map(math.isfinite, sums)):
        tensors = {"log_prob": log_prob, "old_log_prob": old_log_prob, "advantages": advantages}
        if rollout_is_weights is not None:
            tensors["rollout_is_weights"] = rollout_is_weights
        try:
            check_finite(mask, **tensors)
        except NonFiniteError as error:
            _leave_out(config, error, has_finite_model=bool(log_prob[mask].isfinite().all()))
            skipped, loss, sums = True, _zero_loss(log_prob, loss), [0.0] * len(sums)
    metrics = policy_loss.metrics(dict(zip(names, sums, strict=False)), tokens=sums[len(names)])
    if policy_loss.non_finite == "skip":
        metrics["cfpo/skipped_frac"] = float(skipped)
    return loss, metrics


def _leave_out(actor: ActorConfig, error: NonFiniteError, has_finite_model: bool) -> None:
    """Count a micro-batch that is left out of the loss.

    Args:
        actor: The config of the actor.
        error: What is not finite, and where.
        has_finite_model: Whether the log-probabilities of the current model are finite. If not, its gradient is NaN
            although the loss is 0. FSDP's engine then takes no step, but Megatron's takes it.

    Raises:
        NonFiniteError: If the micro-batch must not be left out, or too many were in this process.
    """
    policy_loss = actor.policy_loss
    if policy_loss.non_finite != "skip":
        raise error
    if actor.strategy == "megatron" and not has_finite_model:
        raise NonFiniteError(
            f"{error}. policy_loss.non_finite=skip does not cover log_prob with Megatron, whose optimiser would write "
            "the NaN gradients to the weights"
        ) from None
    _left_out[policy_loss.loss_mode] += 1
    count, limit = _left_out[policy_loss.loss_mode], policy_loss.max_skipped
    if count > limit:
        raise NonFiniteError(
            f"{error}; this process has left out {limit} micro-batches before (policy_loss.max_skipped)"
        ) from None
    logger.warning("micro-batch left out of the loss, number %d of at most %d: %s", count, limit, error)


def _zero_loss(log_prob: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """Return a loss of 0 whose gradient is 0: FSDP waits for a backward pass of every rank."""
    return log_prob.masked_fill(torch.ones_like(log_prob, dtype=torch.bool), 0).sum(dtype=loss.dtype)


def _check_shapes(name: str, token_loss: TokenLoss, mask: torch.Tensor) -> None:
    """Refuse what verl would average to something else than is meant, or report under a wrong name."""
    values, statistics, names = token_loss
    if values.shape != mask.shape:
        raise ValueError(
            f"the loss {name} returned values of shape {tuple(values.shape)}, but verl needs one for each token, "
            f"{tuple(mask.shape)}. Return them before averaging: actor.loss_agg_mode decides how they are averaged"
        )
    if statistics.shape != (len(names),):
        raise ValueError(
            f"the loss {name} returned statistics of shape {tuple(statistics.shape)} for {len(names)} names. Return "
            "one sum over response tokens for each of: " + ", ".join(names)
        )


def register_token_loss(config: type[TokenLossConfig]) -> None:
    """Add a token loss to verl's registry.

    Args:
        config: The dataclass of its options.

    Raises:
        RuntimeError: If verl has a loss of that name. Its own decorator would replace it silently.
    """
    if POLICY_LOSS_REGISTRY.get(config.NAME, token_policy_loss) is not token_policy_loss:
        raise RuntimeError(f"verl {VERL_VERSION} already has a policy loss called {config.NAME}. Choose another name")
    register_policy_loss(config.NAME)(token_policy_loss)


def register_group_estimator(name: str, estimate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """Add an advantage estimator that compares the responses to a prompt to verl's registry.

    Args:
        name: For algorithm.adv_estimator=NAME.
        estimate: Takes rewards `[B]`, one for each response, and group numbers `[B]` (0 to P-1 for P prompts, in any
            order), and returns advantages `[B]`. `cfpo_verl.advantages` has examples.

    Raises:
        RuntimeError: If verl or another plugin has an estimator of that name.
    """
    if name in ADV_ESTIMATOR_REGISTRY:
        raise RuntimeError(f"verl {VERL_VERSION} already has an advantage estimator called {name}. Choose another name")
    register_adv_est(name)(_group_estimator(estimate))


def _group_estimator(estimate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """Adapt an estimator to verl: from token rewards `[B, T]` and uids to token advantages `[B, T]`.

    verl hands an estimator of a plugin none of its options but `config`, the node algorithm of the whole config.

    Args:
        estimate: Takes rewards `[B]` and group numbers `[B]`, returns advantages `[B]`.
    """

    def estimator(
        token_level_rewards: torch.Tensor,
        response_mask: torch.Tensor,
        index: np.ndarray,
        config: Any = None,
        **_others: Any,  # what verl passes to some estimators, and may pass to more
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = estimate
        if estimate is grpo_advantages and config is not None and not config.get("norm_adv_by_std_in_grpo", True):
            chosen = dr_grpo_advantages
        with torch.no_grad():
            responds = has_response(response_mask)
            rewards = token_level_rewards.sum(dim=-1).where(responds, 0)
            check_rewards(rewards, index)
            rows = responds.nonzero().flatten()
            labels = [index[row] for row in rows.tolist()]
            check_one_output_each(labels, _keys_of_outputs(config))
            groups = number_groups(labels).to(rewards.device)
            advantages = torch.zeros_like(rewards).index_copy_(0, rows, chosen(rewards[rows], groups))
            advantages = spread(advantages, response_mask)
        return advantages, advantages

    return estimator


def _keys_of_outputs(config: Any) -> Iterable[str]:
    """Return verl's keys of the responses that are being trained on, none outside its V1 trainer.

    verl hands an estimator only the uid of each row. The keys, which also tell conversations apart, are in
    TransferQueue, in an order of their own.

    Args:
        config: The node `algorithm` of the whole config.
    """
    # The dots go up from the node.
    if not isinstance(config, DictConfig) or not OmegaConf.select(config, "..trainer.use_v1"):
        return ()
    import transfer_queue

    return transfer_queue.kv_list("train").get("train", {})


def _register_ours() -> None:
    for config in LOSS_CONFIGS:
        # If verl has one of that name, it stays as it is, and TokenLossConfig refuses to be built for it.
        if config.NAME not in POLICY_LOSS_REGISTRY:
            register_token_loss(config)
    estimators = {"cfpo_grpo": grpo_advantages, "cfpo_dr_grpo": dr_grpo_advantages, "cfpo_rloo": rloo_advantages}
    for name, estimate in estimators.items():
        if name not in ADV_ESTIMATOR_REGISTRY:
            register_group_estimator(name, estimate)


_register_ours()

logger.info("cfpo_verl %s registered with verl %s", __version__, VERL_VERSION)
