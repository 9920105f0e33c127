"""The one function of verl that is replaced on the CPU platform."""

import os
from datetime import timedelta

import torch.distributed
from torch.distributed.distributed_c10d import Backend, BackendConfig


def torch_rejects_verl_backend() -> bool:
    """Say whether torch refuses the backend string that verl builds when its device is the CPU."""
    try:
        BackendConfig(Backend("cpu:gloo,cpu:gloo"))
    except ValueError:
        return True
    return False


def initialize_global_process_group_ray(timeout_second: float | None = None, backend: str | None = None) -> None:
    """Start the process group of a Ray worker with gloo. Same contract as verl's function of this name."""
    if torch.distributed.is_initialized():
        return
    torch.distributed.init_process_group(
        backend=backend or "gloo",
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        timeout=timedelta(seconds=timeout_second) if timeout_second is not None else None,
        init_method=os.environ.get("DIST_INIT_METHOD"),
    )


def install() -> None:
    """Replace verl's start of the process group.

    Why: verl builds "cpu:gloo,<device>:<backend>", which on this platform is "cpu:gloo,cpu:gloo", and torch
    rejects a device named twice. Skipped as soon as torch accepts it.
    """
    import verl.utils.distributed as verl_distributed

    if torch_rejects_verl_backend():
        verl_distributed.initialize_global_process_group_ray = initialize_global_process_group_ray
