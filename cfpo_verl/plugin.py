"""Entry point of the group `verl.plugins`: importing this module adds our losses to verl's registry.

verl imports it in every process that imports verl, Ray workers included, and never calls
anything in it. Importing it twice, or through VERL_USE_EXTERNAL_MODULES as well, changes nothing.
"""

import logging
from typing import Any

import torch

from cfpo_verl import __version__, cpu
from cfpo_verl.compat import check_verl_version

VERL_VERSION = check_verl_version()

# The CPU platform must be in place before anything below asks verl for its device.
if cpu.is_selected():
    cpu.activate_in_verl()

from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss  # noqa: E402
from verl.workers.config import ActorConfig  # noqa: E402

from cfpo_verl.losses import cfpo_penalty, cfpo_token_loss, importance_ratio  # noqa: E402

logger = logging.getLogger(__name__)


@register_policy_loss("cfpo")
def cfpo_policy_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Adapt `cfpo_token_loss` to verl: mask, weigh, aggregate, report.

    Reference KL and entropy are added by verl, outside this function.

    Args:
        old_log_prob: Log-probabilities under the policy that verl calls old, in nats. [B, T].
        log_prob: Log-probabilities under the current policy, in nats. [B, T].
        advantages: In reward units. [B, T].
        response_mask: 1 for response tokens, 0 for padding. [B, T].
        loss_agg_mode: One of verl's aggregation modes.
        config: The actor's config; its policy_loss is a `CfpoLossConfig`.
        rollout_is_weights: Importance weights against an engine mismatch, or None. [B, T].
            They multiply the whole token loss, surrogate and penalty, as in verl's own losses.

    Returns:
        The scalar loss, and metrics that verl averages over micro-batches and ranks:
        actor/pg_clipfrac, actor/ppo_kl, cfpo/ratio_deviation, cfpo/penalty.

    Raises:
        TypeError: If policy_loss has no epsilon, because only its loss_mode was set.
    """
    epsilon = getattr(getattr(config, "policy_loss", None), "epsilon", None)
    if config is None or epsilon is None:
        raise TypeError(
            "loss_mode=cfpo needs a policy_loss of type cfpo_verl.config.CfpoLossConfig, got "
            f"{type(getattr(config, 'policy_loss', None)).__name__}. Select the config group "
            "policy_loss=cfpo (with verl's own entry point: +policy_loss=cfpo) instead of setting loss_mode alone"
        )
    mask = response_mask.bool()
    # Padding may hold anything, NaN included: replaced here, it reaches neither value nor gradient.
    log_ratio = torch.where(mask, log_prob.float() - old_log_prob.float(), 0.0)
    advantages = torch.where(mask, advantages.float(), 0.0).detach()

    token_loss = cfpo_token_loss(log_ratio, advantages, epsilon)
    if rollout_is_weights is not None:
        token_loss = token_loss * torch.where(mask, rollout_is_weights.float(), 0.0)
    loss = agg_loss(loss_mat=token_loss, loss_mask=mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)

    with torch.no_grad():
        # Padding has log-ratio 0 and advantage 0, so it adds nothing to any of these sums.
        ratio = importance_ratio(log_ratio)
        # Past the optimum at 1 + sign(A) * epsilon: the tokens whose gradient PPO would cut off.
        past_optimum = (ratio - 1) * advantages.sign() > epsilon
        statistics = {
            "actor/pg_clipfrac": past_optimum.float(),
            "actor/ppo_kl": -log_ratio,
            "cfpo/ratio_deviation": (ratio - 1).abs(),
            "cfpo/penalty": cfpo_penalty(ratio, advantages, epsilon),
        }
        # One tolist() is one host synchronisation, whatever the number of metrics.
        means = torch.stack([statistic.sum() for statistic in statistics.values()]) / mask.sum().clamp(min=1)
        metrics = dict(zip(statistics, means.tolist(), strict=True))
    return loss, metrics


logger.info("cfpo_verl %s registered with verl %s", __version__, VERL_VERSION)
