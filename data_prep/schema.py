"""Schema of the parquet rows that verl trains on, checked on writing and reading."""

from collections.abc import Iterator, Sequence
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
        # Fingerprint of normalised problem and answer, independent of file, order and instructions.
        uid=pa.string(),
    ),
}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])
_BATCH_ROWS = 20_000


class DataError(UserError):
    """A data file cannot be used; the message names the file, the rule and the way out."""


@dataclass(frozen=True)
class Problem:
    """One problem with its verifiable answer, before it becomes a row.

    Args:
        question: Text of the problem.
        answer: The gold answer.
        source_id: Id of the problem in its source, if it has one.
        data_source: Data source of this problem, where it differs from that of the whole source; a key of
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
        problem: The problem with its answer.
        data_source: A key of `cfpo_verl.data_sources.DATA_SOURCES`.
        ability: verl's name for the kind of task.
        split: Name of the split.
        index: Number of the row in its file.
        prompt: Text of the user message; None for the question alone.
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


def cast(table: pa.Table, name: object) -> pa.Table:
    """Return a table with the types of `SCHEMA`.

    Raises:
        DataError: If a value does not fit; the message begins with `name`.
    """
    try:
        return table.cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:  # pyarrow raises a plain ValueError for a null in a column
        raise DataError(f"{name}: a row does not fit the schema: {error}") from error


def read_batches(path: Path, batch_rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a parquet file.

    Raises:
        DataError: If it is not a whole parquet file.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_rows, columns=columns)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole parquet file ({error})") from error


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


def read_problems(path: Path) -> list[Problem]:
    """Read the last message and the gold answer of every row of a parquet file in verl's schema.

    Raises:
        DataError: If the file cannot be read, or a prompt or ground truth is not text.
    """
    check_file(path)
    columns = ["prompt", "reward_model"]
    rows = (row for batch in read_batches(path, _BATCH_ROWS, columns) for row in batch.to_pylist())
    return [_read_problem(path, number, row) for number, row in enumerate(rows)]


def _read_problem(path: Path, number: int, row: dict[str, Any]) -> Problem:
    match row:
        case {"prompt": [*_, {"content": str(question)}], "reward_model": {"ground_truth": str(answer)}}:
            return Problem(question, answer)
    raise DataError(
        f"{path}, row {number}: the prompt or the ground truth is not text. "
        f"See what is wrong with: cfpo-verl data validate {path}"
    )
