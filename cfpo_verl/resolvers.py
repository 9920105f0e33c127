"""The arithmetic in our config files, as OmegaConf resolvers. Importing this module registers them.

Hydra imports it through our search path plugin, Ray workers through the plugin of verl, so that a config resolves in
every process that meets it. Nothing but OmegaConf is imported.
"""

from omegaconf import OmegaConf


def divide(total: int, parts: int) -> int:
    """Divide without remainder.

    Args:
        total: What is divided, for example the prompts of a rollout.
        parts: How many parts, for example optimiser steps.

    Raises:
        ValueError: If the parts would not be equal, there would be none, or a value is no whole number.

    Example:
        >>> divide(256, 4)
        64
    """
    are_whole = isinstance(total, int) and isinstance(parts, int)
    if not are_whole or parts < 1 or total % parts:
        raise ValueError(
            f"{total} cannot be divided into {parts} equal parts. Choose whole numbers that divide, for example with "
            "data.train_batch_size and updates (or updates_per_rollout)"
        )
    return total // parts


def floor_divide(total: int, divisor: int) -> int:
    """Divide and round down, but to 1 at least.

    Example:
        >>> floor_divide(3072, 5), floor_divide(4, 5)
        (614, 1)
    """
    return max(1, total // divisor)


def basename(path: str) -> str:
    """Return what stands behind the last slash of a path or hub id.

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
