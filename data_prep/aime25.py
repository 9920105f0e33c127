"""AIME 2025: 30 problems, answers from 0 to 999."""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import asked, number
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Source


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read problem, answer, id."""
    return Problem(asked(row["problem"]), number(row["answer"]), str(row.get("id", "")))


SOURCE = Source(
    name="aime25",
    data_source="aime25",
    hub_id="math-ai/aime25",
    licence="of the contest owner",
    columns=("problem", "answer"),
    optional_columns=("id",),
    splits=("test",),
    evaluation_only=True,
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.data_prep.cli import run

    run(SOURCE)
