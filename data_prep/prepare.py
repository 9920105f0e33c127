"""Prepare a public data set: read, extract, deduplicate, write verl's rows, and account for every row."""

import itertools
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cfpo_verl.data_prep.extracting import Extracted, extract_here, extract_with_ray
from cfpo_verl.data_prep.near_duplicates import find_near_duplicates
from cfpo_verl.data_prep.reading import BATCH_ROWS, read_batches
from cfpo_verl.data_prep.schema import SCHEMA, DataError, Problem, to_row
from cfpo_verl.data_prep.source import Dropped, Source, template_text
from cfpo_verl.data_prep.text import fingerprint, normalise
from cfpo_verl.data_prep.tokens import token_counter
from cfpo_verl.data_prep.writing import put_in_place, renumber, sha256, write_tables
from cfpo_verl.files import writing
from cfpo_verl.rewards.answers import canonical_answer

# Jaccard similarity of three-word runs; docs/data.md says what it finds in real data.
NEAR_DUPLICATES = 0.7


@dataclass
class Account:
    """Number of rows read, written and left out.

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
    """Options of `prepare`.

    Args:
        split: Name of the split on the hub, in the rows and of the output file.
        limit: Write at most this many rows.
        seed: Shuffle the rows with this seed; None keeps the order of the source.
        prompt_template: Key of `TEMPLATES`, or a text with `{problem}` in it; None for the source's own.
        tokenizer: Folder or hub id of the tokenizer that counts prompt tokens.
        max_prompt_tokens: Drop longer prompts, chat template included.
        exclude: File or hub id of the problems to leave out; None for the source's default.
        near_duplicates: Leave out problems that share at least this fraction of their word triples, and all quantities
            and the answer, with an earlier one; 0 keeps them; None for `NEAR_DUPLICATES` in training data and 0 in
            evaluation data, which must stay complete.
    """

    split: str = "train"
    limit: int | None = None
    seed: int | None = None
    prompt_template: str | None = None
    tokenizer: str | None = None
    max_prompt_tokens: int | None = None
    exclude: str | None = None
    near_duplicates: float | None = None


def prepare(
    source: Source,
    out: Path,
    origin: str | None = None,
    options: Options = Options(),
    on_progress: Callable[[int], None] = lambda rows: None,
    engine: str = "local",
) -> tuple[Path, Account]:
    """Write `<split>.parquet` and `<split>.manifest.json`; the same input and options give the same bytes.

    Rows are read in batches. Memory holds a few hundred bytes per distinct problem and, for a shuffle or the search for
    near duplicates, all rows that are kept.

    Args:
        source: The data set.
        out: Folder for the two files.
        origin: A local `.jsonl`, `.json` or `.parquet` file, or a hub id; None for the source's own.
        options: See `Options`.
        on_progress: Called with the number of rows read so far.
        engine: "local", or "ray" to read and extract on all machines of a Ray cluster; the output is the same.

    Returns:
        The path of the parquet file, and the number of rows read, written and left out.

    Raises:
        DataError: If an option does not fit, something cannot be read, or no row is left.
        FileError: If the system refuses to write the files.
    """
    if not options.split or Path(options.split).name != options.split:
        raise DataError(f"split must be a file name without folders, got {options.split!r}")
    if options.limit is not None and options.limit < 1:
        raise DataError(f"limit must be at least 1, got {options.limit}")
    threshold = options.near_duplicates
    if threshold is None:
        threshold = 0.0 if source.evaluation_only else NEAR_DUPLICATES
    if not 0 <= threshold <= 1:
        raise DataError(f"near_duplicates must be at least 0 and at most 1, got {threshold}")
    if (options.tokenizer is None) != (options.max_prompt_tokens is None):
        raise DataError("a tokenizer and max_prompt_tokens go together: give both or none")
    template = template_text(options.prompt_template or source.template)
    too_long = _length_check(options)
    path = out / f"{options.split}.parquet"
    origin = origin or source.hub_id
    excluded = _excluded_problems(source, options)
    account, conflicting = Account(), set[str]()

    if engine == "ray":
        batches = extract_with_ray(origin, source)
    elif engine == "local":
        batches = extract_here(read_batches(source, origin, options.split), source)
    else:
        raise DataError(f"engine must be local or ray, got {engine!r}")
    # Read the first batch before making the folder: most faults of the input show there.
    batches = itertools.chain(list(itertools.islice(batches, 1)), batches)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with writing(out), tempfile.TemporaryDirectory(dir=out, prefix=f".{options.split}.") as folder:
        # All rows go to a spool first, since a later row may contradict an earlier one.
        spool = Path(folder) / "spool.parquet"
        problems = _usable(batches, excluded, account, conflicting, on_progress)
        rows = (row for row in _rows(problems, source, options.split, template) if not too_long(row, account))
        write_tables(spool, _tables(rows))
        similar = _near_duplicates(spool, conflicting, threshold)
        selected = _select(spool, conflicting, similar, options, account)
        # Nothing is written unless there is at least one row.
        first = list(itertools.islice(selected, 1))
        if not first:
            reasons = ", ".join(f"{count} {reason}" for reason, count in account.dropped.most_common() if count)
            raise DataError(f"{origin}: none of the {account.rows_in} rows can be used ({reasons or 'there are none'})")
        tables = itertools.chain(first, selected)
        account.rows_out = put_in_place(path, tables, lambda: _manifest(source, origin, options, account))
    return path, account


def _usable(
    batches: Iterable[tuple[list[Extracted], int]],
    excluded: set[str],
    account: Account,
    conflicting: set[str],
    on_progress: Callable[[int], None],
) -> Iterator[Problem]:
    """Yield each problem with a usable answer once, count the others, and collect the keys of contradicted problems."""
    answers: dict[str, str] = {}
    for rows, repeated in batches:
        account.rows_in += len(rows) + repeated
        account.dropped.update({"repeated row": repeated} if repeated else {})
        for row in rows:
            if row.key in excluded:
                account.dropped["excluded"] += 1
            elif row.reason:
                account.dropped[row.reason] += 1
            elif row.key in answers:
                account.dropped["repeated problem"] += 1
                if answers[row.key] != row.answer:
                    conflicting.add(row.key)
            else:
                answers[row.key] = row.answer
                yield row.problem
        on_progress(account.rows_in)


def _excluded_problems(source: Source, options: Options) -> set[str]:
    if source.excludes is None:
        if options.exclude is not None:
            raise DataError(f"{source.name} excludes nothing, got exclude={options.exclude}. Use data decontaminate")
        return set()
    origin = options.exclude or source.excludes.hub_id
    batches = read_batches(source.excludes, origin, source.excludes.splits[0])
    keys = set()
    for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
        try:
            problem = source.excludes.to_problem(row)
        except Dropped as dropped:
            raise DataError(f"{origin}, row {number}: cannot be excluded ({dropped})") from dropped
        keys.add(fingerprint(normalise(problem.question)))
    return keys


def _length_check(options: Options) -> Callable[[dict[str, Any], Account], bool]:
    """Return a function that says whether a row's prompt is too long, and counts it."""
    if options.tokenizer is None or options.max_prompt_tokens is None:
        return lambda row, account: False
    count_tokens, limit = token_counter(options.tokenizer), options.max_prompt_tokens

    def too_long(row: dict[str, Any], account: Account) -> bool:
        if count_tokens(row["prompt"]) <= limit:
            return False
        account.dropped[f"prompt longer than {limit} tokens"] += 1
        return True

    return too_long


