"""OmegaConf resolvers for config files: arithmetic and names. Importing this module registers them.

Hydra imports it through our search path plugin and Ray workers through our verl plugin, so that a config can be
resolved in every process. Only OmegaConf is imported, to keep that cheap.
"""

import math
from collections.abc import Sequence

from omegaconf import OmegaConf


def divide(total: int, parts: int) -> int:
    """Divide into equal parts, without remainder.

    Args:
        total: Number to divide, for example the prompts of a rollout.
        parts: Number of parts, for example optimiser steps.

    Raises:
        ValueError: If `parts` does not divide `total`, is below 1, or one is not an integer. OmegaConf wraps it.

    Example:
        >>> divide(256, 4)
        64
    """
    are_integers = isinstance(total, int) and isinstance(parts, int)
    if not are_integers or parts < 1 or total % parts:
        raise ValueError(
            f"{total} cannot be divided into {parts} equal parts. Choose integers that divide evenly, for example with "
            "data.train_batch_size and updates (or updates_per_rollout)"
        )
    return total // parts


def floor_divide(total: int, divisor: int) -> int:
    """Divide and round down, to at least 1.

    Example:
        >>> floor_divide(3072, 5), floor_divide(4, 5)
        (614, 1)
    """
    return max(1, total // divisor)


def basename(path: str) -> str:
    """Return the last part of a path or hub id.

    Example:
        >>> basename("Qwen/Qwen2.5-7B")
        'Qwen2.5-7B'
    """
    return path.rstrip("/").rpartition("/")[2]


def add(*numbers: int) -> int:
    """Return the sum.

    Example:
        >>> add(1024, 3072)
        4096
    """
    return sum(numbers)


def half_range(bounds: Sequence[float]) -> float:
    """Return half the distance between the lowest and the highest value.

    Args:
        bounds: The lowest and the highest value, for example of the reward.

    Raises:
        ValueError: If `bounds` is not two finite numbers, the lower one first. OmegaConf wraps it.

    Example:
        >>> half_range([-1, 1])
        1.0
    """
    is_range = isinstance(bounds, Sequence) and len(bounds) == 2 and all(map(_is_finite, bounds))
    if not is_range or bounds[0] >= bounds[1]:
        raise ValueError(
            f"{bounds} is not the range of a reward. Set reward_range to the lowest and the highest reward, as in "
            "reward_range=[-1,1]"
        )
    return (bounds[1] - bounds[0]) / 2


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def run_label(algo: str, loss: str) -> str:
    """Return how a run's name states its algorithm and its loss: once if they have the same name.

    Example:
        >>> run_label("gspo", "gspo"), run_label("gspo", "cfpo")
        ('gspo', 'gspo_cfpo')
    """
    return algo if loss == algo else f"{algo}_{loss}"


OmegaConf.register_new_resolver("cfpo.divide", divide, replace=True)
OmegaConf.register_new_resolver("cfpo.floor_divide", floor_divide, replace=True)
OmegaConf.register_new_resolver("cfpo.basename", basename, replace=True)
OmegaConf.register_new_resolver("cfpo.sum", add, replace=True)
OmegaConf.register_new_resolver("cfpo.half_range", half_range, replace=True)
OmegaConf.register_new_resolver("cfpo.run_label", run_label, replace=True)
