"""GSM8K: grade-school word problems whose worked solution ends in `#### n`."""

from cfpo_verl.data_prep.answers import after_hashes, columns
from cfpo_verl.data_prep.source import Source

SOURCE = Source(
    name="gsm8k",
    data_source="openai/gsm8k",
    hub_id="openai/gsm8k",
    hub_config="main",
    licence="MIT",
    columns=("question", "answer"),
    splits=("train", "test"),
    to_problem=columns("question", "answer", after_hashes),
    template="hashes",
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
