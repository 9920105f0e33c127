"""Verifiable rewards for mathematics. verl finds them by `reward.custom_reward_function.path=pkg://cfpo_verl.rewards`."""

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

# What `reward.custom_reward_function.reward_kwargs` may set.
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
    r"""Score one response: 1 if its final answer is the gold answer, else 0. docs/rewards.md says what that means.

    Safe to call from any thread. The first call in a process takes about a second: it scores known answers.

    Args:
        data_source: Name of the data set; `cfpo_verl.data_sources` has what follows from it.
        solution_str: The response, decoded without special tokens.
        ground_truth: The gold answer.
        extra_info: The row's extra_info. If it has the `problem` (or `question`), an answer that only repeats an
            expression of it scores 0, and the words of it may stand behind a number.
        diagnostics: Whether to return has_answer, fast_path, timed_out and verify_seconds too. verl bootstraps every
            key in validation, which takes time.
        workers: Worker processes of this process, for comparisons that need computer algebra.
        deadline_s: Processor seconds that one comparison may take.
        memory_gb: Memory that a worker process may have, in GiB.
        **others: Whatever else verl passes. Ignored.

    Returns:
        The same keys for every response: `score`, the reward, and `acc`, whether the answer is right. Both 0.0 or 1.0.

    Raises:
        CanaryError: At the first call, if this process's verifier does not work.
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
    """Do what `compute_score` does without blocking a thread while a worker process decides.

    For verl's reward loop, which runs plain functions in a few threads that it needs for decoding too.
    """
    scoring = _Scoring(Limits(workers, deadline_s, memory_gb), data_source, solution_str, ground_truth, extra_info)
    if isinstance(scoring.asked, Asked):
        # Others may wait for the same decision: being cancelled must not cancel it.
        await asyncio.shield(asyncio.wrap_future(scoring.asked.decision))
    return scoring.finish().as_dict(diagnostics)


class _Scoring:
    """One response on its way to a score, begun."""

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
        """Take a step in which no response may end a run: an error of ours is shown and counted, and scores 0."""
        try:
            return step()
        except Exception:
            if self._verifier.counts["errors"] == 0:
                logger.exception("an error in the verifier; this response scores 0. Further ones are counted only")
            self._verifier.counts["errors"] += 1
            return Result(is_correct=False, has_answer=False)


def unfit_gold(data_source: str, gold: str) -> str | None:
    """Say why no response could match a gold answer, or return None.

    A gold answer is fit if it is the same as itself, and is a number where its data source has numbers.
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
