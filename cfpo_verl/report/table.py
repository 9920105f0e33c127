"""Summarise runs in one table."""

from collections.abc import Mapping

from cfpo_verl.report.metrics import CURVES, STEP_TIME, Run


def summarise(runs: Mapping[str, Run]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: one row per run and reported metric, with its first, last and mean value.

    Args:
        runs: {label: metrics by step}.
    """
    header = ["Run", "Metric", "First", "Last", "Mean", "Steps"]
    rows = []
    for label, run in runs.items():
        for curve in (*CURVES, STEP_TIME):
            for name, points in curve.points(run).items():
                values = [value for _step, value in points]
                numbers = (values[0], values[-1], sum(values) / len(values))
                rows.append([label, name, *(f"{number:.4g}" for number in numbers), f"{points[0][0]}-{points[-1][0]}"])
    return header, rows


def to_markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return the table as Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
