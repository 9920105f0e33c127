"""GSM8K: grade-school word problems whose worked solution ends in `#### n`.

Hub id: openai/gsm8k, configuration "main". Licence: MIT. Columns: question, answer.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from cfpo_verl.data_prep.schema import DataError, Problem, to_row, write_rows

from cfpo_verl.rewards.extract import extract_answer, parse_number

HUB_ID = "openai/gsm8k"
# verl's own name for this data set.
DATA_SOURCE = "openai/gsm8k"
INSTRUCTION = "Think step by step, then write the final answer, a plain number, after ####."


def read_source(source: str, split: str) -> Iterable[Mapping[str, str]]:
    """Yield the raw rows of a local `.jsonl` file or of a Hugging Face hub id.

    Raises:
        DataError: If the file is missing, or a line of it is not JSON.
    """
    if not source.endswith(".jsonl"):
        from datasets import load_dataset

        return load_dataset(source, "main", split=split)
    rows = []
    try:
        # Line by line: str.splitlines would also cut at separators that JSON allows inside a string.
        with open(source, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise DataError(f"{source}, line {number}: not JSON ({error})") from error
    except FileNotFoundError as error:
        raise DataError(f"{source}: no such file. Give a .jsonl file or a hub id such as {HUB_ID}") from error
    return rows


def to_problem(row: Mapping[str, str]) -> Problem | None:
    """Return the problem of a raw row, or None if its solution does not end in `#### n`."""
    gold = parse_number(extract_answer(row["answer"])) if "####" in row["answer"] else None
    return None if gold is None else Problem(f"{row['question'].strip()}\n{INSTRUCTION}", str(gold))


def prepare(out: Path, source: str, split: str, limit: int | None = None) -> tuple[Path, int]:
    """Write `<split>.parquet`.

    Args:
        out: Folder for the file.
        source: A local `.jsonl` file or a hub id.
        split: Name of the split; of the hub's split too.
        limit: Keep only so many of the first rows.

    Returns:
        The path, and the number of rows dropped because no answer was found.

    Raises:
        DataError: If a row lacks a column, or none is left.
    """
    raw = list(read_source(source, split))[:limit]
    for number, row in enumerate(raw, start=1):
        if not all(isinstance(row, Mapping) and isinstance(row.get(column), str) for column in ("question", "answer")):
            raise DataError(f"{source}, row {number}: GSM8K's columns question and answer, both text, are needed")
    problems = [to_problem(row) for row in raw]
    kept = [problem for problem in problems if problem is not None]
    if not kept:
        raise DataError(f"{source}: none of the {len(raw)} rows has an answer after ####")
    rows = [to_row(problem, DATA_SOURCE, "math", split, index) for index, problem in enumerate(kept)]
    return write_rows(out / f"{split}.parquet", rows), len(raw) - len(kept)
