"""Print benchmark results as tables, and put tables into pages of the docs."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def replace_block(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what a page has between two marks."""
    before, _begin, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")


def print_rows(rows: list[dict[str, Any]], title: str) -> None:
    """Print rows as a table, numbers with two decimals."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    # Wide enough for every column where there is no terminal to ask for its width.
    Console(width=120).print(table)
