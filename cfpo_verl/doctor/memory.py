"""The check of GPU memory, by the estimate of `cfpo-verl plan`."""

from collections.abc import Iterator

from omegaconf import DictConfig

from cfpo_verl.doctor.finding import Finding, ok, warning
from cfpo_verl.plan import PlanError, default_gpu, first_advice, memory_per_gpu_gb


def check_memory(config: DictConfig) -> Iterator[Finding]:
    """Estimate the peak of every phase. Too much is a warning and not a failure, because it is an estimate."""
    gpu = default_gpu(config)
    try:
        parts = memory_per_gpu_gb(config, gpu)
        advice = first_advice(config, gpu)
    except PlanError as error:
        yield ok(f"not estimated: {error}")
        return
    peaks = {name.removesuffix("/total"): size for name, size in parts.items() if name.endswith("/total")}
    phase = max(peaks, key=lambda name: peaks[name])
    found = f"about {peaks[phase]:.1f} GB at the peak of {phase}, for {gpu.name} with {gpu.memory_gb:g} GB"
    if advice is None:
        yield ok(found)
    else:
        yield warning(
            f"estimated to need too much memory: {found}", f"First {advice}; see cfpo-verl plan with your --gpu"
        )
