"""The names that may stand in the column `data_source`, and what a gold answer looks like under each.

verl logs validation metrics by these names and its own reward functions dispatch on them, so they are verl's where verl
has one. Data preparation writes them, checks of data and the reward read them here.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataSource:
    """What is known of all rows of one name.

    Args:
        name: The value of `data_source`.
        answer: "number", a plain decimal number, or "expression", LaTeX or text.
    """

    name: str
    answer: Literal["number", "expression"]


DATA_SOURCES = {
    source.name: source
    for source in (
        DataSource("arithmetic", "number"),
        DataSource("few_shot_sums", "number"),
        DataSource("reasoning_gym", "expression"),
        DataSource("openai/gsm8k", "number"),
        DataSource("DigitalLearningGmbH/MATH-lighteval", "expression"),
        DataSource("HuggingFaceH4/MATH-500", "expression"),
        DataSource("math_dapo", "number"),
        DataSource("open-r1/OpenR1-Math-220k", "expression"),
        DataSource("agentica-org/DeepScaleR-Preview-Dataset", "expression"),
        DataSource("AI-MO/NuminaMath-CoT", "expression"),
        DataSource("numina_aops_forum", "expression"),
        DataSource("numina_synthetic_math", "expression"),
        DataSource("numina_amc_aime", "expression"),
        DataSource("numina_synthetic_amc", "expression"),
        DataSource("numina_cn_k12", "expression"),
        DataSource("numina_olympiads", "expression"),
        DataSource("SynthLabsAI/Big-Math-RL-Verified", "expression"),
        DataSource("aime24", "number"),
        DataSource("aime25", "number"),
        DataSource("amc23", "number"),
        DataSource("minerva_math", "expression"),
        DataSource("olympiadbench", "expression"),
    )
}
