"""Downloads from W&B: the history of a run as a table, and the CSV export of a chart.

A history has a row for each step and a column for each metric: `run.history()` or `run.scan_history()` of W&B's API
written as CSV, JSON, JSON lines or parquet, or the parquet file of the artifact <run>-history. The export of a chart
has the columns Step, "<run> - <metric>", "...__MIN" and "...__MAX", for one or a few metrics of any number of runs.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from cfpo_verl.errors import first_line
from cfpo_verl.report.run import ReportError, Run

_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
_STEP = "_step"
# Columns that W&B adds to the metrics.
_OWN = ("_runtime", "_timestamp", "_wandb")
_CHART_STEPS = ("Step", "_step", "trainer/global_step", "training/global_step")


def accepts(path: Path) -> bool:
    """Return whether this is a table."""
    return path.suffix in _SUFFIXES and path.is_file()


def is_chart(path: Path) -> bool:
    """Return whether this is the CSV export of a chart.

    Raises:
        ReportError: If a .csv file is not a table.
    """
    if path.suffix != ".csv" or not path.is_file():
        return False
    columns = list(map(str, _read_table(path).columns))
    return bool(columns) and _STEP not in columns and any(" - " in column for column in columns[1:])


def read_history(path: Path) -> Run:
    """Read the history of a run.

    Raises:
        ReportError: If the file is not one.
    """
    table = _read_table(path)
    if _STEP not in table.columns:
        raise ReportError(
            f"{path}: no metrics by step here. A history of W&B has the column {_STEP}, the export of a chart has Step "
            f'and "<run> - <metric>"; this has {", ".join(map(str, table.columns[:6])) or "no columns"}. Export a '
            "chart, or save run.scan_history() of W&B's API"
        )
    metrics: dict[int, dict[str, float]] = defaultdict(dict)
    for name in table.columns:
        if name == _STEP or str(name).startswith(_OWN):
            continue
        for step, value in zip(table[_STEP], table[name], strict=True):
            number, at = _number(value), _number(step)
            if number is not None and at is not None and math.isfinite(at):
                metrics[int(at)][str(name)] = number
    if not metrics:
        raise ReportError(f"{path}: no row has a number")
    return Run(path.stem, "W&B history", dict(sorted(metrics.items())), folder=path)


def read_charts(paths: Sequence[Path]) -> list[Run]:
    """Read exports of charts, and join their metrics by run.

    Raises:
        ReportError: If the x axis of one is not the step.
    """
    runs: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for path in paths:
        table = _read_table(path)
        by = str(table.columns[0])
        if by not in _CHART_STEPS:
            raise ReportError(
                f"{path}: exported over {by}, not over steps. Set the chart's x axis to Step and export it again"
            )
        for column in map(str, table.columns[1:]):
            run, dash, metric = column.rpartition(" - ")
            if not dash or metric.endswith(("__MIN", "__MAX")):
                continue
            for step, value in zip(table[by], table[column], strict=True):
                number, at = _number(value), _number(step)
                if number is not None and at is not None and math.isfinite(at):
                    runs[run][int(at)][metric] = number
    files = ", ".join(path.name for path in paths)
    return [
        Run(name, "W&B charts", dict(sorted(metrics.items())), notes=(f"has only the exported charts: {files}",))
        for name, metrics in runs.items()
    ]


def _read_table(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".csv":
            return pd.read_csv(path)
        if path.suffix == ".jsonl":
            return pd.DataFrame(_json_lines(path))
        return pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}, line {error.lineno}: not a table: not JSON ({error.msg})") from error
    except (ValueError, TypeError, AttributeError, pa.ArrowException) as error:  # from pandas and pyarrow
        raise ReportError(f"{path}: not a table that can be read ({first_line(error)})") from error


def _json_lines(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ReportError(f"{path}, line {number}: not a table: not JSON ({error.msg})") from error
    return rows


def _number(value: object) -> float | None:
    """Return a value as a number, or None if it is empty or not a number.

    Cells are empty where a step did not report the metric. W&B writes NaN and infinities as words.

    Example:
        >>> _number(0.5), _number("Infinity"), _number(float("nan")), _number("a text"), _number(True)
        (0.5, inf, None, None, None)
    """
    if isinstance(value, str):
        return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(value)
    if isinstance(value, bool) or not hasattr(value, "__float__") or pd.isna(value):
        return None
    return float(value)
