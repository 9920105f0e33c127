"""The folder of an evaluation: what was begun, what is finished, the results. Formats: docs/evaluation.md."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cfpo_verl.evaluation.sets import EvaluationError
from cfpo_verl.files import write_atomically

SETTINGS, RESPONSES = "settings.json", "responses.jsonl"
GENERATIONS, SUMMARY, LOG = "generations.parquet", "summary.json", "log.txt"

SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("uid", pa.string()),
        ("index", pa.int64()),
        ("sample", pa.int64()),
        ("seed", pa.int64()),
        ("data_source", pa.string()),
        ("problem", pa.string()),
        ("gold", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("answer", pa.string()),
        ("vote", pa.string()),
        ("score", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("response_tokens", pa.int64()),
        ("finish_reason", pa.string()),
    ]
)


class Key(NamedTuple):
    """Which response it is."""

    set: str
    uid: str
    sample: int


class Response(NamedTuple):
    """A finished response."""

    text: str
    tokens: int
    finish_reason: str


def begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Note what an evaluation is begun with, or check that it is the same as when it was begun.

    Sets may be added, and responses for each problem; everything else decides what a response is.

    Raises:
        EvaluationError: If something differs, or the folder is none of an evaluation.
    """
    file = out / SETTINGS
    if not file.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise EvaluationError(f"{out}: is there already, and no evaluation that could go on. Give another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(settings, indent=2) + "\n")
        return
    before = json.loads(file.read_text())
    was, wanted = dict(_flat(before)), dict(_flat(settings))
    sets = [key for key in was if key.startswith("sets.")]
    changed = [
        f"{key} was {was.get(key)!r}, is {wanted.get(key)!r}"
        for key in {**was, **wanted}
        if was.get(key) != wanted.get(key) and (key not in sets or key in wanted) and (key in was or key[:5] != "sets.")
    ]
    if changed:
        raise EvaluationError(f"{out} was begun otherwise: {'; '.join(changed)}. Give another --out, or delete it")
    write_atomically(file, json.dumps({**settings, "sets": {**before["sets"], **settings["sets"]}}, indent=2) + "\n")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


@contextmanager
def appending(out: Path) -> Iterator[TextIO]:
    """Open the file of finished responses for this process alone, without a torn last line.

    Raises:
        EvaluationError: If another process has it open.
    """
    with (out / RESPONSES).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvaluationError(f"{out}: another process evaluates into it. Wait, or give another --out") from None
        with (out / RESPONSES).open("rb") as content:
            whole = content.read()
        os.ftruncate(file.fileno(), whole.rfind(b"\n") + 1)
        yield file


def append(file: TextIO, responses: Mapping[Key, Response]) -> None:
    """Add finished responses, so that the end of this process does not lose them."""
    lines = [{**key._asdict(), **response._asdict()} for key, response in responses.items()]
    file.write("".join(json.dumps(line) + "\n" for line in lines))
    file.flush()


def read_responses(out: Path) -> dict[Key, Response]:
    """Read all finished responses of an evaluation, those of an earlier complete one included."""
    found: dict[Key, Response] = {}
    if (out / GENERATIONS).is_file():
        columns = ["set", "uid", "sample", "response", "response_tokens", "finish_reason"]
        for row in pq.read_table(out / GENERATIONS, columns=columns).to_pylist():
            found[Key(row["set"], row["uid"], row["sample"])] = Response(
                row["response"], row["response_tokens"], row["finish_reason"]
            )
    if (out / RESPONSES).is_file():
        for line in (out / RESPONSES).read_text().splitlines():
            row = json.loads(line)
            found[Key(row["set"], row["uid"], row["sample"])] = Response(
                row["text"], row["tokens"], row["finish_reason"]
            )
    return found


def finish(out: Path, table: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Write the results; the file of finished responses is then no longer needed."""
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f"{GENERATIONS}.{os.getpid()}.tmp"
    try:
        pq.write_table(pa.Table.from_pandas(table, schema=SCHEMA, preserve_index=False), unfinished)
        unfinished.replace(out / GENERATIONS)
    finally:
        unfinished.unlink(missing_ok=True)
    write_atomically(out / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    (out / RESPONSES).unlink(missing_ok=True)


def read_generations(out: Path) -> pd.DataFrame:
    """Read the generations of a finished evaluation.

    Raises:
        EvaluationError: If it is not finished, or no evaluation.
    """
    file = out / GENERATIONS
    if not file.is_file() or not (out / SUMMARY).is_file():
        way_out = (
            "the same `cfpo-verl eval run` goes on with it" if (out / SETTINGS).is_file() else "none was begun here"
        )
        raise EvaluationError(f"{out}: no finished evaluation ({GENERATIONS} and {SUMMARY}); {way_out}")
    return pq.read_table(file).to_pandas()


def read_summary(out: Path) -> dict[str, Any]:
    """Read the summary of a finished evaluation."""
    return dict(json.loads((out / SUMMARY).read_text()))
