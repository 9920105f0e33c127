"""DAPO-Math-17k: competition problems with whole-number answers, already in verl's columns.

The public file repeats each row about a hundred times; `prepare` keeps one of each.
"""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import asked, number
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Dropped, Source

# Text before and after the problem in the file's prompts.
BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read prompt, reward_model."""
    match row["prompt"], row["reward_model"]:
        case [{"content": str(content)}], {"ground_truth": gold}:
            return Problem(asked(content.removeprefix(BEFORE).removesuffix(AFTER)), number(gold))
        case [{"content": str()}], _:
            raise Dropped("no answer")
    raise Dropped("not a single message")


SOURCE = Source(
    name="dapo_math_17k",
    data_source="math_dapo",
    hub_id="BytedTsinghua-SIA/DAPO-Math-17k",
    licence="Apache-2.0",
    columns=("prompt", "reward_model"),
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
