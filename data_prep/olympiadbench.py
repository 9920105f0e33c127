"""OlympiadBench: olympiad problems in English, text only; answers are lists, some with units.

Several answers are joined with commas. Answers in words and answers with an error tolerance are left out and counted.
"""

from collections.abc import Mapping
from typing import Any

from cfpo_verl.data_prep.answers import asked, stated
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Dropped, Source
from cfpo_verl.rewards.answers import has_words


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read question, final_answer, error, context, unit, id."""
    if not isinstance(row["final_answer"], list) or not row["final_answer"]:
        raise Dropped("no answer")
    if row["error"]:
        raise Dropped("answer with an error tolerance")
    answer = stated(", ".join(map(str, row["final_answer"])))
    if has_words(answer):
        raise Dropped("answer in words")
    question = asked(row["question"])
    if row["context"]:
        question = f"{str(row['context']).strip()}\n{question}"
    if row["unit"]:
        question = f"{question}\nGive the answer in the unit {str(row['unit']).strip()}, without the unit."
    return Problem(question, answer, "" if row.get("id") is None else str(row["id"]))


SOURCE = Source(
    name="olympiadbench",
    data_source="olympiadbench",
    hub_id="Hothan/OlympiadBench",
    hub_config="OE_TO_maths_en_COMP",
    licence="MIT",
    columns=("question", "final_answer", "error", "context", "unit"),
    optional_columns=("id",),
    splits=("train",),
    evaluation_only=True,
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
