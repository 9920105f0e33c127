"""How sure a mean over problems is, and whether two models differ on the same problems."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2_000
# Numbers that are drawn at once: 32 MB of them.
_DRAWN_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """A confidence interval.

    Args:
        low: Its lower end.
        high: Its upper end.
        kind: How it was found.
    """

    low: float
    high: float
    kind: Literal["bootstrap", "exact"]


def confidence_intervals(values: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> list[Interval]:
    """Return the 95 percent confidence interval of the mean over problems of each of several measures.

    Exact (Clopper and Pearson, 1934) where every problem has 0 or 1, as pass@n and avg@1 do: with c ones of P problems,

        Beta(0.025; c, P - c + 1)  to  Beta(0.975; c + 1, P - c)

    Otherwise the percentiles of the mean over problems drawn with replacement, the same draws for all measures.

    Args:
        values: One row for each problem, one column for each measure. Shape [P, K].
        resamples: How often all problems are drawn.
        seed: Decides which.

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
    with np.errstate(invalid="ignore"):  # Beta(.; 0, .) is no distribution: none of the problems, or all
        low[is_binary] = np.where(ones == 0, 0.0, betaincinv(ones, problems - ones + 1, tail))
        high[is_binary] = np.where(ones == problems, 1.0, betaincinv(ones + 1, problems - ones, 1 - tail))
    if not is_binary.all():
        means = _resampled_means(table[:, ~is_binary], resamples, seed)
        low[~is_binary], high[~is_binary] = np.quantile(means, [tail, 1 - tail], axis=0)
    kinds: list[Literal["bootstrap", "exact"]] = ["exact" if exact else "bootstrap" for exact in is_binary]
    return [Interval(float(a), float(b), kind) for a, b, kind in zip(low, high, kinds, strict=True)]


def _resampled_means(table: Floats, resamples: int, seed: int) -> Floats:
    """Return the means over problems drawn with replacement. Shape [P, K] to [resamples, K]."""
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
    """How a second model does beside a first one on the same problems.

    Args:
        difference: Mean over problems of second minus first.
        low: Lower end of its 95 percent confidence interval, bootstrap over problems.
        high: Upper end.
        better: Problems on which the second one has more.
        worse: Problems on which it has less.
        equal: Problems on which both have the same.
        p_value: Two-sided sign test: how likely a division at least as uneven as better to worse is if neither is
            better. 1 if all are equal.
    """

    difference: float
    low: float
    high: float
    better: int
    worse: int
    equal: int
    p_value: float


# Two estimates that differ by less are the same: sums of products in another order.
_SAME = 1e-9


def compare_paired(first: ArrayLike, second: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Paired:
    """Compare two models on the same problems.

    Pairing removes what the problems have in common, easy ones and hard ones, from the uncertainty.

    Args:
        first: A measure of the first model on each problem, such as avg@n. Shape [P].
        second: The same of the second model on the same problems in the same order. Shape [P].
        resamples: How often the problems are drawn for the interval.
        seed: Decides which.

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
    # Both tails: the binomial distribution with one half is symmetric.
    p_value = min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))
    equal = difference.size - better - worse
    return Paired(float(difference.mean()), float(low), float(high), better, worse, equal, p_value)
