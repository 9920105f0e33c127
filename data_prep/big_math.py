"""Big-Math: 250,000 problems chosen for RL, with verifiable answers."""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import asked, stated
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Source


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read problem, answer."""
    return Problem(asked(row["problem"]), stated(row["answer"]))


SOURCE = Source(
    name="big_math",
    data_source="SynthLabsAI/Big-Math-RL-Verified",
    hub_id="SynthLabsAI/Big-Math-RL-Verified",
    licence="Apache-2.0",
    columns=("problem", "answer"),
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.data_prep.cli import run

    run(SOURCE)
