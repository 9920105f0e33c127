"""Print evaluations as tables."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from cfpo_verl.evaluation.comparison import Row
from cfpo_verl.terminal import wide_console


def print_summary(summary: dict[str, Any]) -> None:
    """Print the metrics of each set with their 95 percent intervals."""
    table = Table("set", "problems", "samples", "metric", "value", "95 % interval")
    for name, found in summary["sets"].items():
        head = [name, str(found["problems"]), str(found["samples"])]
        for metric, numbers in found["metrics"].items():
            form = "{:.1f}" if metric == "response_tokens" else "{:.3f}"
            value = form.format(numbers["value"])
            if numbers.get("standard_error"):
                value += f" ± {numbers['standard_error']:.3f}"
            interval = f"{form.format(numbers['low'])} to {form.format(numbers['high'])}"
            table.add_row(*head, metric, value, interval)
            head = ["", "", ""]
        table.add_section()
    wide_console().print(table)


def print_comparison(rows: Sequence[Row], first: str, second: str) -> None:
    """Print a comparison of two evaluations: second minus first."""
    table = Table(
        "set", "problems", "metric", first, second, "difference", "95 % interval", "better / worse / equal", "sign test"
    )
    before = None
    for row in rows:
        form = "{:.1f}" if row.metric == "response_tokens" else "{:.3f}"
        if before is not None and row.set != before:
            table.add_section()
        head = [row.set, str(row.problems)] if row.set != before else ["", ""]
        before = row.set
        table.add_row(
            *head,
            row.metric,
            form.format(row.first),
            form.format(row.second),
            form.replace(":", ":+").format(row.paired.difference),
            f"{form.replace(':', ':+').format(row.paired.low)} to {form.replace(':', ':+').format(row.paired.high)}",
            f"{row.paired.better} / {row.paired.worse} / {row.paired.equal}",
            f"p = {row.paired.p_value:.2g}",
        )
    wide_console().print(table)
