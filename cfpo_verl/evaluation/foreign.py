"""Read responses that were generated elsewhere."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cfpo_verl.data_prep.text import fingerprint, normalise
from cfpo_verl.evaluation.sets import EvaluationError
from cfpo_verl.evaluation.store import SCHEMA
from cfpo_verl.evaluation.summary import UnevenError, check_even
from cfpo_verl.files import reading


def read_responses(file: Path) -> pd.DataFrame:
    """Read responses from a parquet file, and add the columns that scoring and generations.parquet need.

    Raises:
        EvaluationError: If a required column or value is missing or has the wrong type.
        FileError: If the system refuses to read it.
    """
    table = _read(file)
    if "gold" not in table and "reward_model" in table:
        table["gold"] = [
            model.get("ground_truth") if isinstance(model, dict) else None for model in table["reward_model"]
        ]
    _check_rows(file, table)
    if "response" not in table:
        table = table.explode("responses", ignore_index=True).rename(columns={"responses": "response"})
    infos = [info if isinstance(info, dict) else {} for info in table.get("extra_info", [None] * len(table))]
    if "problem" in table:
        table["problem"] = table["problem"].fillna("").astype(str)
    else:
        table["problem"] = [str(info.get("problem") or info.get("question") or "") for info in infos]
    if "prompt" in table:
        table["prompt"] = [prompt if isinstance(prompt, str) else _last_message(prompt) for prompt in table["prompt"]]
    else:
        table["prompt"] = None
    if "uid" not in table:
        table["uid"] = [
            str(info.get("uid") or "") or fingerprint(normalise(problem or prompt or ""), normalise(str(gold)))
            for info, problem, prompt, gold in zip(infos, table["problem"], table["prompt"], table["gold"], strict=True)
        ]
    if "set" not in table:
        table["set"] = table["data_source"].str.replace("/", "_")
    of_problem = table.groupby(["set", "uid"], sort=False)
    if "sample" not in table:
        table["sample"] = of_problem.cumcount()
    table["index"] = table.groupby("set")["uid"].transform(lambda uids: pd.factorize(uids)[0])
    for column in SCHEMA.names:
        if column not in table:
            table[column] = None
    table = table.assign(gold=table["gold"].astype(str), response=table["response"].fillna("").astype(str))
    table = table.reset_index(drop=True)
    _check_table(file, table)
    return table


def _read(file: Path) -> pd.DataFrame:
    try:
        with reading(file), file.open("rb") as opened:
            return pq.read_table(opened).to_pandas()
    except pa.ArrowException as error:
        raise EvaluationError(f"{file}: not a parquet file ({error})") from error


def _check_rows(file: Path, table: pd.DataFrame) -> None:
    """Check that the required columns exist and hold text in every row."""
    needed = ("responses" if "responses" in table and "response" not in table else "response", "data_source", "gold")
    missing = [column for column in needed if column not in table]
    if missing or table.empty:
        what = f"column {missing[0]!r} is missing" if missing else "there are no rows"
        raise EvaluationError(
            f"{file}: {what}. Needed: response (or a list `responses`), data_source, and gold or reward_model. "
            f"Found: {', '.join(map(str, table.columns))}"
        )
    for column in ("data_source", "set", "uid"):
        for row, value in enumerate(table.get(column, ())):
            if not isinstance(value, str):
                raise EvaluationError(f"{file}, row {row}: {column} must be text, got {value!r}")
    unknown = table["gold"].isna().to_numpy().nonzero()[0]
    if len(unknown):
        raise EvaluationError(f"{file}, row {unknown[0]}: the gold answer is missing")


def _check_table(file: Path, table: pd.DataFrame) -> None:
    """Check column types and response counts now: scoring can take hours before they are needed."""
    try:
        pa.Table.from_pandas(table, schema=_GIVEN, preserve_index=False)
    except pa.ArrowException as error:
        raise EvaluationError(f"{file}: a column is not of the type in docs/evaluation.md ({error})") from error
    try:
        check_even(table)
    except UnevenError as error:
        raise EvaluationError(f"{file}: {error}") from error


# Columns that are taken over from the file; scoring adds the others.
_GIVEN = pa.schema([field for field in SCHEMA if field.name not in ("answer", "vote", "score")])


def _last_message(messages: Any) -> str | None:
    """Return the content of the last message of a prompt in verl's schema, None for anything else."""
    try:
        return str(messages[-1]["content"])
    except (TypeError, IndexError, KeyError):
        return None
