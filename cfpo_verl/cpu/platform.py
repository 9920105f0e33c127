"""verl's platform interface for a machine without an accelerator."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _do_nothing(*_args: object, **_kwargs: object) -> None:
    pass


def _make_device_module() -> ModuleType:
    """Build a CPU substitute for the functions of `torch.cuda` that verl calls. Memory is in bytes."""

    def resident_bytes(_device: object = None) -> int:
        return psutil.Process().memory_info().rss

    def mem_get_info(_device: object = None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def set_rng_state(state: torch.Tensor, _device: object = None) -> None:
        torch.set_rng_state(state)

    def get_rng_state(_device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    module = ModuleType("cfpo_verl_cpu_device")
    vars(module).update({name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("_")})
    vars(module).update(
        # verl guards its CUDA-only code with it.
        is_available=lambda: False,
        device_count=lambda: 1,
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        # verl looks up peak FLOPS by this name. An unknown name counts as infinite, so the reported MFU is 0.
        get_device_name=lambda _device=None: "CPU",
        get_rng_state=get_rng_state,
        set_rng_state=set_rng_state,
        mem_get_info=mem_get_info,
    )
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(module, name, resident_bytes)
    for name in (
        "empty_cache",
        "ipc_collect",
        "reset_peak_memory_stats",
        "set_device",
        "set_per_process_memory_fraction",
        "synchronize",
    ):
        setattr(module, name, _do_nothing)
    return module


class PlatformCPU(PlatformBase):
    """One CPU as verl's device, with gloo for collectives and Ray's GPU slots as a logical resource."""

    def __init__(self) -> None:
        """Build the device module once."""
        self._device_module = _make_device_module()

    @property
    def device_name(self) -> str:
        """The torch device type."""
        return "cpu"

    @property
    def vendor_name(self) -> str:
        """The name by which verl selects vendor-specific code; there is none for CPUs."""
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        """The module that verl uses instead of `torch.cuda`."""
        return self._device_module

    def is_available(self) -> bool:
        """Return True: a CPU is always available."""
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Return False, so that verl never detects this platform: only VERL_PLATFORM=cpu selects it."""
        return False

    def current_device(self) -> int:
        """Return the device that verl passes to `tensor.to`.

        verl's signature says an index, but torch would take an index for a CUDA device.
        """
        return "cpu"  # type: ignore[return-value]

    def device_count(self) -> int:
        """Return 1."""
        return 1

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """Return (None, None): CPUs have no compute capability."""
        return None, None

    def manual_seed(self, seed: int) -> None:
        """Seed torch's generator."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed torch's generator."""
        torch.manual_seed(seed)

    def communication_backend_name(self) -> str:
        """Return gloo, the only torch.distributed backend for CPUs in every build."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Return the variable in which Ray gives an actor its slots of `ray_resource_name`."""
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        """Return a logical resource: verl's check of its pools counts only "GPU" and "NPU"."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """Return no variables: nothing on a CPU reads `visible_devices_envvar`."""
        return []

    def is_ipc_supported(self) -> bool:
        """Return False, so that weights are sent to vLLM through shared memory."""
        return False

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        """Do nothing: there are no profiler ranges on a CPU."""
        yield

    def cudart(self) -> Any:
        """Return None: there is no CUDA runtime."""
        return None

    set_device = _do_nothing
    synchronize = _do_nothing
    set_allocator_settings = _do_nothing
    empty_cache = _do_nothing
    profiler_start = _do_nothing
    profiler_stop = _do_nothing


def register() -> None:
    """Register the platform with verl under the name that VERL_PLATFORM selects."""
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
