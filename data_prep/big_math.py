"""Big-Math: 250,000 problems chosen for RL, with verifiable answers."""

from cfpo_verl.data_prep.answers import columns, stated
from cfpo_verl.data_prep.source import Source

SOURCE = Source(
    name="big_math",
    data_source="SynthLabsAI/Big-Math-RL-Verified",
    hub_id="SynthLabsAI/Big-Math-RL-Verified",
    licence="Apache-2.0",
    columns=("problem", "answer"),
    to_problem=columns("problem", "answer", stated),
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
