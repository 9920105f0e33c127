"""A toy policy loss and a toy advantage estimator. Importing this module adds both to verl's registries."""

from dataclasses import dataclass

import torch

from cfpo_verl.advantages import dr_grpo_advantages
from cfpo_verl.registration import TokenLoss, TokenLossConfig, register_group_estimator, register_token_loss


def log_hinge_loss(log_prob, old_log_prob, advantages, response_mask, *, margin, weight):
    """Score every token with -A * l + weight * max(|l| - margin, 0)**2, where l = log_prob - old_log_prob.

    The log-ratio l is free within the margin and pulled back beyond it. A toy, from no paper. All tensors are [B, T].
    """
    log_ratio = (log_prob - old_log_prob).float().masked_fill(~response_mask, 0)  # padding may hold NaN
    excess = (log_ratio.abs() - margin).clamp(min=0)
    values = weight * excess**2 - advantages.masked_fill(~response_mask, 0) * log_ratio
    sums = torch.stack([(excess > 0).sum(), excess.detach().sum()])
    return TokenLoss(values, sums, names=("log_hinge/outside_frac", "log_hinge/excess"))


@dataclass
class LogHingeLossConfig(TokenLossConfig):
    """Options of the policy loss: a margin in nats, and the weight of the penalty beyond it."""

    NAME = "log_hinge"
    score = staticmethod(log_hinge_loss)

    loss_mode: str = "log_hinge"
    margin: float = 0.2
    weight: float = 5.0

    def __post_init__(self):
        """Refuse values without a meaning, before anything is started."""
        super().__post_init__()
        if not (self.margin >= 0 and self.weight > 0):
            raise ValueError(f"policy_loss needs margin >= 0 and weight > 0, got {self.margin} and {self.weight}")

    def options(self, actor):
        """Return the keyword arguments of the loss; `actor` is verl's ActorConfig."""
        return {"margin": self.margin, "weight": self.weight}


def group_sign_advantages(rewards, groups):
    """Return 1 for a reward above the mean of its group, -1 below, 0 at the mean. All tensors are [B]."""
    return dr_grpo_advantages(rewards, groups).sign()


register_token_loss(LogHingeLossConfig)
register_group_estimator("group_sign", group_sign_advantages)
