"""How the cost of a run grows with the number of GPUs."""

from dataclasses import dataclass

from cfpo_verl.plan.hardware import Gpu
from cfpo_verl.plan.memory import phases
from cfpo_verl.plan.run import Run
from cfpo_verl.plan.step_time import step_time

GPU_COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
# Our choice: more GPUs do not pay once the work per GPU falls below this share of the smallest cluster's.
WORTHWHILE = 0.5


@dataclass(frozen=True)
class Scaled:
    """The run on a number of GPUs.

    Args:
        gpus: Total number of GPUs.
        step_s: Seconds of a step.
        generation_s: Seconds of it spent on generation.
        gpu_hours_per_100_steps: GPU hours of 100 steps.
        efficiency: Work per GPU and second, relative to the first row.
        fits: Whether the run fits in memory.
    """

    gpus: int
    step_s: float
    generation_s: float
    gpu_hours_per_100_steps: float
    efficiency: float
    fits: bool


def scale(run: Run, gpu: Gpu) -> list[Scaled]:
    """Return the run on 8 to 1,024 GPUs, without the numbers that its parallel sizes do not divide."""
    rows: list[Scaled] = []
    for gpus in GPU_COUNTS:
        scaled = run.on_gpus(gpus)
        trainer, rollout = scaled.trainer, scaled.rollout
        if trainer.gpus == 0 or trainer.gpus % trainer.gpus_per_sequence or rollout.gpus % rollout.tensor_parallel:
            continue
        times = step_time(scaled, gpu)
        cost = gpus * times.total_s
        first = rows[0].gpus * rows[0].step_s if rows else cost
        rows.append(
            Scaled(
                gpus=gpus,
                step_s=times.total_s,
                generation_s=times.generation_s,
                gpu_hours_per_100_steps=100 * cost / 3600,
                efficiency=first / cost,
                fits=all(phase.total_gb <= gpu.memory_gb for phase in phases(scaled, gpu)),
            )
        )
    return rows


def stops_paying_at(rows: list[Scaled]) -> int | None:
    """Return the first number of GPUs with an efficiency below `WORTHWHILE`, None if there is none."""
    return next((row.gpus for row in rows if row.efficiency < WORTHWHILE), None)
