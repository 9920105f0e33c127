"""Minerva MATH: 272 undergraduate science problems, the answer boxed in the solution."""

from cfpo_verl.data_prep.answers import columns, in_last_box
from cfpo_verl.data_prep.source import Source

SOURCE = Source(
    name="minerva_math",
    data_source="minerva_math",
    hub_id="math-ai/minervamath",
    licence="of the course owners",
    columns=("problem", "solution"),
    splits=("test",),
    evaluation_only=True,
    to_problem=columns("problem", "solution", in_last_box),
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
