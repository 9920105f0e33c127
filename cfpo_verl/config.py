"""Typed configuration that verl instantiates from YAML through `_target_`."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

from verl.workers.config import ActorConfig, PolicyLossConfig

from cfpo_verl.losses import (
    TokenLoss,
    cfpo_sequence_loss,
    cfpo_token_loss,
    check_delta,
    check_trust_region,
    drpo_token_loss,
)

_KEY = "actor_rollout_ref.actor.policy_loss"


def _check_number(name: str, value: object) -> None:
    # verl's own check lets text and None through.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"policy_loss.{name} must be a number, got {value!r} ({type(value).__name__}). "
            f"Set it with {_KEY}.{name}=NUMBER"
        )


@dataclass
class TokenLossConfig(PolicyLossConfig):
    """Base class of the options of a token loss: its name, its function and, as fields, its options.

    `cfpo_verl.registration.register_token_loss` adds the loss to verl; docs/extending.md has a complete example. verl
    builds policy_loss from the subclass, so a misspelt key is an error.

    Args:
        non_finite: What a NaN or an infinity of a response token does: "raise" ends the run, "skip" leaves its
            micro-batch out of the loss.
        max_skipped: How many micro-batches a process may leave out before the run ends, at least 1.

    Raises:
        ValueError: If verl would not call this loss, or an option is outside its range.
    """

    non_finite: str = "raise"
    max_skipped: int = 10

    NAME: ClassVar[str]
    """Name of the loss in verl's registry, which `loss_mode` must have too."""

    score: ClassVar[Callable[..., TokenLoss]]
    """A `staticmethod`, called with log_prob, old_log_prob, advantages and response_mask (boolean), each [B, T], and
    the `options` by name."""

    def __post_init__(self) -> None:
        """Refuse options without effect or meaning. verl builds them before it loads a model."""
        if self.loss_mode != self.NAME:
            raise ValueError(
                f"policy_loss.loss_mode={self.loss_mode} does not go with the options of {type(self).__name__}. Choose "
                f"with policy_loss={self.NAME} or another file of that group, which sets both"
            )
        self._check_registered()
        if self.non_finite not in ("raise", "skip"):
            raise ValueError(
                f"policy_loss.non_finite must be raise or skip, got {self.non_finite!r}. Set {_KEY}.non_finite=skip"
            )
        if not isinstance(self.max_skipped, int) or isinstance(self.max_skipped, bool) or self.max_skipped < 1:
            raise ValueError(
                f"policy_loss.max_skipped must be a whole number of at least 1, got {self.max_skipped!r}. To leave out "
                f"none, set {_KEY}.non_finite=raise"
            )

    def _check_registered(self) -> None:
        """Check that verl calls our adapter for this loss. One of verl's own would run without the options."""
        from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY  # importing it is what registers our losses

        found = POLICY_LOSS_REGISTRY.get(self.NAME)
        if found is None:
            raise ValueError(
                f"the loss {self.NAME} is not in verl's registry in this process: no plugin has registered "
                f"{type(self).__name__}, or it failed (see the log). Install the package in the environment of every "
                "node; or set "
                "VERL_USE_EXTERNAL_MODULES to the module that registers it, for our losses cfpo_verl.plugin. "
                "VERL_USE_EXTERNAL_PLUGINS=none must not be set"
            )
        # By name, since that module imports this one.
        if getattr(found, "__module__", None) != "cfpo_verl.registration":
            raise ValueError(
                f"verl {version('verl')} has a loss {self.NAME} of its own, which would run without the options of "
                f"{type(self).__name__}. Install a release of cfpo_verl for this verl, or choose another policy_loss"
            )

    @abstractmethod
    def options(self, actor: ActorConfig) -> dict[str, Any]:
        """Return the keyword arguments of `score`.

        Args:
            actor: The config of the actor that the loss belongs to.
        """

    def metrics(self, sums: dict[str, float], tokens: float) -> dict[str, float]:
        """Return the metrics of a micro-batch: the mean over response tokens of each statistic, under its own name.

        Args:
            sums: The statistics that `score` returned.
            tokens: How many response tokens there are, possibly 0.
        """
        return {name: total / max(tokens, 1) for name, total in sums.items()}


@dataclass
class ClippingFreeLossConfig(TokenLossConfig):
    """Base class of the options of our losses, which share their metrics.

    verl's `actor.clip_ratio`, `clip_ratio_low` and `clip_ratio_high` have no influence on the losses.
    """

    def metrics(self, sums: dict[str, float], tokens: float) -> dict[str, float]:
        """Return the metrics of a micro-batch; docs/losses.md has their formulas."""
        totals = {
            "actor/pg_clipfrac": sums["past_optimum"],
            "actor/pg_clipfrac_lower": sums["past_optimum_low"],
            "actor/ppo_kl": -sums["log_ratio"],
            "cfpo/ratio_deviation": sums["ratio_deviation"],
            # verl takes the minimum over the mini-batches of a rollout of what has "min" in its name. In the first one
            # both policies are the same, and what is left is the difference of two passes.
            "cfpo/noise_floor_min": sums["ratio_deviation"],
            "cfpo/noise_floor_p99_min": sums["ratio_deviation_p99"] * tokens,
            "cfpo/tv_distance": sums["ratio_deviation"] / 2,
            "cfpo/penalty": sums["penalty"],
            "cfpo/corrective_frac": sums["corrective"],
            "cfpo/rescued_frac": sums["rescued"],
            "cfpo/outlier_frac": sums["outlier"],
            "cfpo/zero_advantage_frac": tokens - sums["nonzero_advantage"],
        }
        return super().metrics(totals, tokens)


