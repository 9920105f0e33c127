"""Score responses: extraction, comparison, and worker processes for what the comparison cannot decide."""

import logging
import os
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cfpo_verl.data_sources import DataSource, data_source
from cfpo_verl.rewards import canary
from cfpo_verl.rewards.answers import read
from cfpo_verl.rewards.compare import compare, is_echo
from cfpo_verl.rewards.extract import extract_answer
from cfpo_verl.rewards.workers import Decision, Limits, SymbolicWorkers, forget_fork_server

logger = logging.getLogger(__name__)
# For the counters, which verl's reward workers log through their root handler.
logger.setLevel(logging.INFO)

_CACHED_DECISIONS = 20_000
_LOG_EVERY_S = 600.0
# Only the first characters of a problem are used.
_MAX_PROBLEM = 20_000
_UNKNOWN = DataSource("", "expression")


@dataclass(frozen=True)
class Result:
    """The result of scoring a response.

    Args:
        is_correct: Whether its answer equals the gold answer.
        has_answer: Whether it states an answer.
        fast_path: Whether it was decided without a worker process.
        timed_out: Whether the worker process exceeded its time or memory limit.
        verify_s: Wall-clock seconds from the call to the verdict, including queueing.
    """

    is_correct: bool
    has_answer: bool
    fast_path: bool = True
    timed_out: bool = False
    verify_s: float = 0.0

    def as_dict(self, diagnostics: bool) -> dict[str, float]:
        """Return the result in the form verl expects: only numbers, and the same keys for every response."""
        correct = float(self.is_correct)
        scores = {"score": correct, "acc": correct}
        if diagnostics:
            scores |= {
                "has_answer": float(self.has_answer),
                "fast_path": float(self.fast_path),
                "timed_out": float(self.timed_out),
                "verify_seconds": self.verify_s,
            }
        return scores


@dataclass
class Asked:
    """A response whose verdict is pending in a worker process."""

    decision: "Future[Decision]"
    answer: str
    gold: str
    problem: str


class Verifier:
    """The verifier of one process, with its worker processes, cached decisions and counters."""

    def __init__(self, limits: Limits) -> None:
        """Create a verifier; its worker processes start when they are needed.

        Args:
            limits: Limits of the worker processes.
        """
        self.workers = SymbolicWorkers(limits)
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._decisions: OrderedDict[tuple[Any, ...], Future[Decision]] = OrderedDict()
        self._log_at = 64
        self._logged_s = time.monotonic()

    def start(self, source: str, response: str, gold: str, extra_info: Mapping[str, Any] | None) -> Result | Asked:
        """Score a response, or submit it to a worker process.

        Args:
            source: Name of its data source.
            response: The response.
            gold: The gold answer.
            extra_info: The row's extra_info; `problem` or `question` in it is the text of the problem.
        """
        try:
            known = data_source(source)
        except KeyError:
            known = _UNKNOWN
        answer = extract_answer(response, known.fallbacks)
        if answer is None:
            return Result(False, has_answer=False)
        problem = _problem(extra_info)[:_MAX_PROBLEM]
        words = _shared_words(answer, problem)
        verdict = compare(read(answer), read(gold), relative_tolerance=known.relative_tolerance, words=words)
        if verdict is None:
            return Asked(self._decide(answer, gold, known.relative_tolerance, words), answer, gold, problem)
        return Result(verdict and not (problem and is_echo(answer, gold, problem)), has_answer=True)

    def finish(self, asked: Result | Asked) -> Result:
        """Return the result of a response, waiting for the worker process if it is pending."""
        if isinstance(asked, Result):
            return asked
        decision = asked.decision.result()
        if decision.timed_out:
            self._forget_undecided(asked.decision)
        if decision.error:
            if self.counts["raised"] == 0:
                logger.warning(
                    "%r with gold answer %r: %s; it scores 0",
                    asked.answer,
                    asked.gold,
                    decision.error,
                )
            self.counts["raised"] += 1
        is_correct = decision.is_equal and not (asked.problem and is_echo(asked.answer, asked.gold, asked.problem))
        return Result(is_correct, has_answer=True, fast_path=False, timed_out=decision.timed_out)

    def verify(self, cases: Iterable[tuple[str, str, str]]) -> Iterator[Result]:
        """Score (data source, response, gold answer) one by one, after all of them have been started."""
        started = [self.start(source, response, gold, None) for source, response, gold in cases]
        return map(self.finish, started)

    def _decide(self, *job: Any) -> "Future[Decision]":
        """Submit a comparison, only once for equal ones, since responses to the same prompt often agree."""
        with self._lock:
            future = self._decisions.get(job)
            if future is None:
                future = self._decisions[job] = self.workers.submit(*job)
                if len(self._decisions) > _CACHED_DECISIONS:
                    self._decisions.popitem(last=False)
            else:
                self._decisions.move_to_end(job)
                self.counts["remembered"] += 1
        return future

    def _forget_undecided(self, future: "Future[Decision]") -> None:
        """Drop a timed-out decision from the cache: the machine may have been the cause."""
        with self._lock:
            for job in [job for job, decision in self._decisions.items() if decision is future]:
                del self._decisions[job]

    def count(self, result: Result) -> None:
        """Add a result to the counters, and log them occasionally."""
        with self._lock:
            self.counts["scored"] += 1
            self.counts["correct"] += result.is_correct
            self.counts["no_answer"] += not result.has_answer
            self.counts["fast_path"] += result.fast_path
            self.counts["timed_out"] += result.timed_out
            now = time.monotonic()
            due = self.counts["scored"] >= self._log_at or now - self._logged_s > _LOG_EVERY_S
            if due:
                self._log_at = 2 * self.counts["scored"]
                self._logged_s = now
                line = ", ".join(f"{name} {self.counts[name]}" for name in _LOGGED)
        if due:
            logger.info("rewards of this process: %s", line)


