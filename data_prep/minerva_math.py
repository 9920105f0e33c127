"""Minerva MATH: 272 undergraduate problems of the sciences, the answer boxed in the solution."""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import asked, in_last_box
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Source


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read problem, solution."""
    return Problem(asked(row["problem"]), in_last_box(row["solution"]))


SOURCE = Source(
    name="minerva_math",
    data_source="minerva_math",
    hub_id="math-ai/minervamath",
    licence="of the course owners",
    columns=("problem", "solution"),
    splits=("test",),
    evaluation_only=True,
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.data_prep.cli import run

    run(SOURCE)
