"""Typed configuration that verl instantiates from YAML through `_target_`."""

from dataclasses import dataclass

from verl.workers.config import PolicyLossConfig


@dataclass
class CfpoLossConfig(PolicyLossConfig):
    """Options of the `cfpo` policy loss.

    verl builds policy_loss from this class, so a misspelt key is an error. verl's `actor.clip_ratio`,
    `clip_ratio_low` and `clip_ratio_high` have no influence on the loss or on its metrics.

    Args:
        epsilon: Half-width of the trust region on the importance ratio. Dimensionless,
            between 0 and 1 (from 1 on, tokens with a negative advantage would have their
            optimum at a ratio of 0 or less).

    Raises:
        TypeError: If epsilon is not a number (verl's own check lets text and None through).
        ValueError: If epsilon is not between 0 and 1.
    """

    loss_mode: str = "cfpo"
    epsilon: float = 0.2

    def __post_init__(self) -> None:
        """Refuse values with which the loss has no meaning."""
        way_out = "Set it with actor_rollout_ref.actor.policy_loss.epsilon=0.2"
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, int | float):
            kind = type(self.epsilon).__name__
            raise TypeError(f"policy_loss.epsilon must be a number, got {self.epsilon!r} ({kind}). {way_out}")
        if not 0 < self.epsilon < 1:  # not true of NaN either
            raise ValueError(
                f"policy_loss.epsilon must be greater than 0 and less than 1, got {self.epsilon}. {way_out}"
            )
