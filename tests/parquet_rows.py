"""Rows in a parquet file, for tests that read one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cfpo_verl.data_prep.schema import SCHEMA
from cfpo_verl.data_prep.writing import put_in_place


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as `to_row` makes them, and return the path."""
    put_in_place(path, (pa.Table.from_pylist(list(rows), schema=SCHEMA) for _ in range(1)), dict)
    return path
