"""Draw runs against training steps."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from cfpo_verl.report.metrics import CURVES, Run


def draw(runs: Mapping[str, Run], path: Path) -> Path:
    """Draw one panel per curve with all runs overlaid, and save it as PNG.

    Args:
        runs: {label: metrics by step}. The order decides the colours.
        path: The file to write.

    Returns:
        The path.
    """
    # Figure, not pyplot: no global state and no display needed.
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    for axes, curve in zip(figure.subplots(2, 3).flat, CURVES, strict=True):
        for number, (label, run) in enumerate(runs.items()):
            lines = curve.points(run)
            for name, points in lines.items():
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, marker="o", markersize=3, color=f"C{number}", label=_label(label, name, lines))
        if not axes.lines:
            axes.text(0.5, 0.5, "not reported", ha="center", va="center", transform=axes.transAxes, color="gray")
        elif len(runs) > 1 or len(axes.lines) > 1:
            axes.legend(fontsize="small")
        axes.set_title(curve.title)
        axes.set_xlabel("training step")
        axes.grid(alpha=0.3)
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)))
    figure.savefig(path, dpi=120)
    return path


def _label(run: str, metric: str, lines: Mapping[str, object]) -> str:
    """Name the run, and the data source too where one run has several."""
    return run if len(lines) == 1 else f"{run}: {'/'.join(metric.split('/')[1:-2])}"
