"""Entry point of the group `verl.plugins`: importing this module adds our losses and advantages to verl's registries.

verl imports it in every process that imports verl, Ray workers included, and never calls
anything in it. Importing it twice, or through VERL_USE_EXTERNAL_MODULES as well, changes nothing.
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

VERL_VERSION = check_verl_version()

# The CPU platform must be in place before anything below asks verl for its device.
if cpu.is_selected():
    cpu.activate_in_verl()

from verl.trainer.ppo.core_algos import (  # noqa: E402
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
from cfpo_verl.config import LOSS_CONFIGS, ClippingFreeLossConfig, check_aggregation  # noqa: E402
from cfpo_verl.losses import STATISTICS, check_finite  # noqa: E402

logger = logging.getLogger(__name__)


def clipping_free_policy_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Adapt the loss that `config.policy_loss` describes to verl: weigh, aggregate, report.

    Reference KL and entropy are added by verl, outside this function.

    Args:
        old_log_prob: Log-probabilities under the policy that verl calls old, in nats. [B, T].
        log_prob: Log-probabilities under the current policy, in nats. [B, T].
        advantages: In reward units. [B, T].
        response_mask: 1 for response tokens, 0 for padding. [B, T].
        loss_agg_mode: One of verl's aggregation modes.
        config: The actor's config; its policy_loss is a `ClippingFreeLossConfig`.
        rollout_is_weights: Importance weights against an engine mismatch, or None. [B, T].
            They multiply the whole token loss, surrogate and penalty, as in verl's own losses.

    Returns:
        The scalar loss, and metrics that verl averages over micro-batches and ranks; docs/losses.md has their formulas.

    Raises:
        TypeError: If policy_loss has none of our options, because only its loss_mode was set.
        NonFiniteError: If a response token has a NaN or an infinity.
        ValueError: If loss_agg_mode has no scale and would depend on how a mini-batch is cut.
    """
    policy_loss = getattr(config, "policy_loss", None)
    if config is None or not isinstance(policy_loss, ClippingFreeLossConfig):
        raise TypeError(
            "the losses of cfpo_verl need a policy_loss of a type of cfpo_verl.config, got "
            f"{type(policy_loss).__name__}. Select the config group "
            "policy_loss=cfpo (with verl's own entry point: +policy_loss=cfpo) instead of setting loss_mode alone"
        )
    check_aggregation(config)
    mask = response_mask.bool()
    token_loss = policy_loss.score(log_prob, old_log_prob, advantages, mask, **policy_loss.options(config))
    values, checked = token_loss.values, token_loss.statistics
    if rollout_is_weights is not None:
        weights = rollout_is_weights.to(values.dtype).masked_fill(~mask, 0)
        values = values * weights
        checked = torch.cat([checked, weights.sum().view(1)])
    loss = agg_loss(loss_mat=values, loss_mask=mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)

    sums = checked.tolist()  # the only synchronisation with the host
    if not all(map(math.isfinite, sums)):
        tensors = {"log_prob": log_prob, "old_log_prob": old_log_prob, "advantages": advantages}
        if rollout_is_weights is not None:
            tensors["rollout_is_weights"] = rollout_is_weights
        check_finite(mask, **tensors)
    total = dict(zip(STATISTICS, sums, strict=False))
    tokens = max(total["tokens"], 1)
    metrics = {
        "actor/pg_clipfrac": total["past_optimum"],
        "actor/pg_clipfrac_lower": total["past_optimum_low"],
        "actor/ppo_kl": -total["log_ratio"],
        "cfpo/ratio_deviation": total["ratio_deviation"],
        "cfpo/tv_distance": total["ratio_deviation"] / 2,
        "cfpo/penalty": total["penalty"],
        "cfpo/corrective_frac": total["corrective"],
        "cfpo/rescued_frac": total["rescued"],
        "cfpo/outlier_frac": total["outlier"],
        "cfpo/zero_advantage_frac": total["tokens"] - total["nonzero_advantage"],
    }
    return loss, {name: value / tokens for name, value in metrics.items()}


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
    # verl's decorator replaces whatever has that name already, silently.
    if _config.NAME in POLICY_LOSS_REGISTRY:
        raise RuntimeError(f"verl {VERL_VERSION} already has a policy loss called {_config.NAME}")
    register_policy_loss(_config.NAME)(clipping_free_policy_loss)

for _name, _estimate in {
    "cfpo_grpo": grpo_advantages,
    "cfpo_dr_grpo": dr_grpo_advantages,
    "cfpo_rloo": rloo_advantages,
}.items():
    register_adv_est(_name)(_group_estimator(_estimate))

sockets.install_if_selected()

logger.info("cfpo_verl %s registered with verl %s", __version__, VERL_VERSION)
