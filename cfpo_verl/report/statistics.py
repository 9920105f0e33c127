"""Statistics of curves: smoothing, the mean of several seeds, intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

Points = Sequence[tuple[int, float]]

# Curves with more points are smoothed.
MOST_UNSMOOTHED = 200
# The final value of a curve is the mean over this fraction of its points, the last ones.
FINAL_SHARE = 0.1


def trailing(values: Sequence[float], window: int, statistic: str = "mean") -> np.ndarray:
    """Return the trailing mean or median: over the last `window` values up to each one, or over all if there are fewer.

    Example:
        >>> trailing([1.0, 3.0, 5.0], 2).tolist()
        [1.0, 2.0, 4.0]
    """
    return pd.Series(values, dtype=float).rolling(window, min_periods=1).agg(statistic).to_numpy()


def smooth(values: Sequence[float]) -> np.ndarray:
    """Smooth a long curve with a centred moving mean over a fortieth of its points; return a short one unchanged.

    The window is truncated at both ends. NaN is ignored, unless a window has no other value.
    """
    curve = pd.Series(values, dtype=float)
    if len(curve) <= MOST_UNSMOOTHED:
        return curve.to_numpy()
    return curve.rolling(len(curve) // 80 * 2 + 1, min_periods=1, center=True).mean().to_numpy()


def thin(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most `most` points of a long curve: the smallest and largest of each stretch, so that no peak is lost.

    Example:
        >>> thin(np.arange(8), np.array([0, 9, 1, 1, 1, 1, -5, 0]), 4)
        (array([0, 1, 4, 6]), array([ 0,  9,  1, -5]))
    """
    if len(steps) <= most:
        return steps, values
    stretches = np.array_split(np.arange(len(steps)), most // 2)
    kept = sorted({int(stretch[at]) for stretch in stretches for at in _extremes(values[stretch])})
    return steps[kept], values[kept]


def _extremes(values: np.ndarray) -> tuple[int, int]:
    filled = np.where(np.isfinite(values), values, 0.0)
    return int(filled.argmin()), int(filled.argmax())


@dataclass(frozen=True)
class Band:
    """Mean, lowest and highest value of several curves, at the steps that all of them have.

    Args:
        steps: Steps [T].
        mean: Mean [T].
        low: Lowest value [T].
        high: Highest value [T].
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def band(curves: Sequence[Points]) -> Band:
    """Average curves after smoothing each.

    Only steps that every curve has are kept: otherwise the mean would jump where one ends.
    """
    by_step = []
    for points in curves:
        values = smooth([value for _step, value in points])
        by_step.append(dict(zip((step for step, _value in points), values, strict=True)))
    steps = sorted(set.intersection(*(set(values) for values in by_step)))
    table = np.array([[values[step] for step in steps] for values in by_step]).reshape(len(by_step), len(steps))
    return Band(np.array(steps), table.mean(axis=0), table.min(axis=0), table.max(axis=0))


def final_value(points: Points, share: float = FINAL_SHARE) -> float:
    """Return the mean over the last fraction `share` of a curve, or its last point if that is more.

    Example:
        >>> final_value([(step, float(step)) for step in range(1, 21)])
        19.5
    """
    last = max(round(len(points) * share), 1)
    return float(np.mean([value for _step, value in points[-last:]]))


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 percent interval.

    Args:
        mean: Mean of the values.
        low: Lower bound, NaN for a single value.
        high: Upper bound, NaN for a single value.
        count: Number of values.
    """

    mean: float
    low: float
    high: float
    count: int


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean with Student's 95 percent interval, mean +- t(0.975, n - 1) * s / sqrt(n).

    It assumes independent and roughly normal seeds, and is very wide for two of them.

    Example:
        >>> found = mean_interval([0.7, 0.8, 0.9])
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), found.count
        (0.8, 0.552, 1.048, 3)
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Interval(mean, float("nan"), float("nan"), count)
    half = float(stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)
