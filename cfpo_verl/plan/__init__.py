"""Estimates of a run before it is queued: GPU memory, seconds per step, GPU hours."""

from omegaconf import DictConfig

from cfpo_verl.plan.advice import Advice, first_change
from cfpo_verl.plan.errors import PlanError
from cfpo_verl.plan.hardware import Gpu, find_gpu
from cfpo_verl.plan.memory import phases
from cfpo_verl.plan.read_config import read_run

__all__ = ["Advice", "PlanError", "default_gpu", "first_advice", "memory_per_gpu_gb"]


def default_gpu(config: DictConfig) -> Gpu:
    """Return the GPU type to assume if none is given."""
    return find_gpu("cpu-2-cores" if config.trainer.device == "cpu" else "H100-80GB")


def memory_per_gpu_gb(config: DictConfig, gpu: Gpu | None = None) -> dict[str, float]:
    """Estimate the memory of one GPU in GB (10**9 bytes), by phase and part.

    Args:
        config: A composed config of verl's ppo_trainer.
        gpu: The GPU type, of whose memory the inference engine takes a share; `default_gpu` if None.

    Returns:
        {"update/weights": 15.2, ..., "update/total": 60.1, "log_prob/total": ..., "rollout/total": ...}

    Raises:
        PlanError: If the model or the config is not supported.
    """
    found = {}
    for phase in phases(read_run(config), gpu or default_gpu(config)):
        found.update({f"{phase.name}/{part}": size for part, size in phase.parts_gb.items()})
        found[f"{phase.name}/total"] = phase.total_gb
    return found


def first_advice(config: DictConfig, gpu: Gpu | None = None) -> Advice | None:
    """Return the first setting to change so that the run fits on the GPU type; None if it fits.

    Args:
        config: A composed config of verl's ppo_trainer.
        gpu: The GPU type; `default_gpu` if None.

    Raises:
        PlanError: If the model or the config is not supported.
    """
    return first_change(read_run(config), gpu or default_gpu(config))
