"""MATH-500: 500 test problems of MATH."""

from cfpo_verl.data_prep.answers import columns, stated
from cfpo_verl.data_prep.source import Source

SOURCE = Source(
    name="math500",
    data_source="HuggingFaceH4/MATH-500",
    hub_id="HuggingFaceH4/MATH-500",
    licence="MIT",
    columns=("problem", "answer"),
    optional_columns=("unique_id",),
    splits=("test",),
    evaluation_only=True,
    to_problem=columns("problem", "answer", stated, source_id="unique_id"),
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
