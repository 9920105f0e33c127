"""Confidence intervals of means over problems, and paired comparison of two models."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2_000
# Random numbers per batch of resamples: 32 MB.
_DRAWN_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """A confidence interval.

    Args:
        low: Lower end.
        high: Upper end.
        kind: How it was computed.
    """

    low: float
    high: float
    kind: Literal["bootstrap", "exact"]


def confidence_intervals(values: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> list[Interval]:
    """Return the 95 percent confidence interval of the mean over problems for each of several metrics.

    Exact (Clopper and Pearson, 1934) for metrics that are 0 or 1 on every problem, such as pass@n and avg@1: with c
    ones among P problems,

        Beta(0.025; c, P - c + 1)  to  Beta(0.975; c + 1, P - c)

    Otherwise a percentile bootstrap over problems, with the same resamples for all metrics.

    Args:
        values: One row per problem, one column per metric. Shape [P, K].
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        K intervals.

    Raises:
        ValueError: If there are no values, or one is not finite.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).
    """
    from scipy.special import betaincinv

    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"values must be finite numbers of at least one problem, got shape {list(table.shape)}")
    problems = len(table)
    is_binary: NDArray[np.bool_] = ((table == 0) | (table == 1)).all(axis=0)
    low, high = np.empty(table.shape[1]), np.empty(table.shape[1])
    ones = table[:, is_binary].sum(axis=0)
    tail = (1 - LEVEL) / 2
    with np.errstate(invalid="ignore"):  # Beta(.; 0, .) is undefined: c = 0 or c = P
        low[is_binary] = np.where(ones == 0, 0.0, betaincinv(ones, problems - ones + 1, tail))
        high[is_binary] = np.where(ones == problems, 1.0, betaincinv(ones + 1, problems - ones, 1 - tail))
    if not is_binary.all():
        means = _resampled_means(table[:, ~is_binary], resamples, seed)
        low[~is_binary], high[~is_binary] = np.quantile(means, [tail, 1 - tail], axis=0)
    kinds: list[Literal["bootstrap", "exact"]] = ["exact" if exact else "bootstrap" for exact in is_binary]
    return [Interval(float(a), float(b), kind) for a, b, kind in zip(low, high, kinds, strict=True)]


def _resampled_means(table: Floats, resamples: int, seed: int) -> Floats:
    """Return the means of bootstrap resamples of the problems. Shape [P, K] to [resamples, K]."""
    rng = np.random.default_rng(seed)
    problems = len(table)
    at_once = max(1, _DRAWN_AT_ONCE // problems)
    means = []
    for start in range(0, resamples, at_once):
        rounds = min(at_once, resamples - start)
        drawn = rng.integers(problems, size=(rounds, problems), dtype=np.int32)
        drawn += np.arange(rounds, dtype=np.int32)[:, None] * problems
        times = np.bincount(drawn.ravel(), minlength=rounds * problems).reshape(rounds, problems)
        means.append(times @ table / problems)
    return np.concatenate(means)


@dataclass(frozen=True)
class Paired:
    """Paired comparison of a second model with a first one on the same problems.

    Args:
        difference: Mean over problems of second minus first.
        low: Lower end of its 95 percent confidence interval (bootstrap over problems).
        high: Upper end.
        better: Number of problems on which the second model has the higher value.
        worse: Number of problems on which it has the lower value.
        equal: Number of problems on which both have the same value.
        p_value: Two-sided sign test: probability of a split at least as uneven as better to worse if both are equally
            likely. 1 if all are equal.
    """

    difference: float
    low: float
    high: float
    better: int
    worse: int
    equal: int
    p_value: float


# Differences below this are rounding errors of sums taken in another order.
_SAME = 1e-9


def compare_paired(first: ArrayLike, second: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Paired:
    """Compare two models on the same problems.

    Pairing removes the variation in difficulty between problems from the uncertainty.

    Args:
        first: A metric of the first model on each problem, such as avg@n. Shape [P].
        second: The same metric of the second model, on the same problems in the same order. Shape [P].
        resamples: Number of bootstrap resamples for the interval.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If the shapes differ, or a value is not finite.

    Example:
        >>> compare_paired([0.5, 0.0, 0.25, 1.0], [0.75, 0.5, 0.5, 1.0]).p_value  # 3 to 0: 2 * (1/2)**3
        0.25
    """
    from scipy.special import bdtr

    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"one value for each problem of both models, got {list(one.shape)} and {list(other.shape)}")
    difference = other - one
    difference[np.abs(difference) < _SAME] = 0.0
    if difference.size == 0 or not np.isfinite(difference).all():
        raise ValueError("values must be finite numbers of at least one problem")
    means = _resampled_means(difference[:, None], resamples, seed)[:, 0]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    # Twice one tail, since the binomial distribution with probability 1/2 is symmetric.
    p_value = min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))
    equal = difference.size - better - worse
    return Paired(float(difference.mean()), float(low), float(high), better, worse, equal, p_value)
