"""Verifiable rewards. verl finds `compute_score` by `reward.custom_reward_function.path=pkg://cfpo_verl.rewards`."""

from typing import Any

from cfpo_verl.data_sources import DATA_SOURCES
from cfpo_verl.rewards.extract import extract_answer, parse_number, same_answer


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """Score one response: 1 if its answer is the ground truth, see `same_answer`, else 0.

    Args:
        data_source: Name of the data set. Where `DATA_SOURCES` says that its answers are numbers, this one must be.
        solution_str: The response, decoded without special tokens.
        ground_truth: The gold answer.
        extra_info: The row's extra_info. Not used for scoring.
        **kwargs: Whatever else verl passes. Ignored.

    Returns:
        The same keys for every input, as verl's aggregation requires: `score`, the reward, and
        `acc`, whether the answer is right. Both 0.0 or 1.0.

    Raises:
        ValueError: If the ground truth is one that no response could match.
    """
    gold = str(ground_truth)
    problem = unfit_gold(data_source, gold)
    if problem:
        raise ValueError(f"ground_truth {problem}, got {ground_truth!r} (data_source {data_source!r})")
    is_correct = float(same_answer(extract_answer(solution_str), gold))
    return {"score": is_correct, "acc": is_correct}


def unfit_gold(data_source: str, gold: str) -> str | None:
    """Say why no response could match a gold answer, or return None.

    A gold answer is fit if it scores 1 against itself, and is a number where its data source has numbers.
    """
    source = DATA_SOURCES.get(data_source)
    if source is not None and source.answer == "number" and parse_number(gold) is None:
        return "must be a plain number"
    if not same_answer(extract_answer(gold), gold):
        return "must be an answer that the reward scores 1 against itself"
    return None
