"""AMC 12 of 2023: 40 problems rewritten to have a numeric answer, stored as floats such as 27.0."""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import asked, number
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Source


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read problem, answer, id."""
    return Problem(asked(row["problem"]), number(row["answer"]), str(row.get("id", "")))


SOURCE = Source(
    name="amc23",
    data_source="amc23",
    hub_id="AI-MO/aimo-validation-amc",
    licence="of the contest owner",
    columns=("problem", "answer"),
    optional_columns=("id",),
    splits=("train",),
    evaluation_only=True,
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.data_prep.cli import run

    run(SOURCE)
