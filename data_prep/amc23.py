"""AMC 12 of 2023: 40 problems rewritten to have a numeric answer, stored as floats such as 27.0."""

from cfpo_verl.data_prep.answers import columns, number
from cfpo_verl.data_prep.source import Source

SOURCE = Source(
    name="amc23",
    data_source="amc23",
    hub_id="AI-MO/aimo-validation-amc",
    licence="of the contest owner",
    columns=("problem", "answer"),
    optional_columns=("id",),
    splits=("train",),
    evaluation_only=True,
    to_problem=columns("problem", "answer", number, source_id="id"),
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
