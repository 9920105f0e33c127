"""OmegaConf resolvers for arithmetic in config files. Importing this module registers them.

Hydra imports it through our search path plugin and Ray workers through our verl plugin, so that a config can be
resolved in every process. Only OmegaConf is imported, to keep that cheap.
"""

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


OmegaConf.register_new_resolver("cfpo.divide", divide, replace=True)
OmegaConf.register_new_resolver("cfpo.floor_divide", floor_divide, replace=True)
OmegaConf.register_new_resolver("cfpo.basename", basename, replace=True)
OmegaConf.register_new_resolver("cfpo.sum", add, replace=True)
