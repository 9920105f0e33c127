"""GPU types and their assumed efficiencies."""

import math
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from cfpo_verl.files import read_mapping
from cfpo_verl.plan.errors import PlanError


@dataclass(frozen=True)
class Gpu:
    """A GPU type with its links and assumed efficiencies; hardware.yaml explains each key."""

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
        """Return the bytes per second of a collective, within a node or between nodes."""
        return (self.nvlink_gb_s if within_node else self.network_gb_s) * 1e9 * self.network_efficiency


def _read(file: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the base values and the GPU types of a user's file."""
    content = read_mapping(file)
    if unknown := sorted(set(content) - {"base", "gpus"}):
        raise PlanError(f"{file}: only the keys base and gpus are allowed, got {', '.join(unknown)}")
    base, gpus = content.get("base") or {}, content.get("gpus") or {}
    for place, node in {"base": base, "gpus": gpus}.items():
        if not isinstance(node, dict):
            raise PlanError(f"{file}: {place} must be a mapping of keys to values, got {node!r}")
    for name, keys in gpus.items():
        if not isinstance(keys, dict):
            raise PlanError(f"{file}: gpus.{name} must be a mapping of keys to numbers, got {keys!r}")
    return base, gpus


def gpu_types(hardware_file: Path | None = None) -> dict[str, Gpu]:
    """Return the known GPU types.

    Args:
        hardware_file: YAML file in the form of hardware.yaml, whose values take precedence.

    Raises:
        FileError: If the file cannot be read or is not YAML.
        PlanError: If a key is missing or unknown, or a value is not a positive number.
    """
    content = yaml.safe_load((files("cfpo_verl.plan") / "hardware.yaml").read_text())
    base, gpus = content["base"], content["gpus"]
    if hardware_file is not None:
        own_base, own_gpus = _read(hardware_file)
        base = {**base, **own_base}
        gpus = {**gpus, **{name: {**gpus.get(name, {}), **keys} for name, keys in own_gpus.items()}}
    source = f"{hardware_file}: " if hardware_file else ""
    return {str(name): _gpu(str(name), {**base, **keys}, source) for name, keys in gpus.items()}


def _gpu(name: str, keys: dict[Any, Any], source: str) -> Gpu:
    expected = {field.name for field in fields(Gpu)} - {"name"}
    missing, unknown = sorted(expected - set(keys)), sorted(map(str, set(keys) - expected))
    for what, wrong in {"missing": missing, "unknown": unknown}.items():
        if wrong:
            raise PlanError(f"{source}GPU type {name}: {what} keys: {', '.join(wrong)}")
    for key, value in keys.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Everything but overheads and reserves is a divisor.
        may_be_zero = key.endswith(("overhead_s", "reserved_gb"))
        if not is_number or not 0 <= value < math.inf or (value == 0 and not may_be_zero):
            minimum = "of at least 0" if may_be_zero else "above 0"
            raise PlanError(f"{source}GPU type {name}: {key} must be a number {minimum}, got {value!r}")
    return Gpu(name=name, **{key: float(value) for key, value in keys.items()})


def find_gpu(name: str, hardware_file: Path | None = None) -> Gpu:
    """Return a GPU type by name.

    Raises:
        FileError: If the file cannot be read or is not YAML.
        PlanError: If there is no such type, or a value in the file is invalid.
    """
    known = gpu_types(hardware_file)
    if name not in known:
        raise PlanError(
            f"no GPU type is named {name!r}. Choose one of: {', '.join(known)}, or add it with --hardware FILE"
        )
    return known[name]
