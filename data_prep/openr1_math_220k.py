"""OpenR1-Math-220k: problems of NuminaMath with answers that were verified."""

from cfpo_verl.data_prep.answers import columns, stated
from cfpo_verl.data_prep.source import Source

SOURCE = Source(
    name="openr1_math_220k",
    data_source="open-r1/OpenR1-Math-220k",
    hub_id="open-r1/OpenR1-Math-220k",
    hub_config="default",
    licence="Apache-2.0",
    columns=("problem", "answer"),
    optional_columns=("uuid",),
    to_problem=columns("problem", "answer", stated, source_id="uuid"),
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
