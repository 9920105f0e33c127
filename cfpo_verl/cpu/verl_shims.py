"""The two functions of verl that are replaced on the CPU platform."""

import os
from datetime import timedelta

import torch.distributed
from torch.distributed.distributed_c10d import Backend, BackendConfig
from torch.distributed.fsdp import CPUOffloadPolicy


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


def torch_cannot_pin() -> bool:
    """Say whether torch refuses pinned memory, as it does where there is no accelerator."""
    try:
        torch.empty(1).pin_memory()
    except RuntimeError:
        return True
    return False


def unpinned_offload_policy(pin_memory: bool = True) -> CPUOffloadPolicy:
    """Return FSDP2's offload policy without pinned memory, which would speed up copies to an accelerator."""
    return CPUOffloadPolicy(pin_memory=False)


def install() -> None:
    """Replace verl's start of the process group, and the offload policy of its reference model.

    Why: verl builds "cpu:gloo,<device>:<backend>", which on this platform is "cpu:gloo,cpu:gloo", and torch
    rejects a device named twice; and verl's FSDP2 engine asks for pinned memory for every model that it only
    evaluates. Each is skipped as soon as torch accepts it.
    """
    import verl.utils.distributed as verl_distributed
    import verl.utils.fsdp_utils as verl_fsdp

    if torch_rejects_verl_backend():
        verl_distributed.initialize_global_process_group_ray = initialize_global_process_group_ray
    if torch_cannot_pin():
        verl_fsdp.CPUOffloadPolicy = unpinned_offload_policy
