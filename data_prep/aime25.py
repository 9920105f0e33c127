"""AIME 2025: 30 problems, answers from 0 to 999."""

from cfpo_verl.data_prep.answers import columns, number
from cfpo_verl.data_prep.source import Source

SOURCE = Source(
    name="aime25",
    data_source="aime25",
    hub_id="math-ai/aime25",
    licence="of the contest owner",
    columns=("problem", "answer"),
    optional_columns=("id",),
    splits=("test",),
    evaluation_only=True,
    to_problem=columns("problem", "answer", number, source_id="id"),
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
