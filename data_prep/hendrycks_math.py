"""MATH: competition problems of seven subjects, the answer boxed in a worked solution."""

from cfpo_verl.data_prep.answers import columns, in_last_box
from cfpo_verl.data_prep.source import Source

SOURCE = Source(
    name="hendrycks_math",
    data_source="DigitalLearningGmbH/MATH-lighteval",
    hub_id="DigitalLearningGmbH/MATH-lighteval",
    licence="MIT",
    columns=("problem", "solution"),
    splits=("train", "test"),
    to_problem=columns("problem", "solution", in_last_box),
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
