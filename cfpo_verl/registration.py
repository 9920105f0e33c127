"""Entry point of the group `verl.plugins`: importing this module adds our losses and advantages to verl's registries.

verl imports it in every process that imports verl, Ray workers included, and never calls anything in it. Importing it
twice, or through VERL_USE_EXTERNAL_MODULES as well, changes nothing.

A plugin with a loss or an estimator of its own imports from here what it needs; docs/extending.md has an example.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

import cfpo_verl.resolvers  # noqa: F401 - Ray workers resolve our config files
from cfpo_verl import __version__, cpu, sockets
from cfpo_verl.compat import check_verl_version

__all__ = ["TokenLoss", "TokenLossConfig", "register_group_estimator", "register_token_loss", "token_policy_loss"]

VERL_VERSION = check_verl_version()

# The CPU platform must be in place before anything below asks verl for its device.
if cpu.is_selected():
    cpu.activate_in_verl()

from verl.trainer.ppo.core_algos import (  # noqa: E402
    ADV_ESTIMATOR_REGISTRY,
    POLICY_LOSS_REGISTRY,
    agg_loss,
    register_adv_est,
    register_policy_loss,
)
from verl.workers.config import ActorConfig  # noqa: E402

from cfpo_verl.advantages import (  # noqa: E402
    check_group_sizes,
    check_rewards,
    dr_grpo_advantages,
    grpo_advantages,
    number_groups,
    rloo_advantages,
    spread,
)
from cfpo_verl.config import LOSS_CONFIGS, TokenLossConfig, check_aggregation  # noqa: E402
from cfpo_verl.losses import TokenLoss, check_finite  # noqa: E402

logger = logging.getLogger(__name__)


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
    if not all(map(math.isfinite, sums)):
        tensors = {"log_prob": log_prob, "old_log_prob": old_log_prob, "advantages": advantages}
        if rollout_is_weights is not None:
            tensors["rollout_is_weights"] = rollout_is_weights
        check_finite(mask, **tensors)
    names = token_loss.names
    return loss, policy_loss.metrics(dict(zip(names, sums, strict=False)), tokens=sums[len(names)])


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
        with torch.no_grad():
            rewards = token_level_rewards.sum(dim=-1)
            check_rewards(rewards, index)
            groups = number_groups(index)
            if isinstance(config, DictConfig):
                # The dots go up from the node.
                responses_per_prompt = OmegaConf.select(config, "..actor_rollout_ref.rollout.n")
                if responses_per_prompt is not None:
                    check_group_sizes(groups, index, responses_per_prompt)
            chosen = estimate
            if estimate is grpo_advantages and config is not None and not config.get("norm_adv_by_std_in_grpo", True):
                chosen = dr_grpo_advantages
            advantages = spread(chosen(rewards, groups.to(rewards.device)), response_mask)
        return advantages, advantages

    return estimator


for _config in LOSS_CONFIGS:
    register_token_loss(_config)

for _name, _estimate in {
    "cfpo_grpo": grpo_advantages,
    "cfpo_dr_grpo": dr_grpo_advantages,
    "cfpo_rloo": rloo_advantages,
}.items():
    register_group_estimator(_name, _estimate)

sockets.install_if_selected()

logger.info("cfpo_verl %s registered with verl %s", __version__, VERL_VERSION)
