"""AIME 2024: 30 problems, answers from 0 to 999."""

from cfpo_verl.data_prep.answers import columns, number
from cfpo_verl.data_prep.source import Source

SOURCE = Source(
    name="aime24",
    data_source="aime24",
    hub_id="HuggingFaceH4/aime_2024",
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
