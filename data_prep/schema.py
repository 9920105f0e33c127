"""The parquet rows that verl trains on, written once and checked on writing and reading."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def _struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


_COLUMNS = {
    "data_source": pa.string(),
    "prompt": pa.list_(pa.field("element", _struct(role=pa.string(), content=pa.string()), nullable=False)),
    "ability": pa.string(),
    "reward_model": _struct(style=pa.string(), ground_truth=pa.string()),
    "extra_info": _struct(index=pa.int64(), split=pa.string()),
}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])


class DataError(ValueError):
    """A data file cannot be used; the message names the file, the rule and the way out."""


@dataclass(frozen=True)
class Problem:
    """One prompt with its verifiable answer, before it becomes a row.

    Args:
        question: What the user says to the model.
        answer: The gold answer, a plain number as text.
    """

    question: str
    answer: str


def to_row(problem: Problem, data_source: str, ability: str, split: str, index: int) -> dict[str, Any]:
    """Return one row in verl's schema."""
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": problem.question}],
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {"index": index, "split": split},
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows to a parquet file, read it back, and put it in place only if that succeeded.

    Args:
        path: The file to write; its folder is made.
        rows: Rows as `to_row` makes them.

    Returns:
        The path.

    Raises:
        DataError: If there are no rows, a value does not fit `SCHEMA`, or what was read back differs.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, unfinished)
        check_file(unfinished)
        if pq.read_table(unfinished).to_pylist() != table.to_pylist():
            raise DataError(f"{path}: what was read back differs from what was written")
        unfinished.replace(path)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{path}: a row does not fit the schema: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def write_train_and_test(out: Path, problems: Sequence[Problem], held_out: int, data_source: str) -> list[Path]:
    """Write `test.parquet` with the first `held_out` problems and `train.parquet` with the others.

    Returns:
        The two paths, train first.

    Raises:
        ValueError: If that leaves one of them without problems.
    """
    if not 0 < held_out < len(problems):
        raise ValueError(f"held_out must be between 1 and {len(problems) - 1}, got {held_out}")
    splits = {"train": problems[held_out:], "test": problems[:held_out]}
    return [
        write_rows(
            out / f"{split}.parquet",
            [to_row(problem, data_source, "math", split, index) for index, problem in enumerate(members)],
        )
        for split, members in splits.items()
    ]


def check_file(path: Path) -> int:
    """Check that verl can train on a parquet file and return its number of rows.

    Files of other origin may have more columns and more fields; the ones that verl reads must be there.

    Raises:
        DataError: If the file is missing, empty, not parquet, or lacks something verl reads.
    """
    way_out = "Write one with: cfpo-verl data prepare --help"
    if not path.is_file():
        raise DataError(f"{path}: no such file. {way_out}")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({error}). {way_out}") from error
    with file:
        needed = {"data_source": None, "prompt": None, "reward_model": "ground_truth"}
        for column, inner in needed.items():
            if column not in file.schema_arrow.names:
                raise DataError(
                    f"{path}: column {column!r} is missing (found: {', '.join(file.schema_arrow.names)}). {way_out}"
                )
            kind = file.schema_arrow.field(column).type
            if inner and not (pa.types.is_struct(kind) and kind.get_field_index(inner) >= 0):
                raise DataError(f"{path}: column {column!r} must be a struct with the field {inner!r}. {way_out}")
        if file.metadata.num_rows == 0:
            raise DataError(f"{path}: the file has no rows. {way_out}")
        return file.metadata.num_rows


def read_problems(path: Path) -> list[Problem]:
    """Read the user's words and the gold answers of a parquet file in verl's schema."""
    check_file(path)
    columns = pq.read_table(path, columns=["prompt", "reward_model"]).to_pylist()
    return [Problem(row["prompt"][-1]["content"], row["reward_model"]["ground_truth"]) for row in columns]
