"""Write a parquet file and its manifest, both or neither."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cfpo_verl.data_prep.schema import SCHEMA, DataError, Problem, cast, check_file, to_row
from cfpo_verl.files import writing


def write_tables(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write tables to one parquet file, and return the number of rows.

    Raises:
        DataError: If a value does not fit `SCHEMA`.
    """
    rows = 0
    try:
        with pq.ParquetWriter(path, SCHEMA) as writer:
            for table in tables:
                writer.write_table(cast(table, path.name))
                rows += len(table)
    except pa.ArrowException as error:
        raise DataError(f"{path.name}: a row does not fit the schema: {error}") from error
    return rows


def put_in_place(path: Path, tables: Iterable[pa.Table], describe: Callable[[], Mapping[str, Any]]) -> int:
    """Write `path` and, beside it, `<stem>.manifest.json`, and put both in place only when they are complete.

    Args:
        path: The parquet file; its folder is made.
        tables: At least one row in all, in `SCHEMA`.
        describe: Returns the manifest without rows_out, sha256_out and the version; called when all rows are written.

    Returns:
        The number of rows.

    Raises:
        DataError: If a value does not fit, or there are no rows.
        FileError: If the system refuses to write them.
    """
    with writing(path), _folder_beside(path) as folder:
        unfinished, unfinished_manifest = Path(folder) / path.name, Path(folder) / "manifest.json"
        rows = write_tables(unfinished, tables)
        check_file(unfinished)
        manifest = {
            **describe(),
            "rows_out": rows,
            "sha256_out": sha256(unfinished),
            "cfpo_verl": version("cfpo-verl"),
        }
        unfinished_manifest.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        unfinished.replace(path)
        unfinished_manifest.replace(path.with_suffix(".manifest.json"))
    return rows


@contextmanager
def _folder_beside(path: Path) -> Iterator[str]:
    """Make a folder in which the two files of `path` can grow, and remove it afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        yield folder


def write_train_and_test(
    out: Path, problems: Sequence[Problem], held_out: int, data_source: str, arguments: Mapping[str, Any]
) -> list[Path]:
    """Write generated problems: the first `held_out` to `test.parquet`, the others to `train.parquet`.

    Args:
        out: Folder for the two files and their manifests.
        problems: All different.
        held_out: Number of problems in the test file.
        data_source: A key of `cfpo_verl.data_sources.DATA_SOURCES`.
        arguments: What the problems were generated from, for the manifests.

    Returns:
        The two paths, train first.

    Raises:
        DataError: If that leaves one of them without problems.
    """
    if not 0 < held_out < len(problems):
        raise DataError(f"held_out must be between 1 and {len(problems) - 1}, got {held_out}")
    paths = []
    for split, members in (("train", problems[held_out:]), ("test", problems[:held_out])):
        rows = [to_row(problem, data_source, "math", split, index) for index, problem in enumerate(members)]
        tables = [pa.Table.from_pylist(rows, schema=SCHEMA)]
        paths.append(out / f"{split}.parquet")
        put_in_place(
            paths[-1], tables, lambda: {"source": data_source, "generated": True, "arguments": dict(arguments)}
        )
    return paths


def renumber(table: pa.Table, start: int) -> pa.Table:
    """Return the rows with `extra_info.index` counted from `start`."""
    info = table["extra_info"].combine_chunks()
    kind = SCHEMA.field("extra_info").type
    fields = [
        pa.array(range(start, start + len(table)), pa.int64())
        if part.name == "index"
        else pc.struct_field(info, part.name)
        for part in kind
    ]
    renumbered = pa.StructArray.from_arrays(fields, fields=list(kind))
    place = table.schema.get_field_index("extra_info")
    return table.set_column(place, SCHEMA.field("extra_info"), renumbered)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
