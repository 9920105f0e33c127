"""OpenR1-Math-220k: problems of NuminaMath with answers that were verified."""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import asked, stated
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Source


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read problem, answer, uuid."""
    return Problem(asked(row["problem"]), stated(row["answer"]), str(row.get("uuid") or ""))


SOURCE = Source(
    name="openr1_math_220k",
    data_source="open-r1/OpenR1-Math-220k",
    hub_id="open-r1/OpenR1-Math-220k",
    hub_config="default",
    licence="Apache-2.0",
    columns=("problem", "answer"),
    optional_columns=("uuid",),
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.data_prep.cli import run

    run(SOURCE)
