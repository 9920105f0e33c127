"""DeepScaleR: AIME and AMC before 2023, Omni-MATH and STILL, with final answers."""

from cfpo_verl.data_prep.answers import columns, stated
from cfpo_verl.data_prep.source import Source

SOURCE = Source(
    name="deepscaler",
    data_source="agentica-org/DeepScaleR-Preview-Dataset",
    hub_id="agentica-org/DeepScaleR-Preview-Dataset",
    licence="MIT",
    columns=("problem", "answer"),
    to_problem=columns("problem", "answer", stated),
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
