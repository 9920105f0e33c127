"""Known values of the column `data_source`, and how the reward extracts and compares answers for each.

verl groups validation metrics by these names and its own reward functions dispatch on them, so all of verl's names are
here.
"""

from dataclasses import dataclass
from typing import Literal

# Where to find the answer of a response without a box: after the last `####`, in the last line with "answer is" or
# "answer:", or the whole response.
Fallback = Literal["hashes", "answer_line", "whole"]


@dataclass(frozen=True)
class DataSource:
    r"""Scoring rules of one data source.

    Args:
        name: The value of `data_source`.
        answer: "number", a plain decimal number; "expression", LaTeX or text; "unsupported", a task that cannot be
            scored by comparing final answers.
        fallbacks: Where to find the answer of a response without a `\boxed{...}`.
        relative_tolerance: Allowed relative error with respect to a gold answer written as a decimal.
    """

    name: str
    answer: Literal["number", "expression", "unsupported"]
    fallbacks: tuple[Fallback, ...] = ("answer_line",)
    relative_tolerance: float = 0.0


_HASHES: tuple[Fallback, ...] = ("hashes", "answer_line")
# The prompts of generated problems ask only for the answer.
_BARE: tuple[Fallback, ...] = ("hashes", "whole")

DATA_SOURCES = {
    source.name: source
    for source in (
        DataSource("arithmetic", "number", _BARE),
        DataSource("few_shot_sums", "number", _BARE),
        DataSource("reasoning_gym", "expression", ("hashes", "answer_line", "whole")),
        DataSource("openai/gsm8k", "number", _HASHES),
        DataSource("lighteval/MATH", "expression", _HASHES),
        DataSource("DigitalLearningGmbH/MATH-lighteval", "expression", _HASHES),
        DataSource("HuggingFaceH4/MATH-500", "expression", _HASHES),
        DataSource("math_dapo", "number"),
        DataSource("math", "expression"),
        DataSource("math_dapo_reasoning", "expression"),
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
        DataSource("hiyouga/geometry3k", "expression"),
        DataSource("aime24", "number"),
        DataSource("aime25", "number"),
        DataSource("amc23", "number"),
        # Its gold decimals are rounded to two or three digits; the tolerance of 1 percent is our choice.
        DataSource("minerva_math", "expression", relative_tolerance=0.01),
        DataSource("olympiadbench", "expression"),
        *(DataSource(name, "unsupported") for name in ("codecontests", "apps", "codeforces", "taco")),
        *(
            DataSource(f"searchR1_{name}", "unsupported")
            for name in ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
        ),
    )
}


def data_source(name: str) -> DataSource:
    """Return the rules of a data source. As in verl, every name that starts with "aime" is AIME.

    Raises:
        KeyError: If the name is unknown.
    """
    return DATA_SOURCES["aime24"] if name not in DATA_SOURCES and name.startswith("aime") else DATA_SOURCES[name]
