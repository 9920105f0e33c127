"""Show the progress of a run, from the metrics file that verl writes while it trains."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_POLL_S = 0.5


def describe(step: int, metrics: dict[str, Any]) -> str:
    """Return one line with the most important metrics of a step.

    Example:
        >>> describe(3, {"critic/score/mean": 0.5, "timing_s/step": 7.25})
        'step 3  reward 0.500  time 7.2 s'
    """
    shown = [f"step {step}"]
    for label, name, form in (
        ("reward", "critic/score/mean", ".3f"),
        ("kl", "actor/ppo_kl", ".4f"),
        ("|r-1|", "actor/cfpo/ratio_deviation", ".4f"),
        ("clipfrac", "actor/pg_clipfrac", ".3f"),
        ("entropy", "actor/entropy", ".3f"),
        ("time", "timing_s/step", ".1f"),
    ):
        if metrics.get(name) is not None:
            shown.append(f"{label} {metrics[name]:{form}}" + (" s" if label == "time" else ""))
    shown += [
        f"validation {value:.3f}"
        for name, value in metrics.items()
        if name.startswith("val-core/") and "acc/mean@" in name and value is not None
    ]
    return "  ".join(shown)


def _new_lines(file: Path, position: int) -> tuple[list[str], int]:
    """Return the complete lines after a position, and the position after them."""
    lines: list[str] = []
    if file.exists():
        with file.open() as stream:
            stream.seek(position)
            while (line := stream.readline()).endswith("\n"):
                position = stream.tell()
                lines.append(line)
    return lines, position


@contextmanager
def following(metrics_file: Path, total_steps: int | None, stream: TextIO) -> Iterator[None]:
    """Show a progress bar, and a line for each step, while the block runs.

    Args:
        metrics_file: verl's metrics file; it need not exist yet.
        total_steps: Number of training steps, None if unknown.
        stream: Where to show it. Other output is not redirected.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    done = threading.Event()
    console = Console(file=stream)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, redirect_stdout=False, redirect_stderr=False
    ) as progress:
        task = progress.add_task("starting Ray, vLLM and the actor", total=total_steps)

        def follow() -> None:
            position = 0
            while True:
                finished = done.is_set()
                try:
                    lines, position = _new_lines(metrics_file, position)
                except OSError as error:
                    reason = f"{metrics_file}: cannot be read ({error.strerror}). Training continues without progress"
                    console.print(reason, highlight=False, soft_wrap=True)
                    return
                for line in lines:
                    record = json.loads(line)
                    console.print(describe(record["step"], record["data"]), highlight=False, soft_wrap=True)
                    progress.update(task, completed=record["step"], description="training")
                if finished:
                    return
                done.wait(_POLL_S)

        thread = threading.Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
