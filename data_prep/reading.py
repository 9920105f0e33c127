"""Read record batches from files and the hub, and drop repeated rows."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cfpo_verl.data_prep.schema import DataError
from cfpo_verl.data_prep.schema import read_batches as read_parquet
from cfpo_verl.data_prep.source import Source
from cfpo_verl.errors import first_line

BATCH_ROWS = 20_000


def read_batches(source: Source, origin: str, split: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a local file or a hub data set, only the columns that the source reads.

    Raises:
        DataError: With file, line or row, and column of what cannot be read.
    """
    suffix = Path(origin).suffix
    if suffix == ".parquet":
        batches: Iterable[pa.RecordBatch] = read_parquet(Path(origin), BATCH_ROWS)
    elif suffix in (".jsonl", ".json"):
        batches = _json_batches(Path(origin), source)
    elif os.path.exists(origin):
        raise DataError(f"{origin}: only .jsonl, .json and .parquet files are read. Convert it, or give a hub id")
    else:
        batches = _hub_batches(source, origin, split)
    for batch in batches:
        missing = [column for column in source.columns if column not in batch.schema.names]
        if missing:
            raise DataError(
                f"{origin}: column {missing[0]!r} is missing (found: {', '.join(batch.schema.names)}); "
                f"{source.name} has the columns {', '.join(source.columns)}"
            )
        wanted = [*source.columns, *(name for name in source.optional_columns if name in batch.schema.names)]
        yield batch.select(wanted)


def _json_batches(path: Path, source: Source) -> Iterator[pa.RecordBatch]:
    rows: list[Mapping[str, Any]] = []
    for place, row in _json_rows(path):
        if not isinstance(row, dict):
            raise DataError(f"{path}, {place}: a row must be a JSON object, is {type(row).__name__}")
        missing = [column for column in source.columns if column not in row]
        if missing:
            raise DataError(f"{path}, {place}: column {missing[0]!r} is missing (found: {', '.join(row)})")
        # Every name in every row: the first row of a batch decides which columns there are.
        rows.append({name: row.get(name) for name in (*source.columns, *source.optional_columns)})
        if len(rows) == BATCH_ROWS:
            yield _to_batch(path, rows)
            rows = []
    if rows:
        yield _to_batch(path, rows)


def _to_batch(path: Path, rows: list[Mapping[str, Any]]) -> pa.RecordBatch:
    try:
        return pa.RecordBatch.from_pylist(rows)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise DataError(f"{path}: a column has values of different or unsupported types ({error})") from error


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("line 3", row) of a .jsonl file or ("row 3", row) of a .json file."""
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".json":
                content = json.load(file)
                if not isinstance(content, list):
                    raise DataError(f"{path}: must be a list of rows, is a {type(content).__name__}")
                yield from ((f"row {number}", row) for number, row in enumerate(content, start=1))
                return
            # By line feed only: str.splitlines would also cut at separators that JSON allows inside a string.
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield f"line {number}", json.loads(line)
                    except json.JSONDecodeError as error:
                        raise DataError(f"{path}, line {number}: not JSON ({error})") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}: {error.reason})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _hub_batches(source: Source, hub_id: str, split: str) -> Iterator[pa.RecordBatch]:
    from datasets import load_dataset

    # The pinned configuration and revision belong to the source's own id; another id has its own.
    own = hub_id == source.hub_id
    try:
        data = load_dataset(
            hub_id,
            source.hub_config if own else None,
            split=split,
            revision=source.revision if own else None,
        )
    except Exception as error:  # datasets raises whatever the hub, the network or the file makes it raise
        raise DataError(
            f"{hub_id}: neither a local .jsonl, .json or .parquet file nor a data set that can be loaded from the hub "
            f"({first_line(error)})"
        ) from error
    for table in data.with_format("arrow").iter(BATCH_ROWS):
        yield from table.combine_chunks().to_batches()


def distinct(batches: Iterable[pa.RecordBatch], columns: Sequence[str]) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Yield each batch's rows that differ from all earlier rows in some column, and the number of the others.

    Rows are compared by 128-bit hashes, computed column by column, so repeated rows never become Python objects.
    """
    seen: set[tuple[int, int]] = set()
    for batch in batches:
        first = []
        for position, key in enumerate(zip(*row_hashes(batch.select(columns)), strict=True)):
            if key not in seen:
                seen.add(key)
                first.append(position)
        repeated = len(batch) - len(first)
        yield (batch.take(pa.array(first, pa.int64())) if repeated else batch).to_pylist(), repeated


_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def row_hashes(batch: pa.RecordBatch) -> list[list[int]]:
    """Return two independent 64-bit hashes of every row, computed column by column; the same in every process."""
    hashes = []
    for key in ("cfpo_verl 1st...", "cfpo_verl 2nd..."):  # 16 characters each
        total = np.zeros(len(batch), dtype=np.uint64)
        for column in batch.columns:
            total = total * _MULTIPLIER + _hash_column(column, key)
        hashes.append(total.tolist())
    return hashes


def _hash_column(column: pa.Array, key: str) -> np.ndarray:
    """Hash each value independently of the other rows, structs and lists by their contents in order."""
    kind, is_null = column.type, column.is_null().to_numpy(zero_copy_only=False).astype(np.uint64)
    if pa.types.is_struct(kind):
        total = is_null
        for place in range(kind.num_fields):
            total = total * _MULTIPLIER + _hash_column(pc.struct_field(column, [place]), key)
        return total
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        ends = np.cumsum(lengths)
        elements = _hash_column(column.flatten(), key)
        places = (np.arange(len(elements)) - np.repeat(ends - lengths, lengths)).astype(np.uint64)
        sums = np.append(np.uint64(0), np.cumsum(elements * _MULTIPLIER**places, dtype=np.uint64))
        return (sums[ends] - sums[ends - lengths]) * _MULTIPLIER + lengths.astype(np.uint64) * np.uint64(2) + is_null
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        column = pa.array([None if value is None else repr(value) for value in column.to_pylist()], pa.string())
    return pd.util.hash_array(column.to_numpy(zero_copy_only=False), hash_key=key, categorize=False)
