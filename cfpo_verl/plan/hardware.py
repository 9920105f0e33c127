"""GPU types and the efficiencies that are assumed for them."""

from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from cfpo_verl.plan.errors import PlanError


@dataclass(frozen=True)
class Gpu:
    """One GPU, its links and what is assumed to be reached of them; hardware.yaml explains each key."""

    name: str
    memory_gb: float
    peak_tflops: float
    memory_gb_s: float
    nvlink_gb_s: float
    network_gb_s: float
    host_gb_s: float
    matmul_efficiency: float
    expert_efficiency: float
    inference_efficiency: float
    bandwidth_efficiency: float
    network_efficiency: float
    decode_step_overhead_s: float
    request_overhead_s: float
    micro_batch_overhead_s: float
    weight_sync_overhead_s: float
    reserved_gb: float
    engine_reserved_gb: float

    def link_bytes_s(self, within_node: bool) -> float:
        """Return bytes per second of a collective, within a machine or between machines."""
        return (self.nvlink_gb_s if within_node else self.network_gb_s) * 1e9 * self.network_efficiency


def _read(text: str, source: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise PlanError(f"{source} is not YAML: {error}") from error
    unknown = set(content) - {"base", "gpus"} if isinstance(content, dict) else {type(content).__name__}
    if unknown:
        raise PlanError(f"{source}: only the keys base and gpus are known, got {', '.join(sorted(unknown))}")
    return content


def gpu_types(hardware_file: Path | None = None) -> dict[str, Gpu]:
    """Return the known GPU types.

    Args:
        hardware_file: YAML file of the same form as hardware.yaml; what it says goes first.

    Raises:
        PlanError: If it is missing, has an unknown key, or a value that is no number from 0 on.
    """
    content = _read((files("cfpo_verl.plan") / "hardware.yaml").read_text(), "hardware.yaml")
    base, gpus = content["base"], content["gpus"]
    if hardware_file is not None:
        try:
            own = _read(hardware_file.read_text(), str(hardware_file))
        except OSError as error:
            raise PlanError(f"{hardware_file}: {error.strerror}") from error
        base = {**base, **(own.get("base") or {})}
        gpus = {**gpus, **{name: {**gpus.get(name, {}), **keys} for name, keys in (own.get("gpus") or {}).items()}}
    return {name: _gpu(name, {**base, **keys}) for name, keys in gpus.items()}


def _gpu(name: str, keys: dict[str, Any]) -> Gpu:
    expected = {field.name for field in fields(Gpu)} - {"name"}
    wrong = sorted((expected - set(keys)) | (set(keys) - expected))
    if wrong:
        raise PlanError(f"GPU type {name}: these keys are missing or unknown: {', '.join(wrong)}")
    for key, value in keys.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Overheads and reserves may be 0; everything else divides.
        may_be_zero = key.endswith(("overhead_s", "reserved_gb"))
        if not is_number or value < 0 or (value == 0 and not may_be_zero):
            raise PlanError(f"GPU type {name}: {key} must be a positive number, got {value!r}")
    return Gpu(name=name, **{key: float(value) for key, value in keys.items()})


def find_gpu(name: str, hardware_file: Path | None = None) -> Gpu:
    """Return a GPU type by its name.

    Raises:
        PlanError: If there is none of that name, or the file is not right.
    """
    known = gpu_types(hardware_file)
    if name not in known:
        raise PlanError(
            f"no GPU type called {name!r}. Choose one of: {', '.join(known)}, or add it with --hardware FILE"
        )
    return known[name]
