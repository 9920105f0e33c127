"""What a public data set is, and the way from its rows to verl's: read, extract, deduplicate, write, account for."""

import hashlib
import itertools
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from cfpo_verl.data_prep.schema import SCHEMA, DataError, Problem, check_file, to_row
from cfpo_verl.data_prep.text import fingerprint, normalise

from cfpo_verl.rewards import unfit_gold

BATCH_ROWS = 20_000

TEMPLATES = {
    "plain": "{problem}",
    "hashes": "{problem}\nThink step by step, then write the final answer, a plain number, after ####.",
    "boxed": "{problem}\nThink step by step, then write the final answer in \\boxed{{}}.",
}


class Dropped(Exception):
    """A row is left out; the message is the reason that is counted."""


@dataclass(frozen=True)
class Source:
    """A public data set.

    Args:
        name: What the command line calls it.
        data_source: Its name in the rows; a key of `cfpo_verl.data_sources.DATA_SOURCES`.
        hub_id: Id on the Hugging Face hub.
        licence: Licence as the owner states it.
        columns: The columns that `to_problem` reads. Rows that agree in all of them are the same row.
        to_problem: Makes a problem of a row, or raises `Dropped`. Only sees the columns above.
        splits: Names of the splits on the hub.
        hub_config: Name of the configuration on the hub.
        revision: Git revision on the hub. main unless a fixed one was checked.
        evaluation_only: Whether training on it would spoil a benchmark.
        template: Key of `TEMPLATES` for its prompts unless another one is asked for.
        excludes: A data set whose problems are left out.
        optional_columns: Columns that `to_problem` reads where they exist.
    """

    name: str
    data_source: str
    hub_id: str
    licence: str
    columns: tuple[str, ...]
    to_problem: Callable[[Mapping[str, Any]], Problem]
    splits: tuple[str, ...] = ("train",)
    hub_config: str | None = None
    revision: str = "main"
    evaluation_only: bool = False
    template: str = "boxed"
    optional_columns: tuple[str, ...] = ()
    excludes: "Source | None" = None


@dataclass
class Account:
    """Where the rows of a source went.

    Args:
        rows_in: Rows read.
        rows_out: Rows written.
        dropped: Rows left out, by reason.
    """

    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Options:
    """What a user may choose when a source is prepared.

    Args:
        split: Name of the split; on the hub, in the rows and of the file.
        limit: Keep only so many rows.
        seed: Order of the rows; None for that of the source.
        prompt_template: Key of `TEMPLATES`, or a text with `{problem}` in it; None for the source's own.
        tokenizer: Folder or hub id of the tokenizer that counts prompt tokens.
        max_prompt_tokens: Drop longer prompts, chat template included.
        exclude: File or hub id of the problems to leave out; None for what the source says.
    """

    split: str = "train"
    limit: int | None = None
    seed: int | None = None
    prompt_template: str | None = None
    tokenizer: str | None = None
    max_prompt_tokens: int | None = None
    exclude: str | None = None


def template_text(template: str) -> str:
    """Return the text of a named template, or the given text.

    Raises:
        DataError: If it is no name and has no `{problem}`, or cannot be formatted.
    """
    text = TEMPLATES.get(template, template)
    try:
        formatted = text.format(problem="\0")
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"prompt template {template!r} cannot be filled in ({error!r}): braces other than {{problem}} are doubled"
        ) from error
    if "\0" not in formatted:
        raise DataError(
            f"prompt template {template!r} is neither one of {', '.join(TEMPLATES)} nor a text with {{problem}} in it"
        )
    return text


