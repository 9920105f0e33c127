"""Findings as a table and as JSON."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cfpo_verl.doctor.finding import Finding

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def print_table(findings: Sequence[Finding], file: TextIO) -> None:
    """Print a row for each finding, then the counts."""
    # 140 columns if the output is not a terminal.
    console = Console(file=file, width=None if file.isatty() else 140)
    table = Table("", "check", "found", "way out")
    for finding in findings:
        # As Text, so that brackets in a message are not taken for markup.
        status = Text(finding.status, style=_STYLES[finding.status])
        # Folded, because a path or an interpolation may be longer than the column.
        found, way_out = (Text(text, overflow="fold") for text in (finding.found, finding.way_out))
        table.add_row(status, Text(finding.check), found, way_out)
    console.print(table)
    console.print(summary(findings), highlight=False)


def summary(findings: Iterable[Finding]) -> str:
    """Return the counts as a sentence."""
    statuses = [finding.status for finding in findings]
    return ", ".join(f"{statuses.count(status)} {status}" for status in ("failed", "warning", "ok"))


def to_json(findings: Iterable[Finding]) -> str:
    """Return the findings as a JSON list of objects."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)
