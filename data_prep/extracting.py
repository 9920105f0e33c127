"""Turn the rows of a source into problems, on this machine or on a Ray cluster."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cfpo_verl.data_prep.reading import BATCH_ROWS, distinct, row_hashes
from cfpo_verl.data_prep.schema import DataError, Problem
from cfpo_verl.data_prep.source import Dropped, Source
from cfpo_verl.data_prep.text import fingerprint, normalise
from cfpo_verl.errors import first_line
from cfpo_verl.rewards import unfit_gold
from cfpo_verl.rewards.answers import canonical_answer


@dataclass(frozen=True)
class Extracted:
    """The result of reading one row.

    Args:
        reason: Why the row is left out, or "".
        problem: The problem, if the row is kept.
        key: Fingerprint of the normalised problem.
        answer: Canonical form of the answer, the same for answers that the reward considers equal.
    """

    reason: str
    problem: Problem
    key: str = ""
    answer: str = ""


def extract(row: Mapping[str, Any], source: Source) -> Extracted:
    """Read one row of a source."""
    try:
        problem = source.to_problem(row)
    except Dropped as dropped:
        return Extracted(str(dropped), Problem("", ""))
    unfit = unfit_gold(problem.data_source or source.data_source, problem.answer)
    reason = f"answer {unfit}" if unfit else ""
    return Extracted(reason, problem, fingerprint(normalise(problem.question)), canonical_answer(problem.answer))


def extract_here(batches: Iterable[pa.RecordBatch], source: Source) -> Iterator[tuple[list[Extracted], int]]:
    """Yield, for each batch, what its new rows contain, and the number of rows that repeat an earlier one."""
    for rows, repeated in distinct(batches, source.columns):
        yield [extract(row, source) for row in rows], repeated


def extract_with_ray(origin: str, source: Source) -> Iterator[tuple[list[Extracted], int]]:
    """Do the same as `extract_here` on all machines of a Ray cluster, in the same order.

    Connects to the cluster of RAY_ADDRESS, or starts Ray on this machine.

    Args:
        origin: A parquet file, or a folder of them, that every machine can read.
        source: The data set.

    Raises:
        DataError: If the origin is something else or cannot be read, or the cluster cannot be reached.
    """
    import ray
    import ray.data

    if not (origin.endswith(".parquet") or "://" in origin or Path(origin).is_dir()):
        raise DataError(f"{origin}: the engine ray reads parquet files and folders of them. Use the engine local")
    if origin.endswith(".parquet") and "://" not in origin and not Path(origin).is_file():
        raise DataError(f"{origin}: no such file")
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(include_dashboard=False, log_to_driver=False)
        except ConnectionError as error:
            raise DataError(
                f"the engine ray cannot reach a cluster ({first_line(error)}). Start Ray, or unset RAY_ADDRESS"
            ) from error
    try:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        try:
            data = ray.data.read_parquet(origin)
            found = data.schema().names
        except (OSError, pa.ArrowException, ray.exceptions.RayError) as error:
            raise DataError(f"{origin}: cannot be read as parquet ({first_line(error)})") from error
        missing = [column for column in source.columns if column not in found]
        if missing:
            raise DataError(f"{origin}: column {missing[0]!r} is missing (found: {', '.join(found)})")
        extracted = data.map_batches(
            _extract_table, batch_format="pyarrow", batch_size=BATCH_ROWS, fn_kwargs={"source": source}
        )
        seen: set[tuple[int, int]] = set()
        for table in extracted.iter_batches(batch_format="pyarrow", batch_size=BATCH_ROWS):
            yield _new_rows(table, seen)
    finally:
        if started:
            ray.shutdown()


def _extract_table(table: pa.Table, source: Source) -> pa.Table:
    """Return hashes and contents of every row as flat columns, for the way between machines."""
    wanted = [*source.columns, *(name for name in source.optional_columns if name in table.column_names)]
    batches = table.select(wanted).combine_chunks().to_batches()
    batch = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.select(wanted).schema)
    rows = [extract(row, source) for row in batch.to_pylist()]
    first, second = row_hashes(batch.select(list(source.columns)))
    return pa.table(
        {
            "first": pa.array(first, pa.uint64()),
            "second": pa.array(second, pa.uint64()),
            "reason": [row.reason for row in rows],
            "question": [row.problem.question for row in rows],
            "gold": [row.problem.answer for row in rows],
            "source_id": [row.problem.source_id for row in rows],
            "data_source": [row.problem.data_source for row in rows],
            "key": [row.key for row in rows],
            "answer": [row.answer for row in rows],
        }
    )


def _new_rows(table: pa.Table, seen: set[tuple[int, int]]) -> tuple[list[Extracted], int]:
    columns = table.to_pydict()
    new = []
    for position, key in enumerate(zip(columns["first"], columns["second"], strict=True)):
        if key not in seen:
            seen.add(key)
            row = {name: values[position] for name, values in columns.items()}
            problem = Problem(row["question"], row["gold"], row["source_id"], row["data_source"])
            new.append(Extracted(row["reason"], problem, row["key"], row["answer"]))
    return new, len(table) - len(new)
