"""Known correct and wrong answers, scored before training through the same code path as in training.

A broken verifier (missing package, dying workers, too tight a limit) typically scores everything 0, which looks like a
model that does not learn.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from cfpo_verl.errors import UserError

# Data source, response, gold answer, score. The last four need a worker process.
CASES = (
    ("openai/gsm8k", "3 + 4 is 7.\n#### 7", "7", 1),
    ("openai/gsm8k", "3 + 4 is 8.\n#### 8", "7", 0),
    ("HuggingFaceH4/MATH-500", r"So it is $\boxed{\frac{1}{2}}$.", "0.5", 1),
    ("HuggingFaceH4/MATH-500", r"So it is \boxed{1} or \boxed{2}.", "2", 0),
    ("HuggingFaceH4/MATH-500", r"<think>\boxed{4}</think> It is \boxed{3}.", "4", 0),
    ("math_dapo", "Let us see.\nAnswer: $34$", "34", 1),
    ("HuggingFaceH4/MATH-500", r"\boxed{\frac{\cos x}{\sin x}}", r"\cot x", 1),
    ("HuggingFaceH4/MATH-500", r"\boxed{\frac{\sin x}{\cos x}}", r"\cot x", 0),
    ("HuggingFaceH4/MATH-500", r"\boxed{4x - 2y + 6 = 0}", "y = 2x + 3", 1),
    ("HuggingFaceH4/MATH-500", r"\boxed{4x - 2y + 5 = 0}", "y = 2x + 3", 0),
)


class Verdict(Protocol):
    """What a verifier returns about a response."""

    @property
    def is_correct(self) -> bool:
        """Whether its answer is the gold answer."""

    @property
    def timed_out(self) -> bool:
        """Whether the comparison hit its time or memory limit."""


class CanaryError(UserError):
    """The verifier gives a wrong verdict on a known answer, so rewards would be wrong."""


def explain(response: str, gold: str, got: float, expected: float, timed_out: bool = False) -> str:
    """Return a message with the wrong verdict and what to check."""
    reason = " (the comparison exceeded its time or memory limit)" if timed_out else ""
    return (
        f"reward canary: the response {response!r} with the gold answer {gold!r} scores {got:g} instead of "
        f"{expected:g}{reason}. The verifier does not work here: check that math-verify is installed in this "
        "environment, and that reward_kwargs.deadline_s, memory_gb and workers leave enough time and memory"
    )


def check(verify: Callable[[Sequence[tuple[str, str, str]]], Iterable[Verdict]]) -> None:
    """Score all cases.

    Args:
        verify: Takes (data source, response, gold answer) of all cases, returns their verdicts in the same order.

    Raises:
        CanaryError: At the first wrong verdict.
    """
    verdicts = verify([(source, response, gold) for source, response, gold, _expected in CASES])
    for result, (_source, response, gold, expected) in zip(verdicts, CASES, strict=True):
        if result.is_correct != expected:
            raise CanaryError(explain(response, gold, result.is_correct, expected, result.timed_out))
