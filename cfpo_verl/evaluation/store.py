"""Read and write the folder of an evaluation. File formats: docs/evaluation.md."""

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
from cfpo_verl.files import read_json_object, reading, replacing, write_atomically, writing

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
    """Identifies a response."""

    set: str
    uid: str
    sample: int


class Response(NamedTuple):
    """A finished response."""

    text: str
    tokens: int
    finish_reason: str


def begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Save the settings of a new evaluation, or check that they match those of the one to resume.

    Sets may be added. Any other setting decides what the responses are.

    Raises:
        EvaluationError: If a setting differs, or the folder has other files in it.
    """
    file = out / SETTINGS
    if not file.is_file():
        if is_taken(out):
            raise EvaluationError(f"{out}: already exists and is not an evaluation to resume. Give another --out")
        write_atomically(file, json.dumps(settings, indent=2) + "\n")
        return
    before = read_json_object(file)
    if not isinstance(before.get("sets"), dict):
        raise EvaluationError(f"{file}: not the settings of an evaluation (no object 'sets'). Give another --out")
    was, wanted = dict(_flat(before)), dict(_flat(settings))
    sets = [key for key in was if key.startswith("sets.")]
    changed = [
        f"{key} was {was.get(key)!r}, is {wanted.get(key)!r}"
        for key in {**was, **wanted}
        if was.get(key) != wanted.get(key) and (key not in sets or key in wanted) and (key in was or key[:5] != "sets.")
    ]
    if changed:
        raise EvaluationError(
            f"{out} was started with other settings: {'; '.join(changed)}. Give another --out, or delete it"
        )
    write_atomically(file, json.dumps({**settings, "sets": {**before["sets"], **settings["sets"]}}, indent=2) + "\n")


def is_taken(out: Path) -> bool:
    """Return whether a path is a file, or a folder with something in it."""
    with reading(out):
        return out.exists() and (not out.is_dir() or any(out.iterdir()))


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


@contextmanager
def appending(out: Path) -> Iterator[TextIO]:
    """Open the file of finished responses exclusively, and cut off an incomplete last line.

    Raises:
        EvaluationError: If another process is writing to it.
    """
    path = out / RESPONSES
    with writing(path):
        file = path.open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvaluationError(f"{out}: another process is writing to it. Wait, or give another --out") from None
        with reading(path):
            whole = path.read_bytes()
        with writing(path):
            os.ftruncate(file.fileno(), whole.rfind(b"\n") + 1)
        yield file


def append(file: TextIO, responses: Mapping[Key, Response]) -> None:
    """Append finished responses, so that they survive the end of this process.

    Raises:
        FileError: If the system refuses, for example because the disk is full.
    """
    lines = [{**key._asdict(), **response._asdict()} for key, response in responses.items()]
    with writing(Path(file.name)):
        file.write("".join(json.dumps(line) + "\n" for line in lines))
        file.flush()


def read_responses(out: Path) -> dict[Key, Response]:
    """Read all finished responses of an evaluation, including those of an earlier complete one.

    Raises:
        EvaluationError: If a file has other content.
        FileError: If a file cannot be read.
    """
    found: dict[Key, Response] = {}
    if (out / GENERATIONS).is_file():
        columns = ["set", "uid", "sample", "response", "response_tokens", "finish_reason"]
        for row in _read_columns(out / GENERATIONS, columns).to_pylist():
            found[Key(row["set"], row["uid"], row["sample"])] = Response(
                row["response"], row["response_tokens"], row["finish_reason"]
            )
    file = out / RESPONSES
    if file.is_file():
        with reading(file):
            lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                key = Key(row["set"], row["uid"], row["sample"])
                found[key] = Response(row["text"], row["tokens"], row["finish_reason"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise EvaluationError(
                    f"{file}, line {number}: not a finished response ({type(error).__name__}: {error}). Delete the "
                    "line to generate that response again, or give another --out"
                ) from error
    return found


def _read_columns(file: Path, columns: list[str]) -> pa.Table:
    """Read columns of generations.parquet.

    Raises:
        EvaluationError: If it is not such a file.
        FileError: If the system refuses to read it.
    """
    try:
        with reading(file), pq.ParquetFile(file) as opened:
            missing = [column for column in columns if column not in opened.schema_arrow.names]
            if missing:
                raise EvaluationError(f"{file}: not the generations of an evaluation, column {missing[0]!r} is missing")
            return opened.read(columns=columns)
    except pa.ArrowException as error:
        raise EvaluationError(f"{file}: not a parquet file ({error})") from error


def finish(out: Path, table: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Write the results and delete the file of finished responses, which they include.

    Raises:
        FileError: If the system refuses.
    """
    with replacing(out / GENERATIONS) as unfinished:
        pq.write_table(pa.Table.from_pandas(table, schema=SCHEMA, preserve_index=False), unfinished)
    write_atomically(out / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    with writing(out / RESPONSES):
        (out / RESPONSES).unlink(missing_ok=True)


def read_generations(out: Path) -> pd.DataFrame:
    """Read the generations of a finished evaluation.

    Raises:
        EvaluationError: If it is not finished, or not an evaluation.
        FileError: If the system refuses to read it.
    """
    file = out / GENERATIONS
    with reading(out):
        is_finished, is_begun = file.is_file() and (out / SUMMARY).is_file(), (out / SETTINGS).is_file()
    if not is_finished:
        way_out = "resume it with the same `cfpo-verl eval run` command" if is_begun else "no evaluation was begun here"
        raise EvaluationError(f"{out}: not a finished evaluation ({GENERATIONS} or {SUMMARY} is missing); {way_out}")
    return _read_columns(file, SCHEMA.names).to_pandas()


def read_summary(out: Path) -> dict[str, Any]:
    """Read the summary of a finished evaluation.

    Raises:
        EvaluationError: If a required part is missing; see docs/evaluation.md.
        FileError: If it cannot be read, or is not JSON.
    """
    summary = read_json_object(out / SUMMARY)
    wrong = _why_not_a_summary(summary)
    if wrong:
        raise EvaluationError(f"{out / SUMMARY}: not the summary of an evaluation, {wrong}")
    return summary


def _why_not_a_summary(summary: Mapping[str, Any]) -> str | None:
    if not isinstance(summary.get("name"), str):
        return "'name' must be text"
    if not all(isinstance(summary.get(part) or {}, dict) for part in ("generation", "template", "scoring")):
        return "'generation', 'template' and 'scoring' must be objects or null"
    sets = summary.get("sets")
    if not isinstance(sets, dict) or not all(isinstance(found, dict) for found in sets.values()):
        return "'sets' must be an object of objects"
    for name, found in sets.items():
        if not all(isinstance(found.get(key), int) for key in ("problems", "samples")):
            return f"'problems' and 'samples' of {name} must be whole numbers"
        metrics = found.get("metrics")
        for metric in (f"{kind}@{found['samples']}" for kind in ("avg", "pass", "maj")):
            numbers = metrics.get(metric) if isinstance(metrics, dict) else None
            if not isinstance(numbers, dict) or not all(
                isinstance(numbers.get(key), int | float) for key in ("value", "low", "high")
            ):
                return f"{metric} of {name} must have value, low and high"
    return None
