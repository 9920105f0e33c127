"""Print benchmark results as tables."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_rows(rows: list[dict[str, Any]], title: str) -> None:
    """Print rows as a table, numbers with two decimals."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    # Wide enough for every column where there is no terminal to ask for its width.
    Console(width=120).print(table)
