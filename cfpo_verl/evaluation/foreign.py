"""Read generations that someone else made."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cfpo_verl.data_prep.text import fingerprint, normalise
from cfpo_verl.evaluation.sets import EvaluationError
from cfpo_verl.evaluation.store import SCHEMA


def read_responses(file: Path) -> pd.DataFrame:
    """Read generations of any origin as a table with the columns that scoring and generations.parquet need.

    Raises:
        EvaluationError: If the file cannot be read, or lacks something.
    """
    try:
        table = pq.read_table(file).to_pandas()
    except (OSError, pa.ArrowInvalid) as error:
        raise EvaluationError(f"{file}: cannot be read as parquet ({error})") from error
    if "responses" in table and "response" not in table:
        table = table.explode("responses", ignore_index=True).rename(columns={"responses": "response"})
    if "gold" not in table and "reward_model" in table:
        table["gold"] = [str(model["ground_truth"]) for model in table["reward_model"]]
    missing = [column for column in ("response", "data_source", "gold") if column not in table]
    if missing or table.empty:
        what = f"column {missing[0]!r} is missing" if missing else "there are no rows"
        raise EvaluationError(
            f"{file}: {what}. Needed: response (or a list `responses`), data_source, and gold or reward_model. "
            f"Found: {', '.join(map(str, table.columns))}"
        )
    infos = table["extra_info"] if "extra_info" in table else [None] * len(table)
    if "problem" not in table:
        table["problem"] = [str((info or {}).get("problem") or (info or {}).get("question") or "") for info in infos]
    if "prompt" in table:
        table["prompt"] = [prompt if isinstance(prompt, str) else _said(prompt) for prompt in table["prompt"]]
    else:
        table["prompt"] = None
    if "uid" not in table:
        table["uid"] = [
            (info or {}).get("uid") or fingerprint(normalise(problem or prompt or ""), normalise(str(gold)))
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
    return table.assign(gold=table["gold"].astype(str), response=table["response"].fillna("").astype(str)).reset_index(
        drop=True
    )


def _said(messages: Any) -> str | None:
    """Return the last message of a prompt in verl's schema."""
    return None if messages is None or len(messages) == 0 else str(messages[-1]["content"])
