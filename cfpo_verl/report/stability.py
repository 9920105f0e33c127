"""Judge by stated rules whether a run stayed stable, and find the step where it did not.

Each rule is a function from a curve to the first step that breaks it, or None. docs/report.md and the page state the
rules in the words of `RULES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cfpo_verl.report.metrics import ENTROPY, GRADIENT_NORM, KL, NOISE_FLOOR, REWARD, Metrics
from cfpo_verl.report.statistics import trailing

# Number of steps in the trailing window of every rule.
WINDOW = 5
# Shorter runs are not judged.
LEAST_STEPS = 8
# A collapse is a fall below this fraction of the best smoothed reward.
COLLAPSE_SHARE = 0.5
# If the best smoothed reward is lower than this, a fall is only noise.
LEAST_BEST = 0.05
# Entropy per token at which nearly every token is decided: 0.02 nats is one choice of two at 0.3 to 99.7 percent.
ENTROPY_FLOOR_NATS = 0.02
# By Pinsker's inequality mean |r - 1| <= sqrt(2 KL); 0.1 nats allow 0.45, more than twice PPO's clip range.
KL_BOUND_NATS = 0.1
# Relative to the median of the first WINDOW steps, as gradient norms depend on model and loss.
GRADIENT_BOUND = 10.0
# Smaller norms come from steps without any signal and are left out of that median.
LEAST_GRADIENT_NORM = 1e-3


def collapse_step(steps: Sequence[int], rewards: Sequence[float]) -> int | None:
    """Return the step from which the smoothed reward stays below half of its best value.

    Let m(t) be the mean of the last `WINDOW` rewards at step t (of fewer at the beginning, but from the second step on:
    some runs collapse at once), b the largest m, and f = min(0, smallest reward). The run is low at t if

        m(t) - f < COLLAPSE_SHARE * (b - f)

    It has collapsed at the first step of its final stretch of low steps, if that has at least `WINDOW` steps. If
    b - f < `LEAST_BEST`, no collapse is reported.

    Args:
        steps: [T], ascending.
        rewards: [T], finite.
    """
    if len(rewards) < WINDOW:
        return None
    smoothed = trailing(rewards, WINDOW)[1:]
    floor = min(0.0, *rewards)
    best = float(smoothed.max())
    if best - floor < LEAST_BEST:
        return None
    is_low = smoothed - floor < COLLAPSE_SHARE * (best - floor)
    return _begin_of_tail(list(steps)[1:], is_low, least=WINDOW)


def entropy_step(steps: Sequence[int], entropies_nats: Sequence[float]) -> int | None:
    """Return the step from which the trailing mean of the entropy stays below `ENTROPY_FLOOR_NATS`."""
    smoothed = trailing(entropies_nats, WINDOW)
    return _begin_of_tail(steps, smoothed < ENTROPY_FLOOR_NATS, least=1)


def kl_step(steps: Sequence[int], kl_nats: Sequence[float]) -> int | None:
    """Return the first step where the median of the last `WINDOW` values of the KL is above `KL_BOUND_NATS`.

    The median ignores single steps.
    """
    return _first(steps, kl_nats, KL_BOUND_NATS)


def gradient_step(steps: Sequence[int], gradient_norms: Sequence[float]) -> int | None:
    """Return the first step where the median of the last `WINDOW` gradient norms is too large.

    The bound is `GRADIENT_BOUND` times the median of the first `WINDOW` norms above `LEAST_GRADIENT_NORM`.
    """
    beginning = [norm for norm in gradient_norms if norm > LEAST_GRADIENT_NORM][:WINDOW]
    if len(beginning) < WINDOW:
        return None
    return _first(steps, gradient_norms, GRADIENT_BOUND * float(np.median(beginning)))


def noise_step(steps: Sequence[int], floors: Sequence[float]) -> int | None:
    """Return the first step where the median of the last `WINDOW` noise floors is above 1.

    Args:
        steps: [T], ascending.
        floors: Mean |r - 1| of the first mini-batch, in units of the half-width epsilon. [T].
    """
    return _first(steps, floors, 1.0)


def half_width(config: Mapping[str, str]) -> float | None:
    """Return the smallest half-width of the trust region on the ratio, None for a loss that has none.

    Args:
        config: Flat resolved config.

    Example:
        >>> loss = "actor_rollout_ref.actor.policy_loss."
        >>> half_width({f"{loss}epsilon": "0.2", f"{loss}epsilon_low": "null", f"{loss}epsilon_high": "0.28"})
        0.2
    """
    whole, low, high = (
        config.get(f"actor_rollout_ref.actor.policy_loss.{name}", "null")
        for name in ("epsilon", "epsilon_low", "epsilon_high")
    )
    widths = [width if width != "null" else whole for width in (low, high)]
    return min(map(float, widths)) if "null" not in widths else None


def not_finite_step(steps: Sequence[int], values: Sequence[float]) -> int | None:
    """Return the first step where a value is NaN or infinite."""
    broken = [step for step, value in zip(steps, values, strict=True) if not np.isfinite(value)]
    return broken[0] if broken else None


def _begin_of_tail(steps: Sequence[int], is_broken: np.ndarray, least: int) -> int | None:
    """Return the first step of the stretch of True at the end, if that has at least `least` steps."""
    kept = np.flatnonzero(~is_broken)
    begin = int(kept[-1]) + 1 if len(kept) else 0
    return int(steps[begin]) if len(is_broken) - begin >= least else None


def _first(steps: Sequence[int], values: Sequence[float], bound: float) -> int | None:
    # The first medians are left out: they are of fewer values, so that a single one could decide.
    above = np.flatnonzero(trailing(values, WINDOW, "median")[WINDOW - 1 :] > bound)
    return int(steps[int(above[0]) + WINDOW - 1]) if len(above) else None


@dataclass(frozen=True)
class Rule:
    """A rule of the verdict.

    Args:
        name: Name of the fault that the rule finds.
        curve: Key of the curve in which the step is marked.
        metrics: Names of the metrics of verl that the rule is applied to.
        is_fatal: Whether the run counts as failed, rather than worth a look.
        statement: The rule in words.
        first_step: Maps steps and values to the first step that breaks the rule, or None.
        unit: Reads from the config what the values are divided by first; the rule does not apply where it is None.
    """

    name: str
    curve: str
    metrics: tuple[str, ...]
    is_fatal: bool
    statement: str
    first_step: Callable[[Sequence[int], Sequence[float]], int | None]
    unit: Callable[[Mapping[str, str]], float | None] = lambda _config: 1.0


RULES = (
    Rule(
        "not a number",
        "",
        tuple(curve.pattern for curve in (REWARD, KL, ENTROPY, GRADIENT_NORM)),
        True,
        "Reward, KL, entropy or gradient norm is NaN or infinite at any step.",
        not_finite_step,
    ),
    Rule(
        "collapse",
        REWARD.key,
        (REWARD.pattern,),
        True,
        f"The mean reward of the last {WINDOW} steps (of fewer at the beginning, but at least two) falls below "
        f"{COLLAPSE_SHARE:.0%} of the best such mean and stays there to the end, for at least {WINDOW} steps. Means "
        "are measured from zero, or from the smallest reward if that is negative; runs whose best mean is below "
        f"{LEAST_BEST:g} are not judged.",
        collapse_step,
    ),
    Rule(
        "entropy near zero",
        ENTROPY.key,
        (ENTROPY.pattern,),
        False,
        f"The mean entropy of the last {WINDOW} steps falls below {ENTROPY_FLOOR_NATS:g} nats per token and stays "
        "there to the end.",
        entropy_step,
    ),
    Rule(
        "KL past its bound",
        KL.key,
        (KL.pattern,),
        False,
        f"The median KL to the old policy over {WINDOW} successive steps is above {KL_BOUND_NATS:g} nats per token: "
        "mean |r - 1| can then be 0.45, more than twice PPO's clip range (Pinsker's inequality).",
        kl_step,
    ),
    Rule(
        "gradient norm past its bound",
        GRADIENT_NORM.key,
        (GRADIENT_NORM.pattern,),
        False,
        f"The median gradient norm over {WINDOW} successive steps is above {GRADIENT_BOUND:g} times that of the run's "
        f"first {WINDOW} steps with a norm above {LEAST_GRADIENT_NORM:g}.",
        gradient_step,
    ),
    Rule(
        "epsilon below the noise floor",
        NOISE_FLOOR.key,
        ("actor/cfpo/noise_floor_min",),
        False,
        f"The median over {WINDOW} successive steps of the mean |r - 1| of the first mini-batch is above epsilon: "
        "the numerical difference of two passes alone moves tokens as far as an update may.",
        noise_step,
        half_width,
    ),
)


@dataclass(frozen=True)
class Broken:
    """A rule that a run has broken, and the first step that broke it."""

    rule: Rule
    step: int


@dataclass(frozen=True)
class Verdict:
    """Verdict of the rules on a run.

    Args:
        level: "stable", "warning", "failed" or "unknown".
        summary: The verdict in a few words, with the steps.
        broken: The broken rules, in the order of `RULES`.
    """

    level: str
    summary: str
    broken: tuple[Broken, ...]


def judge(metrics: Metrics, config: Mapping[str, str] | None = None) -> Verdict:
    """Apply all rules to the metrics of a run.

    Args:
        metrics: Metrics by step, ascending.
        config: Flat resolved config, None if unknown.

    Example:
        >>> judge({step: {"critic/score/mean": 0.5} for step in range(1, 9)}).summary
        'stable'
    """
    broken = []
    for rule in RULES:
        steps_broken = [
            step for name in rule.metrics if (step := _apply(rule, metrics, name, config or {})) is not None
        ]
        if steps_broken:
            broken.append(Broken(rule, min(steps_broken)))
    trained = sum(REWARD.pattern in values for values in metrics.values())
    if broken:
        level = "failed" if any(breach.rule.is_fatal for breach in broken) else "warning"
        return Verdict(
            level, ", ".join(f"{breach.rule.name} at step {breach.step}" for breach in broken), tuple(broken)
        )
    if trained < LEAST_STEPS:
        return Verdict("unknown", f"too short to judge ({trained} of {LEAST_STEPS} steps)", ())
    return Verdict("stable", "stable", ())


def _apply(rule: Rule, metrics: Metrics, name: str, config: Mapping[str, str]) -> int | None:
    unit = rule.unit(config)
    if unit is None:
        return None
    points: Mapping[int, float] = {
        step: float(values[name]) / unit for step, values in metrics.items() if name in values
    }
    if rule.first_step is not_finite_step:
        return not_finite_step(list(points), list(points.values()))
    finite = {step: value for step, value in points.items() if np.isfinite(value)}
    if len(finite) < LEAST_STEPS:
        return None
    return rule.first_step(list(finite), list(finite.values()))
