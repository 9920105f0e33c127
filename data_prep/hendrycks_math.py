"""MATH: competition problems of seven subjects, the answer boxed in a worked solution."""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import asked, in_last_box
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Source


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read problem, solution."""
    return Problem(asked(row["problem"]), in_last_box(row["solution"]))


SOURCE = Source(
    name="hendrycks_math",
    data_source="DigitalLearningGmbH/MATH-lighteval",
    hub_id="DigitalLearningGmbH/MATH-lighteval",
    licence="MIT",
    columns=("problem", "solution"),
    splits=("train", "test"),
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.data_prep.cli import run

    run(SOURCE)
