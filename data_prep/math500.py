"""MATH-500: 500 test problems of MATH."""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import asked, stated
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Source


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read problem, answer, unique_id."""
    return Problem(asked(row["problem"]), stated(row["answer"]), str(row.get("unique_id") or ""))


SOURCE = Source(
    name="math500",
    data_source="HuggingFaceH4/MATH-500",
    hub_id="HuggingFaceH4/MATH-500",
    licence="MIT",
    columns=("problem", "answer"),
    optional_columns=("unique_id",),
    splits=("test",),
    evaluation_only=True,
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.data_prep.cli import run

    run(SOURCE)