_LOGGED = ("scored", "correct", "no_answer", "fast_path", "remembered", "timed_out", "raised", "errors")


def _problem(extra_info: Mapping[str, Any] | None) -> str:
    for key in ("problem", "question"):
        text = extra_info.get(key) if extra_info else None
        if isinstance(text, str) and text:
            return text
    return ""


_WORD = re.compile(r"[a-z]{3,}")
_COUNTED = re.compile(r"\b(?:how many|number of|how much)\s+((?:[a-z-]+\s+){0,3}[a-z]+)")
# Words that change the number before them.
_NOT_COUNTED = {
    *("hundred", "thousand", "million", "billion", "trillion", "dozen", "hundreds", "thousands", "millions", "dozens"),
    *("pairs", "half", "halves", "twice", "times", "squared", "cubed", "plus", "minus", "not", "and", "percent"),
    *("less", "more"),
}


def _shared_words(answer: str, problem: str) -> frozenset[str]:
    """Return the words of an answer that name what its problem counts, in lower case."""
    words = frozenset(_WORD.findall(answer.lower()))
    return words & _counted(problem) if words and problem else frozenset()


@lru_cache(maxsize=1000)
def _counted(problem: str) -> frozenset[str]:
    """Return the words after "how many", "how much" and "number of" in a problem.

    Example:
        >>> sorted(_counted("How many green apples has she?"))
        ['apples', 'green', 'has', 'she']
    """
    return frozenset(_WORD.findall(" ".join(_COUNTED.findall(problem.lower())))) - _NOT_COUNTED


_lock = threading.Lock()
_verifiers: dict[Limits, Verifier] = {}
_failures: dict[Limits, canary.CanaryError] = {}


def verifier_for(limits: Limits) -> Verifier:
    """Return this process's verifier for these limits, after checking it with the canary.

    Raises:
        CanaryError: If it gives a wrong verdict; then at every later call too.
    """
    made = _verifiers.get(limits)
    if made is not None:
        return made
    with _lock:  # a reward loop starts with many concurrent calls
        if limits in _failures:
            raise _failures[limits]
        if limits not in _verifiers:
            made = Verifier(limits)
            try:
                canary.check(made.verify)
            except canary.CanaryError as error:
                _failures[limits] = error
                made.workers.close()
                raise
            _verifiers[limits] = made
        return _verifiers[limits]


def close() -> None:
    """End the worker processes of this process and clear the caches. A later call starts new ones."""
    with _lock:
        _failures.clear()
        while _verifiers:
            _limits, made = _verifiers.popitem()
            made.workers.close()


def _forget() -> None:
    """Reset a forked child, since the worker processes belong to its parent."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _verifiers.clear()
    _failures.clear()
    forget_fork_server()


os.register_at_fork(after_in_child=_forget)
