"""DeepScaleR: AIME and AMC before 2023, Omni-MATH and STILL, with final answers."""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import asked, stated
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Source


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read problem, answer."""
    return Problem(asked(row["problem"]), stated(row["answer"]))


SOURCE = Source(
    name="deepscaler",
    data_source="agentica-org/DeepScaleR-Preview-Dataset",
    hub_id="agentica-org/DeepScaleR-Preview-Dataset",
    licence="MIT",
    columns=("problem", "answer"),
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.data_prep.cli import run

    run(SOURCE)
