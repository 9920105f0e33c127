"""NuminaMath-CoT: 860,000 problems of school and competitions, the answer boxed in the solution if anywhere."""

from cfpo_verl.data_prep.answers import columns, in_last_box
from cfpo_verl.data_prep.source import Source

SOURCE = Source(
    name="numina_math_cot",
    data_source="AI-MO/NuminaMath-CoT",
    hub_id="AI-MO/NuminaMath-CoT",
    licence="Apache-2.0",
    columns=("problem", "solution"),
    splits=("train", "test"),
    to_problem=columns("problem", "solution", in_last_box),
)

if __name__ == "__main__":
    from cfpo_verl.data_prep.cli import run

    run(SOURCE)
