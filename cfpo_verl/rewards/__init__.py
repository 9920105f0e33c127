"""Verifiable rewards. verl finds `compute_score` by `reward.custom_reward_function.path=pkg://cfpo_verl.rewards`."""

from typing import Any

from cfpo_verl.rewards.extract import extract_answer, parse_number


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """Score one response: 1 if its answer is the same number as the ground truth, else 0.

    Args:
        data_source: Name of the data set, for verl's per-source metrics. Not used for scoring.
        solution_str: The response, decoded without special tokens.
        ground_truth: The gold answer, a plain number as text.
        extra_info: The row's extra_info. Not used for scoring.
        **kwargs: Whatever else verl passes. Ignored.

    Returns:
        The same keys for every input, as verl's aggregation requires: `score`, the reward, and
        `acc`, whether the answer is right. Both 0.0 or 1.0.

    Raises:
        ValueError: If the ground truth is not a number, since then every response would score 0.
    """
    gold = parse_number(str(ground_truth))
    if gold is None:
        raise ValueError(f"ground_truth must be a plain number, got {ground_truth!r} (data_source {data_source!r})")
    is_correct = float(parse_number(extract_answer(solution_str)) == gold)
    return {"score": is_correct, "acc": is_correct}