def prepare(
    source: Source,
    out: Path,
    origin: str | None = None,
    options: Options = Options(),
    on_progress: Callable[[int], None] = lambda rows: None,
) -> tuple[Path, Account]:
    """Write `<split>.parquet` and `<split>.manifest.json`; the same input and options give the same bytes.

    Rows are read in batches. In memory stay 16 bytes per distinct problem and, for a shuffle, the rows that are kept.

    Args:
        source: The data set.
        out: Folder for the two files.
        origin: A local `.jsonl`, `.json` or `.parquet` file, or a hub id; None for the source's own.
        options: See there.
        on_progress: Called with the number of rows read so far.

    Returns:
        The path of the parquet file, and where the rows went.

    Raises:
        DataError: If something cannot be read, or no row is left.
    """
    if options.limit is not None and options.limit < 1:
        raise DataError(f"limit must be at least 1, got {options.limit}")
    if (options.tokenizer is None) != (options.max_prompt_tokens is None):
        raise DataError("a tokenizer and max_prompt_tokens go together: give both or none")
    template = template_text(options.prompt_template or source.template)
    too_long = _length_check(options)
    path = out / f"{options.split}.parquet"
    origin = origin or source.hub_id
    excluded = _excluded_problems(source, options)
    account, conflicting = Account(), set[str]()

    batches = read_batches(source, origin, options.split)
    # The first one is read before the folder is made: most of what can be wrong with the input shows there.
    batches = itertools.chain(list(itertools.islice(batches, 1)), batches)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{options.split}.") as folder:
        # First everything, since a later row may contradict an earlier one; then what none contradicts.
        spool = Path(folder) / "spool.parquet"
        problems = _usable(batches, source, excluded, account, conflicting, on_progress)
        rows = (row for row in _rows(problems, source, options.split, template) if not too_long(row, account))
        _write(spool, _tables(rows))
        unfinished = Path(folder) / path.name
        account.rows_out = _write(unfinished, _select(spool, conflicting, options, account))
        if not account.rows_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in account.dropped.most_common() if count)
            raise DataError(f"{origin}: none of the {account.rows_in} rows can be used ({reasons or 'there are none'})")
        check_file(unfinished)
        account.dropped = Counter({reason: count for reason, count in account.dropped.items() if count})
        manifest = _manifest(source, origin, options, account, unfinished)
        (Path(folder) / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        unfinished.replace(path)
        (Path(folder) / "manifest.json").replace(path.with_suffix(".manifest.json"))
    return path, account


def _usable(
    batches: Iterable[pa.RecordBatch],
    source: Source,
    excluded: set[str],
    account: Account,
    conflicting: set[str],
    on_progress: Callable[[int], None],
) -> Iterator[Problem]:
    """Yield each problem with a usable answer once; count the others, and collect those with different answers."""
    answers: dict[str, str] = {}
    for rows, repeated in _distinct(batches, source):
        account.rows_in += len(rows) + repeated
        account.dropped["the same row again"] += repeated
        for row in rows:
            try:
                problem = source.to_problem(row)
            except Dropped as reason:
                account.dropped[str(reason)] += 1
                continue
            key, answer = fingerprint(normalise(problem.question)), normalise(problem.answer)
            unfit = unfit_gold(source.data_source, problem.answer)
            if key in excluded:
                account.dropped["excluded"] += 1
            elif unfit:
                account.dropped[f"answer {unfit}"] += 1
            elif key in answers:
                account.dropped["the same problem again"] += 1
                if answers[key] != answer:
                    conflicting.add(key)
            else:
                answers[key] = answer
                yield problem
        on_progress(account.rows_in)


def _excluded_problems(source: Source, options: Options) -> set[str]:
    if source.excludes is None:
        if options.exclude is not None:
            raise DataError(f"{source.name} excludes nothing, got exclude={options.exclude}. Use data decontaminate")
        return set()
    origin = options.exclude or source.excludes.hub_id
    batches = read_batches(source.excludes, origin, source.excludes.splits[0])
    problems = (source.excludes.to_problem(row) for batch in batches for row in batch.to_pylist())
    return {fingerprint(normalise(problem.question)) for problem in problems}


def read_batches(source: Source, origin: str, split: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a local file or a hub data set, only the columns that the source reads.

    Raises:
        DataError: With file, line or row, and column of what cannot be read.
    """
    suffix = Path(origin).suffix
    if suffix == ".parquet":
        batches: Iterable[pa.RecordBatch] = _parquet_batches(Path(origin))
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


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH_ROWS)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a whole parquet file ({error})") from error


def _json_batches(path: Path, source: Source) -> Iterator[pa.RecordBatch]:
    rows: list[Mapping[str, Any]] = []
    for place, row in _json_rows(path):
        if not isinstance(row, dict):
            raise DataError(f"{path}, {place}: a row must be a JSON object, is {type(row).__name__}")
        missing = [column for column in source.columns if column not in row]
        if missing:
            raise DataError(f"{path}, {place}: column {missing[0]!r} is missing (found: {', '.join(row)})")
        rows.append({name: row[name] for name in (*source.columns, *source.optional_columns) if name in row})
        if len(rows) == BATCH_ROWS:
            yield _to_batch(path, rows)
            rows = []
    if rows:
        yield _to_batch(path, rows)


def _to_batch(path: Path, rows: list[Mapping[str, Any]]) -> pa.RecordBatch:
    try:
        return pa.RecordBatch.from_pylist(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{path}: a column holds values of different types ({error})") from error


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("line 3", row) of a .jsonl file or ("row 3", row) of a .json file."""
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".json":
                content = json.load(file)
                if not isinstance(content, list):
                    raise DataError(f"{path}: must hold a list of rows, holds a {type(content).__name__}")
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
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise DataError(
            f"{hub_id}: neither a local .jsonl, .json or .parquet file nor a data set that the hub gives ({reason})"
        ) from error
    for table in data.with_format("arrow").iter(BATCH_ROWS):
        yield from table.combine_chunks().to_batches()


def _distinct(batches: Iterable[pa.RecordBatch], source: Source) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Yield the rows of each batch that no earlier row equals in the source's columns, and how many were left out."""
    seen: set[tuple[int, int]] = set()
    for batch in batches:
        first = []
        for position, key in enumerate(zip(*_row_hashes(batch.select(source.columns)), strict=True)):
            if key not in seen:
                seen.add(key)
                first.append(position)
        repeated = len(batch) - len(first)
        yield (batch.take(pa.array(first, pa.int64())) if repeated else batch).to_pylist(), repeated


def _row_hashes(batch: pa.RecordBatch) -> list[list[int]]:
    """Return two independent 64-bit hashes of every row, computed column by column."""
    columns = list(_flat_columns(batch))
    hashes = []
    for key in ("cfpo_verl 1st..", "cfpo_verl 2nd.."):
        total = np.zeros(len(batch), dtype=np.uint64)
        for values in columns:
            mixed = pd.util.hash_array(values, hash_key=key.ljust(16)[:16], categorize=False)
            total = total * np.uint64(0x9E3779B97F4A7C15) + mixed
        hashes.append(total.tolist())
    return hashes


def _flat_columns(batch: pa.RecordBatch) -> Iterator[np.ndarray]:
    for column in batch.columns:
        kind = column.type
        if pa.types.is_struct(kind):
            yield column.is_null().to_numpy(zero_copy_only=False)
            yield from _flat_columns(pa.RecordBatch.from_struct_array(column))
        elif pa.types.is_list(kind) and pc.unique(pc.list_value_length(column)).to_pylist() == [1]:
            # One element each, such as the messages of a single-turn prompt.
            yield from _flat_columns(pa.RecordBatch.from_arrays([column.flatten()], ["element"]))
        elif pa.types.is_nested(kind):
            yield _as_text(column)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            yield column.to_numpy(zero_copy_only=False)
        else:
            yield column.cast(pa.string()).to_numpy(zero_copy_only=False)


def _as_text(column: pa.Array) -> np.ndarray:
    return np.array([json.dumps(value, default=str) for value in column.to_pylist()], dtype=object)


def _length_check(options: Options) -> Callable[[dict[str, Any], Account], bool]:
    """Return a function that says whether a row's prompt is too long, and counts it."""
    if options.tokenizer is None or options.max_prompt_tokens is None:
        return lambda row, account: False
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise DataError(f"tokenizer {options.tokenizer}: cannot be loaded ({reason})") from error
    limit = options.max_prompt_tokens

    def too_long(row: dict[str, Any], account: Account) -> bool:
        # As verl counts: with the chat template and the words that begin an answer.
        tokens = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        account.dropped[f"prompt longer than {limit} tokens"] += len(tokens) > limit
        return len(tokens) > limit

    return too_long


def _rows(problems: Iterable[Problem], source: Source, split: str, template: str) -> Iterator[dict[str, Any]]:
    for problem in problems:
        yield to_row(problem, source.data_source, "math", split, 0, template.format(problem=problem.question))


def _tables(rows: Iterator[dict[str, Any]]) -> Iterator[pa.Table]:
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        yield pa.Table.from_pylist(batch, schema=SCHEMA)


def _select(spool: Path, conflicting: set[str], options: Options, account: Account) -> Iterator[pa.Table]:
    """Yield the rows of the spool that no other row contradicts, in the order and number asked for, numbered anew."""
    written = 0
    for table in _in_order(spool, options.seed):
        if conflicting:
            keys = [fingerprint(normalise(text)) for text in _problem_texts(table)]
            fit = pa.array([key not in conflicting for key in keys])
            account.dropped["answers to one problem contradict each other"] += len(table) - pc.sum(fit).as_py()
            table = table.filter(fit)  # noqa: PLW2901
        if options.limit is not None and written + len(table) > options.limit:
            account.dropped["beyond the limit"] += written + len(table) - options.limit
            table = table.slice(0, options.limit - written)  # noqa: PLW2901
        if len(table):
            yield _renumber(table, written)
        written += len(table)


def _in_order(spool: Path, seed: int | None) -> Iterator[pa.Table]:
    if seed is None:
        with pq.ParquetFile(spool) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield pa.Table.from_batches([batch])
        return
    table = pq.read_table(spool)
    order = list(range(len(table)))
    random.Random(seed).shuffle(order)
    for start in range(0, len(order), BATCH_ROWS):
        yield table.take(order[start : start + BATCH_ROWS])


def _problem_texts(table: pa.Table) -> list[str]:
    return pc.struct_field(table["extra_info"], "problem").to_pylist()


def _renumber(table: pa.Table, start: int) -> pa.Table:
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


def _write(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write tables to one parquet file and return the number of rows."""
    rows = 0
    try:
        with pq.ParquetWriter(path, SCHEMA) as writer:
            for table in tables:
                writer.write_table(table.cast(SCHEMA))
                rows += len(table)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"a row does not fit the schema: {error}") from error
    return rows


def _manifest(source: Source, origin: str, options: Options, account: Account, written: Path) -> dict[str, Any]:
    is_file = Path(origin).is_file()
    return {
        "source": source.name,
        "origin": Path(origin).name if is_file else origin,
        "revision": None if is_file else source.revision if origin == source.hub_id else None,
        "licence": source.licence,
        "evaluation_only": source.evaluation_only,
        "rows_in": account.rows_in,
        "rows_out": account.rows_out,
        "dropped": dict(sorted(account.dropped.items())),
        "sha256_in": sha256(Path(origin)) if is_file else None,
        "sha256_out": sha256(written),
        "arguments": {name: _name_of(value) for name, value in asdict(options).items()},
        "cfpo_verl": version("cfpo-verl"),
    }


def _name_of(value: Any) -> Any:
    """Return a file's name instead of its path, so that the same files give the same manifest anywhere."""
    return Path(value).name if isinstance(value, str) and os.path.exists(value) else value


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
