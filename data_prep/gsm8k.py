"""GSM8K: grade-school word problems whose worked solution ends in `#### n`."""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import after_hashes, asked
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Source


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read question, answer."""
    return Problem(asked(row["question"]), after_hashes(row["answer"]))


SOURCE = Source(
    name="gsm8k",
    data_source="openai/gsm8k",
    hub_id="openai/gsm8k",
    hub_config="main",
    licence="MIT",
    columns=("question", "answer"),
    splits=("train", "test"),
    to_problem=to_problem,
    template="hashes",
)

if __name__ == "__main__":
    from cfpo_verl.data_prep.cli import run

    run(SOURCE)
