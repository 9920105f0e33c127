"""NuminaMath-CoT: 860,000 problems of school and competitions, the answer boxed in the solution if anywhere."""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import asked, in_last_box
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Source


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read problem, solution."""
    return Problem(asked(row["problem"]), in_last_box(row["solution"]))


SOURCE = Source(
    name="numina_math_cot",
    data_source="AI-MO/NuminaMath-CoT",
    hub_id="AI-MO/NuminaMath-CoT",
    licence="Apache-2.0",
    columns=("problem", "solution"),
    splits=("train", "test"),
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.data_prep.cli import run

    run(SOURCE)
