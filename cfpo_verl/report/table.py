"""Tables of the metrics of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cfpo_verl.report.grouping import Group
from cfpo_verl.report.metrics import CURVES, VALIDATION, Metrics, data_source
from cfpo_verl.report.statistics import Interval, final_value, mean_interval


def summarise(runs: Mapping[str, Metrics]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: one row per run and reported metric, with its first, last and mean value.

    Args:
        runs: {label: metrics by step}. A single run's label is left out.
    """
    header = ["Run", "Metric", "Steps", "First", "Last", "Mean"]
    rows = []
    for curve in CURVES:
        for label, run in runs.items():
            for metric, points in curve.points(run).items():
                values = [value for _step, value in points]
                numbers = (values[0], values[-1], sum(values) / len(values))
                title = _title(curve.title, metric)
                rows.append([label, title, f"{points[0][0]}-{points[-1][0]}", *(f"{n:.4g}" for n in numbers)])
    return (header, rows) if len(runs) > 1 else (header[1:], [row[1:] for row in rows])


def _title(title: str, metric: str) -> str:
    return f"{title}: {source}" if (source := data_source(metric)) else title


@dataclass(frozen=True)
class FinalNumber:
    """The final value of one metric in every group.

    Args:
        title: Title, with the unit if there is one.
        cells: For each group the mean over seeds with its interval, None if the group does not report the metric.
    """

    title: str
    cells: tuple[Interval | None, ...]


def final_numbers(runs: Mapping[str, Metrics], groups: Sequence[Group]) -> list[FinalNumber]:
    """Return the final value of every reported metric, averaged over the counted runs of each group.

    For a validation metric that is the last measurement, for others the mean over the last tenth of the steps (at least
    the last one).
    """
    numbers = []
    for curve in CURVES:
        points = {name: curve.points(metrics) for name, metrics in runs.items()}
        share = 0.0 if curve is VALIDATION else None
        for metric in dict.fromkeys(metric for found in points.values() for metric in found):
            cells = []
            for group in groups:
                finals = [
                    final_value(points[name][metric], *([] if share is None else [share]))
                    for name in group.counted
                    if metric in points[name]
                ]
                cells.append(mean_interval(finals) if finals else None)
            numbers.append(FinalNumber(_title(curve.title, metric), tuple(cells)))
    return numbers


def to_markdown(header: list[str], rows: list[list[str]]) -> str:
    r"""Return the table as Markdown.

    Example:
        >>> print(to_markdown(["|r - 1|"], [["0.1"]]), end="")
        | \|r - 1\| |
        | --- |
        | 0.1 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
