"""The output of `cfpo-verl plan`: JSON, tables and the figure."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from cfpo_verl.files import replacing
from cfpo_verl.plan.advice import first_change
from cfpo_verl.plan.errors import PlanError
from cfpo_verl.plan.hardware import Gpu
from cfpo_verl.plan.memory import kv_tokens, phases
from cfpo_verl.plan.run import Run
from cfpo_verl.plan.scale import WORTHWHILE, Scaled, stops_paying_at
from cfpo_verl.plan.step_time import concurrency, step_time


def estimate(run: Run, gpu: Gpu) -> dict[str, Any]:
    """Return all estimates of a run, ready for JSON.

    Args:
        run: The run.
        gpu: The GPU type.
    """
    times, advice, steps = step_time(run, gpu), first_change(run, gpu), run.batch.steps
    hours = run.gpus * times.total_s / 3600
    return {
        "gpu": gpu.name,
        "gpus": run.gpus,
        "parameters": run.shape.parameters,
        "memory_gb": gpu.memory_gb,
        "fits": advice is None,
        "first_change": None
        if advice is None
        else {"key": advice.key, "value": advice.value, "is_enough": advice.is_enough},
        "memory_per_gpu_gb": {phase.name: {**phase.parts_gb, "total": phase.total_gb} for phase in phases(run, gpu)},
        "kv_cache_tokens_per_engine": int(kv_tokens(run, gpu)),
        "sequences_at_once_per_engine": int(concurrency(run, gpu)),
        "tokens_per_step": run.batch.tokens,
        "mean_response_tokens": run.batch.response_tokens,
        "mean_prompt_tokens": run.batch.prompt_tokens,
        "optimizer_steps_per_step": run.batch.optimizer_steps,
        "seconds_per_step": {**times.phases_s(), "total": times.total_s},
        "overlaps": times.overlaps,
        "tokens_per_second_and_gpu": run.batch.tokens / times.total_s / run.gpus,
        "gpu_hours_per_100_steps": 100 * hours,
        "steps": steps,
        "gpu_hours": None if steps is None else steps * hours,
    }


def scaling(rows: list[Scaled]) -> dict[str, Any]:
    """Return the scaling table and the number of GPUs at which it stops paying, ready for JSON."""
    return {"rows": [asdict(row) for row in rows], "stops_paying_at_gpus": stops_paying_at(rows)}


def _significant(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _gb(size: float) -> str:
    return f"{size:.1f}" if size >= 0.05 else "< 0.1"


def render(found: dict[str, Any]) -> Group:
    """Return the tables of `estimate` for the terminal."""
    memory = Table("GB of a GPU", *found["memory_per_gpu_gb"], title=f"{found['gpus']} x {found['gpu']}")
    parts = list(dict.fromkeys(part for phase in found["memory_per_gpu_gb"].values() for part in phase))
    for part in [*(part for part in parts if part != "total"), "total"]:
        cells = [phase.get(part) for phase in found["memory_per_gpu_gb"].values()]
        memory.add_row(part, *("" if cell is None else _gb(cell) for cell in cells), end_section=part == parts[-2])
    time = Table("phase", "seconds per step")
    for phase, seconds in found["seconds_per_step"].items():
        time.add_row(
            "total, phases overlap" if phase == "total" and found["overlaps"] else phase, _significant(seconds)
        )
    lines = [
        f"{_significant(found['parameters'] / 1e6)} million parameters; "
        f"{_significant(found['tokens_per_step'])} tokens per step, "
        f"responses of {found['mean_response_tokens']:g} tokens on average, "
        f"{found['optimizer_steps_per_step']} optimiser steps",
        f"an engine's KV cache holds {found['kv_cache_tokens_per_engine']:,} tokens; "
        f"{found['sequences_at_once_per_engine']:,} sequences at once",
        f"{_significant(found['gpu_hours_per_100_steps'])} GPU hours for 100 steps",
    ]
    if found["gpu_hours"] is None:
        lines.append("the number of steps is unknown: set trainer.total_training_steps, or give data files that exist")
    else:
        lines.append(f"{_significant(found['gpu_hours'])} GPU hours for {found['steps']:,} steps")
    if found["fits"]:
        lines.append(f"It fits in {found['memory_gb']:g} GB.")
    elif found["first_change"] is None:
        lines.append(f"It does not fit in {found['memory_gb']:g} GB, and no single setting changes that.")
    else:
        change = found["first_change"]
        override = shlex.quote(f"{change['key']}={change['value']}")
        also = "" if change["is_enough"] else " (not enough alone: run plan again with it)"
        lines.append(f"It does not fit in {found['memory_gb']:g} GB. First change: {override}{also}")
    return Group(memory, time, *lines)


def render_scaling(rows: list[Scaled]) -> Group:
    """Return the scaling table for the terminal."""
    table = Table("GPUs", "seconds per step", "of which generation", "GPU hours, 100 steps", "efficiency", "fits")
    for row in rows:
        table.add_row(
            f"{row.gpus:,}",
            _significant(row.step_s),
            _significant(row.generation_s),
            _significant(row.gpu_hours_per_100_steps),
            f"{row.efficiency:.0%}",
            "yes" if row.fits else "no",
        )
    end = stops_paying_at(rows)
    said = (
        f"The same batch stops paying at {end:,} GPUs: efficiency below {WORTHWHILE:.0%} of the first row."
        if end
        else f"Efficiency stays above {WORTHWHILE:.0%} of the first row."
    )
    return Group(table, said)


def draw_scaling(rows: list[Scaled], title: str, path: Path) -> Path:
    """Draw seconds per step and cost against the number of GPUs.

    Args:
        rows: At least one.
        title: Above both panels.
        path: File to write; its suffix is the format.

    Returns:
        The path.

    Raises:
        PlanError: If matplotlib does not know the format.
        FileError: If the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(10, 4), layout="constrained")
    time, cost = figure.subplots(1, 2)
    gpus = [row.gpus for row in rows]
    time.plot(gpus, [row.step_s for row in rows], marker="o", label="step")
    time.plot(gpus, [row.generation_s for row in rows], marker="o", label="of which generation")
    time.plot(gpus, [rows[0].step_s * rows[0].gpus / row.gpus for row in rows], "--", color="gray", label="ideal")
    time.set_ylabel("seconds per step")
    time.set_yscale("log")
    time.legend(fontsize="small")
    cost.plot(gpus, [row.gpu_hours_per_100_steps for row in rows], marker="o", color="C2")
    cost.set_ylabel("GPU hours for 100 steps")
    cost.set_yscale("log")
    end = stops_paying_at(rows)
    for axes in (time, cost):
        axes.set_xscale("log", base=2)
        axes.set_xticks(gpus)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("GPUs")
        axes.grid(alpha=0.3)
        if end:
            axes.axvline(end, color="C3", alpha=0.5)
            axes.annotate(
                " stops paying", (end, 0.95), xycoords=("data", "axes fraction"), color="C3", fontsize="small"
            )
    figure.suptitle(title)
    form = path.suffix.removeprefix(".").lower() or "png"
    if form not in figure.canvas.get_supported_filetypes():
        raise PlanError(f"--figure {path}: cannot draw a .{form} file. Choose a name ending in .png, .pdf or .svg")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format=form)
    return path
