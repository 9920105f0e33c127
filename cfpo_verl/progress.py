"""Show how a run goes, from the metrics file that verl writes while it trains."""

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
    """Return one line with the numbers one looks at first.

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


@contextmanager
def following(metrics_file: Path, total_steps: int | None, stream: TextIO) -> Iterator[None]:
    """Show a progress bar, and a line for each step, while the block runs.

    Args:
        metrics_file: verl's metrics file; it need not exist yet.
        total_steps: Number of training steps, None if not known beforehand.
        stream: Where to show it. What is printed elsewhere meanwhile is left alone.
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
                if metrics_file.exists():
                    with metrics_file.open() as file:
                        file.seek(position)
                        while (line := file.readline()).endswith("\n"):
                            position = file.tell()
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
