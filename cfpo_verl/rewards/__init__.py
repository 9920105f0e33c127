"""Verifiable rewards for mathematics, for verl's `reward.custom_reward_function.path=pkg://cfpo_verl.rewards`."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cfpo_verl.data_sources import data_source as known_data_source
from cfpo_verl.rewards.answers import canonical_answer, parse_number, read
from cfpo_verl.rewards.compare import compare
from cfpo_verl.rewards.verifier import Asked, Result, close, verifier_for
from cfpo_verl.rewards.workers import Limits

__all__ = ["REWARD_KWARGS", "close", "compute_score", "compute_score_async", "unfit_gold"]

logger = logging.getLogger(__name__)

# Keys of `reward.custom_reward_function.reward_kwargs`.
REWARD_KWARGS = ("diagnostics", "workers", "deadline_s", "memory_gb")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    diagnostics: bool = False,
    workers: int = Limits.workers,
    deadline_s: float = Limits.deadline_s,
    memory_gb: float = Limits.memory_gb,
    **others: Any,
) -> dict[str, float]:
    r"""Score one response: 1 if its final answer equals the gold answer, else 0 (rules: docs/rewards.md).

    Thread-safe. The first call in a process takes about a second, since it first scores known answers.

    Args:
        data_source: Name of the data source, which selects the rules in `cfpo_verl.data_sources`.
        solution_str: The response, decoded without special tokens.
        ground_truth: The gold answer.
        extra_info: The row's extra_info. If it has `problem` (or `question`), an answer that only copies an expression
            from it scores 0, and a number may be followed by what it counts.
        diagnostics: Whether to return has_answer, fast_path, timed_out and verify_seconds too. verl bootstraps each
            key in validation, which takes time.
        workers: Number of worker processes, used for comparisons that need computer algebra.
        deadline_s: CPU time limit per comparison, in seconds.
        memory_gb: Memory limit per worker process, in GiB.
        **others: Any other argument that verl passes; ignored.

    Returns:
        `score`, the reward, and `acc`, whether the answer is correct: both 0.0 or 1.0, for every response.

    Raises:
        CanaryError: If the verifier gives a wrong verdict on a known answer.
        LimitError: If a limit is not a positive number.

    Example:
        >>> compute_score("openai/gsm8k", "Half of it is 12.\n#### 12", "12")
        {'score': 1.0, 'acc': 1.0}
    """
    scoring = _Scoring(Limits(workers, deadline_s, memory_gb), data_source, solution_str, ground_truth, extra_info)
    return scoring.finish().as_dict(diagnostics)


async def compute_score_async(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    diagnostics: bool = False,
    workers: int = Limits.workers,
    deadline_s: float = Limits.deadline_s,
    memory_gb: float = Limits.memory_gb,
    **others: Any,
) -> dict[str, float]:
    """Score one response like `compute_score`, without blocking a thread while a worker process decides.

    Meant for verl's reward loop, which runs plain functions in a small thread pool that it also needs for decoding.
    """
    scoring = _Scoring(Limits(workers, deadline_s, memory_gb), data_source, solution_str, ground_truth, extra_info)
    if isinstance(scoring.asked, Asked):
        # Other calls may wait for the same decision, so cancelling this one must not cancel it.
        await asyncio.shield(asyncio.wrap_future(scoring.asked.decision))
    return scoring.finish().as_dict(diagnostics)


class _Scoring:
    """The scoring of one response, from its start to the result."""

    def __init__(
        self, limits: Limits, data_source: str, response: str, gold: str, extra_info: Mapping[str, Any] | None
    ) -> None:
        self._verifier = verifier_for(limits)
        self._begin_s = time.perf_counter()
        self.asked: Result | Asked = self._guarded(
            lambda: self._verifier.start(data_source, str(response), str(gold), extra_info)
        )

    def finish(self) -> Result:
        result = self._guarded(lambda: self._verifier.finish(self.asked))
        self._verifier.count(result)
        return replace(result, verify_s=time.perf_counter() - self._begin_s)

    def _guarded(self, step: Callable[[], Any]) -> Any:
        """Run a step. No response may end a training run: a bug is logged, counted, and scores 0."""
        try:
            return step()
        except Exception:
            if self._verifier.counts["errors"] == 0:
                logger.exception("bug in the verifier; this response scores 0. Further errors are only counted")
            self._verifier.counts["errors"] += 1
            return Result(is_correct=False, has_answer=False)


def unfit_gold(data_source: str, gold: str) -> str | None:
    """Return why no response could match a gold answer, or None.

    A valid gold answer equals itself, and is a number if its data source has numeric answers.
    """
    try:
        source = known_data_source(data_source)
    except KeyError:
        source = None
    if source is not None and source.answer == "unsupported":
        return "belongs to a task that no comparison of final answers can score"
    if source is not None and source.answer == "number" and parse_number(gold) is None:
        return "must be a plain number"
    if not canonical_answer(gold) or not compare(read(gold), read(gold)):
        return "must be an answer that the reward scores 1 against itself"
    return None