def _rows(problems: Iterable[Problem], source: Source, split: str, template: str) -> Iterator[dict[str, Any]]:
    for problem in problems:
        data_source = problem.data_source or source.data_source
        yield to_row(problem, data_source, "math", split, 0, template.format(problem=problem.question))


def _tables(rows: Iterator[dict[str, Any]]) -> Iterator[pa.Table]:
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        yield pa.Table.from_pylist(batch, schema=SCHEMA)


def _select(
    spool: Path, conflicting: set[str], similar: set[str], options: Options, account: Account
) -> Iterator[pa.Table]:
    """Yield the spooled rows that are neither contradicted nor near duplicates, ordered, limited and renumbered."""
    written = 0
    for table in _in_order(spool, options.seed):
        if conflicting or similar:
            keys = _problem_keys(table)
            contradicted = [key in conflicting for key in keys]
            repeated = [key in similar for key in keys]
            account.dropped += Counter({"contradictory answers": sum(contradicted), "near duplicate": sum(repeated)})
            table = table.filter(pa.array([not (a or b) for a, b in zip(contradicted, repeated, strict=True)]))  # noqa: PLW2901
        if options.limit is not None and written + len(table) > options.limit:
            account.dropped["beyond the limit"] += written + len(table) - options.limit
            table = table.slice(0, options.limit - written)  # noqa: PLW2901
        if len(table):
            yield renumber(table, written)
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


def _problem_keys(table: pa.Table) -> list[str]:
    return [fingerprint(normalise(text)) for text in _problem_texts(table)]


def _near_duplicates(spool: Path, conflicting: set[str], threshold: float) -> set[str]:
    """Return the keys of the problems that nearly repeat an earlier uncontradicted one."""
    if not threshold:
        return set()
    table = pq.read_table(spool, columns=["extra_info", "reward_model"])
    keys = _problem_keys(table)
    table = table.filter(pa.array([key not in conflicting for key in keys], pa.bool_()))
    keys = [key for key in keys if key not in conflicting]
    golds = [canonical_answer(gold) for gold in pc.struct_field(table["reward_model"], "ground_truth").to_pylist()]
    return {
        keys[dropped] for _kept, dropped, _similarity in find_near_duplicates(_problem_texts(table), threshold, golds)
    }


def _name_of(value: Any) -> Any:
    """Return a file's name instead of its path, so that the same files give the same manifest in any folder."""
    return Path(value).name if isinstance(value, str) and os.path.exists(value) else value


def _manifest(source: Source, origin: str, options: Options, account: Account) -> dict[str, Any]:
    is_file = Path(origin).is_file()
    return {
        "source": source.name,
        "origin": Path(origin).name if is_file else origin,
        "revision": None if is_file else source.revision if origin == source.hub_id else None,
        "licence": source.licence,
        "evaluation_only": source.evaluation_only,
        "rows_in": account.rows_in,
        "dropped": dict(sorted(account.dropped.items())),
        "sha256_in": sha256(Path(origin)) if is_file else None,
        "arguments": {name: _name_of(value) for name, value in asdict(options).items()},
    }
