"""Replacements for two functions of verl on the CPU platform."""

import os
from datetime import timedelta

import torch.distributed
from torch.distributed.distributed_c10d import Backend, BackendConfig
from torch.distributed.fsdp import CPUOffloadPolicy


def torch_rejects_verl_backend() -> bool:
    """Return whether torch rejects the backend string that verl builds if its device is the CPU."""
    try:
        BackendConfig(Backend("cpu:gloo,cpu:gloo"))
    except ValueError:
        return True
    return False


def initialize_global_process_group_ray(timeout_second: float | None = None, backend: str | None = None) -> None:
    """Start the process group of a Ray worker with gloo. Same interface as verl's function of this name."""
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
    """Return whether torch cannot pin memory, which is so without an accelerator."""
    try:
        torch.empty(1).pin_memory()
    except RuntimeError:
        return True
    return False


def unpinned_offload_policy(pin_memory: bool = True) -> CPUOffloadPolicy:
    """Return FSDP2's offload policy without pinned memory, which only helps copies to an accelerator."""
    return CPUOffloadPolicy(pin_memory=False)


def install() -> None:
    """Replace verl's initialisation of the process group and the offload policy of its reference model.

    Why: verl builds "cpu:gloo,<device>:<backend>", which on this platform is "cpu:gloo,cpu:gloo", and torch
    rejects a device that is named twice. verl's FSDP2 engine also requests pinned memory for every model without
    gradients. Each replacement is skipped if torch accepts what verl does.
    """
    import verl.utils.distributed as verl_distributed
    import verl.utils.fsdp_utils as verl_fsdp

    if torch_rejects_verl_backend():
        verl_distributed.initialize_global_process_group_ray = initialize_global_process_group_ray
    if torch_cannot_pin():
        verl_fsdp.CPUOffloadPolicy = unpinned_offload_policy
