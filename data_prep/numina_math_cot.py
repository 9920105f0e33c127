"""NuminaMath-CoT: 860,000 school and competition problems; the final answer, if any, is boxed in the solution.

Its column `source` says where a problem is from; verl has names for six of these sources.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cfpo_verl.data_prep.answers import columns, in_last_box
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Source
from cfpo_verl.data_sources import DATA_SOURCES

_read = columns("problem", "solution", in_last_box)


def to_problem(row: Mapping[str, Any]) -> Problem:
    """Read problem, solution, source."""
    name = f"numina_{row.get('source')}"
    return replace(_read(row), data_source=name if name in DATA_SOURCES else "")


SOURCE = Source(
    name="numina_math_cot",
    data_source="AI-MO/NuminaMath-CoT",
    hub_id="AI-MO/NuminaMath-CoT",
    licence="Apache-2.0",
    columns=("problem", "solution"),
    optional_columns=("source",),
    splits=("train", "test"),
    to_problem=to_problem,
)

if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", SOURCE.name)
