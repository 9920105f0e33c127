"""Summarise runs in one table."""

from collections.abc import Mapping

from cfpo_verl.report.metrics import CURVES, STEP_TIME, Run


def summarise(runs: Mapping[str, Run]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: one row per run and reported metric, with its first, last and mean value.

    Args:
        runs: {label: metrics by step}. A single run's label is left out.
    """
    header = ["Run", "Metric", "Steps", "First", "Last", "Mean"]
    rows = []
    for curve in (*CURVES, STEP_TIME):
        for label, run in runs.items():
            for points in curve.points(run).values():
                values = [value for _step, value in points]
                numbers = (values[0], values[-1], sum(values) / len(values))
                rows.append([label, curve.title, f"{points[0][0]}-{points[-1][0]}", *(f"{n:.4g}" for n in numbers)])
    return (header, rows) if len(runs) > 1 else (header[1:], [row[1:] for row in rows])


def to_markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return the table as Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
