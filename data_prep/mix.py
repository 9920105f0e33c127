"""Mix several training files in given proportions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cfpo_verl.data_prep.schema import SCHEMA, DataError, check_file
from cfpo_verl.data_prep.writing import put_in_place, renumber, sha256
from cfpo_verl.errors import first_line

BATCH_ROWS = 20_000


@dataclass(frozen=True)
class Part:
    """A file and its share of the mixture.

    Args:
        path: A parquet file in the schema of this project.
        weight: Its share, relative to those of the other parts. Greater than 0.
    """

    path: Path
    weight: float

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read `FILE:WEIGHT`.

        Raises:
            DataError: If it is something else.
        """
        path, _colon, weight = text.rpartition(":")
        try:
            number = float(weight)
        except ValueError:
            number = 0.0
        if not path or not 0 < number < float("inf"):
            raise DataError(
                f"a part is FILE:WEIGHT with a weight greater than 0, such as train.parquet:0.7, got {text!r}"
            )
        return cls(Path(path), number)


def shares(sizes: Sequence[int], weights: Sequence[float], rows: int | None) -> list[int]:
    """Return the number of rows to take from each part.

    Without `rows`, as many as possible: one part is used up. Rounding keeps the requested total.

    Raises:
        DataError: If a part has fewer rows than its share.
    """
    total = sum(weights)
    if rows is None:
        rows = int(min(size * total / weight for size, weight in zip(sizes, weights, strict=True)) + 1e-9)
    exact = [rows * weight / total for weight in weights]
    taken = [int(share + 1e-9) for share in exact]
    # Rows lost by rounding down go to the largest remainders.
    for place in sorted(range(len(taken)), key=lambda place: taken[place] - exact[place])[: rows - sum(taken)]:
        taken[place] += 1
    for place, (size, count) in enumerate(zip(sizes, taken, strict=True)):
        if count > size:
            raise DataError(f"part {place + 1} has {size} rows, but its share of {rows} is {count}. Ask for fewer rows")
        if count < 1:
            raise DataError(
                f"the share of part {place + 1} in {rows} rows rounds to 0. Ask for more rows, or leave it out"
            )
    return taken


def mix(parts: Sequence[Part], out: Path, rows: int | None, seed: int) -> dict[str, int]:
    """Draw rows from each part without repetition, shuffle them, and write them with a manifest.

    Args:
        parts: Files and weights.
        out: The parquet file to write.
        rows: Total number of rows; None for as many as the weights allow.
        seed: Seed for which rows are drawn and their order.

    Returns:
        {file: number of its rows}.

    Raises:
        DataError: If a file cannot be used, is given twice, or is too small for its share.
    """
    if rows is not None and rows < 1:
        raise DataError(f"rows must be at least 1, got {rows}")
    names = [str(part.path) for part in parts]
    if len(set(names)) < len(names):
        raise DataError(f"a file is given twice: {', '.join(names)}")
    counts = shares([check_file(part.path) for part in parts], [part.weight for part in parts], rows)
    generator = random.Random(seed)
    tables = []
    for part, count in zip(parts, counts, strict=True):
        table = _read(part.path)
        tables.append(table.take(generator.sample(range(len(table)), count)))
    table = pa.concat_tables(tables)
    order = list(range(len(table)))
    generator.shuffle(order)
    manifest = {
        "mixed_from": [
            {"file": str(part.path), "rows": count, "weight": part.weight, "sha256": sha256(part.path)}
            for part, count in zip(parts, counts, strict=True)
        ],
        "seed": seed,
    }
    batches = (
        renumber(table.take(order[start : start + BATCH_ROWS]), start) for start in range(0, len(order), BATCH_ROWS)
    )
    put_in_place(out, batches, lambda: manifest)
    return dict(zip(names, counts, strict=True))


def _read(path: Path) -> pa.Table:
    way_out = f"See what is wrong with: cfpo-verl data validate {path}"
    try:
        return pq.read_table(path, columns=SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:  # pyarrow raises a plain ValueError for a null in a column
        raise DataError(f"{path}: is not in this project's schema ({first_line(error)[:80]}). {way_out}") from error
    except OSError as error:
        raise DataError(f"{path}: not a whole parquet file ({first_line(error)[:80]}). {way_out}") from error
