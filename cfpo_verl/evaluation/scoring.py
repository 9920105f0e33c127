"""Score a table of responses with the project's verifier."""

import asyncio
import logging
from collections.abc import Callable

import pandas as pd

from cfpo_verl.data_sources import data_source
from cfpo_verl.rewards import close, compute_score_async
from cfpo_verl.rewards.answers import canonical_answer
from cfpo_verl.rewards.extract import extract_answer

# Responses scored concurrently: enough to keep the worker processes busy.
_AT_ONCE = 64


def score(table: pd.DataFrame, on_scored: Callable[[int], None] = lambda _number: None) -> pd.DataFrame:
    """Return the table with the columns answer, vote and score added.

    Args:
        table: Columns data_source, response, gold and problem.
        on_scored: Called with 1 after each response.
    """
    columns = ("data_source", "response", "gold", "problem")
    rows = list(zip(*(table[column] for column in columns), strict=True))
    counters = logging.getLogger("cfpo_verl.rewards.verifier")
    level = counters.level
    counters.setLevel(logging.WARNING)  # the progress bar replaces them
    try:
        scores = asyncio.run(_score_all(rows, on_scored))
    finally:
        counters.setLevel(level)
        close()
    answers = [_answer(source, response) for source, response, _gold, _problem in rows]
    votes = [None if answer is None else _vote(answer) for answer in answers]
    return table.assign(
        answer=pd.array(answers, dtype="string"),
        vote=pd.array(votes, dtype="string"),
        score=pd.array(scores, "float64"),
    )


async def _score_all(rows: list[tuple[str, str, str, str]], on_scored: Callable[[int], None]) -> list[float]:
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(source: str, response: str, gold: str, problem: str) -> float:
        async with room:
            verdict = await compute_score_async(source, response, gold, {"problem": problem})
        on_scored(1)
        return verdict["acc"]

    return list(await asyncio.gather(*(one(*row) for row in rows)))


def _answer(source: str, response: str) -> str | None:
    try:
        return extract_answer(response, data_source(source).fallbacks)
    except KeyError:
        return extract_answer(response)


def _vote(answer: str) -> str:
    """Return a key that equal answers share, as far as that can be decided quickly."""
    try:
        return canonical_answer(answer) or answer
    except Exception:  # a model may write anything; such an answer is its own key
        return answer