@dataclass
class CfpoLossConfig(ClippingFreeLossConfig):
    """Options of the policy loss `cfpo`.

    Args:
        epsilon: Half-width of the trust region on the importance ratio. Dimensionless.
        epsilon_low: Half-width where the advantage is negative, between 0 and 1; None for epsilon.
        epsilon_high: Half-width where the advantage is positive, greater than 0; None for epsilon.
        tail: "quadratic", the paper's penalty, or "linear": beyond tail_start it then grows with constant slope.
        tail_start: The |r - 1| beyond which a linear tail is linear, greater than both half-widths;
            None for twice the larger one.

    Raises:
        TypeError: If an option is not a number.
        ValueError: If an option is outside its range.
    """

    NAME: ClassVar[str] = "cfpo"
    score: ClassVar[Callable[..., TokenLoss]] = staticmethod(cfpo_token_loss)

    loss_mode: str = "cfpo"
    epsilon: float = 0.2
    epsilon_low: float | None = None
    epsilon_high: float | None = None
    tail: str = "quadratic"
    tail_start: float | None = None

    def __post_init__(self) -> None:
        """Refuse values with which the loss has no meaning."""
        super().__post_init__()
        _check_number("epsilon", self.epsilon)
        for name in ("epsilon_low", "epsilon_high", "tail_start"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name))
        if self.tail not in ("quadratic", "linear"):
            raise ValueError(f"policy_loss.tail must be quadratic or linear, got {self.tail!r}. Set {_KEY}.tail=linear")
        if self.tail == "quadratic" and self.tail_start is not None:
            raise ValueError(
                f"policy_loss.tail_start={self.tail_start} has no effect with tail=quadratic. "
                f"Set {_KEY}.tail=linear too"
            )
        if not (0 < self.epsilon < 1 or (self.epsilon_low is not None and 1 <= self.epsilon < math.inf)):
            raise ValueError(
                f"policy_loss.epsilon must be greater than 0 and less than 1, got {self.epsilon}; only epsilon_high "
                f"may be larger. Set it with {_KEY}.epsilon={type(self).epsilon}"
            )
        try:
            check_trust_region(**self._trust_region())
        except ValueError as error:
            raise ValueError(f"policy_loss: {error}. Set the options of the loss in {_KEY}") from None

    def options(self, actor: ActorConfig) -> dict[str, Any]:
        """Return the keyword arguments of `score`."""
        return self._trust_region()

    def _trust_region(self) -> dict[str, Any]:
        low = self.epsilon if self.epsilon_low is None else self.epsilon_low
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        tail_start = self.tail_start
        if self.tail == "linear" and tail_start is None:
            tail_start = 2 * max(low, high)
        return {"epsilon_low": low, "epsilon_high": high, "tail_start": tail_start}


@dataclass
class CfpoSequenceLossConfig(CfpoLossConfig):
    """Options of the policy loss `cfpo_sequence`: those of `cfpo`, on the length-normalised ratio of a response.

    That ratio is an average over the response and stays much nearer to 1 than a token's, so epsilon is smaller.
    """

    NAME: ClassVar[str] = "cfpo_sequence"
    score: ClassVar[Callable[..., TokenLoss]] = staticmethod(cfpo_sequence_loss)

    loss_mode: str = "cfpo_sequence"
    epsilon: float = 4e-4


@dataclass
class DrpoLossConfig(ClippingFreeLossConfig):
    """Options of the policy loss `drpo`.

    Args:
        delta: Half-width of the trust region on the difference of a token's probabilities, in units of probability.

    Raises:
        TypeError: If delta is not a number.
        ValueError: If delta is not positive and finite.
    """

    NAME: ClassVar[str] = "drpo"
    score: ClassVar[Callable[..., TokenLoss]] = staticmethod(drpo_token_loss)

    loss_mode: str = "drpo"
    delta: float = 12.5

    def __post_init__(self) -> None:
        """Refuse values with which the loss has no meaning."""
        super().__post_init__()
        _check_number("delta", self.delta)
        try:
            check_delta(self.delta)
        except ValueError as error:
            raise ValueError(f"policy_loss: {error}. Set it with {_KEY}.delta=12.5") from None

    def options(self, actor: ActorConfig) -> dict[str, Any]:
        """Return the keyword arguments of `score`; the metric of rescued tokens compares with the actor's clipping."""
        return {
            "delta": self.delta,
            "ppo_epsilon_low": actor.clip_ratio if actor.clip_ratio_low is None else actor.clip_ratio_low,
            "ppo_epsilon_high": actor.clip_ratio if actor.clip_ratio_high is None else actor.clip_ratio_high,
        }


LOSS_CONFIGS = (CfpoLossConfig, CfpoSequenceLossConfig, DrpoLossConfig)


def check_aggregation(actor: ActorConfig) -> None:
    """Refuse an aggregation that depends on how a mini-batch is cut into micro-batches.

    Raises:
        ValueError: For seq-mean-token-sum-norm without a scale: verl then divides by the padded width of each
            micro-batch.
    """
    if actor.loss_agg_mode == "seq-mean-token-sum-norm" and actor.loss_scale_factor is None:
        raise ValueError(
            "actor.loss_agg_mode=seq-mean-token-sum-norm needs actor.loss_scale_factor: without it the loss depends on "
            "the padded width of each micro-batch. Set actor_rollout_ref.actor.loss_scale_factor, for example to "
            "'${data.max_response_length}'"
        )
