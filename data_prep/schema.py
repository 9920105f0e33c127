"""The parquet rows that verl trains on, written once and checked on writing and reading."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cfpo_verl.data_prep.text import fingerprint, normalise
from cfpo_verl.errors import UserError


def _struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


_COLUMNS = {
    "data_source": pa.string(),
    "prompt": pa.list_(pa.field("element", _struct(role=pa.string(), content=pa.string()), nullable=False)),
    "ability": pa.string(),
    "reward_model": _struct(style=pa.string(), ground_truth=pa.string()),
    "extra_info": _struct(
        index=pa.int64(),
        split=pa.string(),
        # Id of the row in the source, if it has one, else "".
        source_id=pa.string(),
        # The problem as the source has it, without instructions.
        problem=pa.string(),
        # Stands for normalised problem and answer, whatever the file, the order or the instructions.
        uid=pa.string(),
    ),
}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])


class DataError(UserError):
    """A data file cannot be used; the message names the file, the rule and the way out."""


@dataclass(frozen=True)
class Problem:
    """One problem with its verifiable answer, before it becomes a row.

    Args:
        question: What is asked.
        answer: The gold answer.
        source_id: Id of the problem in its source, if it has one.
        data_source: Name for this problem alone, where a source has several; a key of
            `cfpo_verl.data_sources.DATA_SOURCES`.
    """

    question: str
    answer: str
    source_id: str = ""
    data_source: str = ""


def to_row(
    problem: Problem, data_source: str, ability: str, split: str, index: int, prompt: str | None = None
) -> dict[str, Any]:
    """Return one row in verl's schema.

    Args:
        problem: What is asked, and the answer.
        data_source: A key of `cfpo_verl.data_sources.DATA_SOURCES`.
        ability: verl's name for the kind of task.
        split: Name of the split.
        index: Number of the row in its file.
        prompt: What the user says to the model; None for the question alone.
    """
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": problem.question if prompt is None else prompt}],
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {
            "index": index,
            "split": split,
            "source_id": problem.source_id,
            "problem": problem.question,
            "uid": fingerprint(normalise(problem.question), normalise(problem.answer)),
        },
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


def holds_null(value: Any) -> bool:
    """Return whether a value read from a file is null, or has a null in it."""
    if isinstance(value, dict):
        return any(map(holds_null, value.values()))
    if isinstance(value, list):
        return any(map(holds_null, value))
    return value is None


def _has_fields(kind: pa.DataType, *names: str) -> bool:
    return pa.types.is_struct(kind) and all(kind.get_field_index(name) >= 0 for name in names)


def check_file(path: Path, prompt_key: str = "prompt") -> int:
    """Check that verl can train on a parquet file and return its number of rows.

    Files of other origin may have more columns and more fields; the ones that verl reads must be there.

    Args:
        path: The file.
        prompt_key: Name of the column with the prompt, verl's `data.prompt_key`.

    Raises:
        DataError: If the file cannot be read, is empty, is not parquet, or lacks something verl reads.
    """
    way_out = "Write one with: cfpo-verl data prepare --help"
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. {way_out}") from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file ({error}). {way_out}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}). {way_out}") from error
    with file:
        for column in ("data_source", prompt_key, "reward_model"):
            if column not in file.schema_arrow.names:
                raise DataError(
                    f"{path}: column {column!r} is missing (found: {', '.join(file.schema_arrow.names)}). {way_out}"
                )
        kind = file.schema_arrow.field("reward_model").type
        if not _has_fields(kind, "ground_truth"):
            raise DataError(f"{path}: column 'reward_model' must be a struct with ground_truth, is {kind}. {way_out}")
        kind = file.schema_arrow.field(prompt_key).type
        if not (
            (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _has_fields(kind.value_type, "role", "content")
        ):
            raise DataError(
                f"{path}: column {prompt_key!r} must be a list of structs with role and content, is {kind}. {way_out}"
            )
        if file.metadata.num_rows == 0:
            raise DataError(f"{path}: the file has no rows. {way_out}")
        return file.metadata.num_rows


def read_golds(path: Path) -> list[tuple[str, str]]:
    """Read data source and gold answer of every row of a parquet file in verl's schema."""
    rows = pq.read_table(path, columns=["data_source", "reward_model"]).to_pylist()
    return [(row["data_source"], row["reward_model"]["ground_truth"]) for row in rows]


def read_problems(path: Path) -> list[Problem]:
    """Read the user's words and the gold answers of a parquet file in verl's schema."""
    check_file(path)
    columns = pq.read_table(path, columns=["prompt", "reward_model"]).to_pylist()
    return [Problem(row["prompt"][-1]["content"], row["reward_model"]["ground_truth"]) for row in columns]
