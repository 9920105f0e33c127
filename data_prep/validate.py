"""Check a parquet file before training; every problem is reported with file, row and column."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cfpo_verl.data_prep.schema import SCHEMA, DataError, check_file, holds_null, read_batches
from cfpo_verl.data_sources import DATA_SOURCES
from cfpo_verl.rewards import unfit_gold

BATCH_ROWS = 20_000
# Problems shown of each kind; the others are counted.
SHOWN = 3


def validate(path: Path, count_tokens: Callable[[Sequence[dict[str, str]]], int] | None, max_tokens: int) -> list[str]:
    """Return a sentence for each problem of a file; none if verl can train on it and the reward can score it.

    Args:
        path: A parquet file.
        count_tokens: Length of a prompt's messages in tokens; None to leave prompts unmeasured.
        max_tokens: Longest allowed prompt, in tokens, if prompts are measured.
    """
    try:
        check_file(path)
        _check_types(path)
    except DataError as error:
        return [str(error)]
    found: dict[str, list[str]] = {}
    uids: dict[str, int] = {}
    rows = (row for batch in read_batches(path, BATCH_ROWS, SCHEMA.names) for row in batch.to_pylist())
    sentences = []
    try:
        for row_number, row in enumerate(rows):
            for column, problem, kind in _problems(row, count_tokens, max_tokens, uids, row_number):
                found.setdefault(kind, []).append(f"{path}, row {row_number}, column {column}: {problem}")
    except DataError as error:
        sentences.append(str(error))
    for problems in found.values():
        sentences += problems[:SHOWN]
        if len(problems) > SHOWN:
            sentences.append(f"{path}: and {len(problems) - SHOWN} more rows like the last one")
    return sentences


def _check_types(path: Path) -> None:
    """Raise DataError unless every column of `SCHEMA` is there with its type; more columns and fields are allowed."""
    actual = pq.read_schema(path)
    for field in SCHEMA:
        if field.name not in actual.names:
            raise DataError(f"{path}: column {field.name!r} is missing (found: {', '.join(actual.names)})")
        if not _fits(actual.field(field.name).type, field.type):
            raise DataError(f"{path}: column {field.name!r} must be {field.type}, is {actual.field(field.name).type}")


def _fits(actual: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_struct(wanted):
        return pa.types.is_struct(actual) and all(
            actual.get_field_index(part.name) >= 0 and _fits(actual.field(part.name).type, part.type) for part in wanted
        )
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(actual) or pa.types.is_large_list(actual)
        return is_list and _fits(actual.value_type, wanted.value_type)
    if pa.types.is_string(wanted):
        return pa.types.is_string(actual) or pa.types.is_large_string(actual)
    return actual == wanted


def _problems(
    row: dict[str, Any],
    count_tokens: Callable[[Sequence[dict[str, str]]], int] | None,
    max_tokens: int,
    uids: dict[str, int],
    row_number: int,
) -> list[tuple[str, str, str]]:
    """Return (column, problem, kind of problem) for each problem of a row, and remember its uid."""
    missing = [name for name, value in row.items() if holds_null(value)]
    if missing:
        return [(missing[0], "is null or contains a null", f"null {missing[0]}")]
    found = []
    source, gold = row["data_source"], row["reward_model"]["ground_truth"]
    if source not in DATA_SOURCES:
        known = ", ".join(DATA_SOURCES)
        found.append(("data_source", f"{source!r} is not known to the reward. Known are: {known}", "data_source"))
    roles = [message["role"] for message in row["prompt"]]
    if not all(message["content"].strip() for message in row["prompt"]) or not roles:
        found.append(("prompt", "is empty", "prompt"))
    elif roles[-1] != "user" or not set(roles) <= {"system", "user", "assistant"}:
        found.append(
            (
                "prompt",
                f"must end with role user, after system, user or assistant; has {roles}",
                "roles",
            )
        )
    elif count_tokens is not None and (length := count_tokens(row["prompt"])) > max_tokens:
        found.append(("prompt", f"has {length} tokens, more than {max_tokens}", "long prompt"))
    unfit = unfit_gold(source, gold)
    if unfit:
        found.append(("reward_model", f"ground_truth {gold!r} {unfit}", "ground_truth"))
    uid = row["extra_info"]["uid"]
    if not uid:
        found.append(("extra_info", "uid is empty", "empty uid"))
    elif uid in uids:
        found.append(("extra_info", f"uid {uid} is also that of row {uids[uid]}: the same problem twice", "uid"))
    else:
        uids[uid] = row_number
    return found
