"""Compute the metrics of each set from a table of scored responses."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cfpo_verl.errors import UserError
from cfpo_verl.evaluation.intervals import confidence_intervals
from cfpo_verl.evaluation.rates import avg_at_n, maj_at_k, pass_at_k

Floats = NDArray[np.float64]


class UnevenError(UserError):
    """The problems of a set have different numbers of responses."""


@dataclass(frozen=True)
class SetCounts:
    """Counts per problem from which the metrics of a set are computed, in order of first appearance.

    Args:
        uids: Identifiers of the problems.
        samples: Number of responses n per problem.
        votes: Votes for the correct answer, then for each wrong one. Shape [P, 1 + W].
        correct: Number of correct responses per problem. Shape [P].
        means: {metric: mean over a problem's responses, shape [P]} for format_rate and, where known, truncation_rate
            and response_tokens.
    """

    uids: list[str]
    samples: int
    votes: NDArray[np.int64]
    correct: NDArray[np.int64]
    means: dict[str, Floats]

    def ks(self) -> list[int]:
        """Return the k of pass@k and maj@k: the powers of two up to n, and n."""
        return sorted({2**i for i in range(self.samples.bit_length())} | {self.samples})


def check_even(table: pd.DataFrame) -> None:
    """Check that all problems of a set have the same number of responses.

    Args:
        table: Columns set and uid, one row per response.

    Raises:
        UnevenError: If they do not; metrics such as pass@k could not be averaged over the problems.
    """
    for name, rows in table.groupby("set", sort=False):
        numbers = rows["uid"].value_counts(sort=False)
        if numbers.min() != numbers.max():
            raise UnevenError(
                f"{name}: problem {numbers.idxmin()} has {numbers.min()} responses and problem {numbers.idxmax()} has "
                f"{numbers.max()}; every problem of a set needs the same number"
            )


def count(table: pd.DataFrame) -> Iterator[tuple[str, SetCounts]]:
    """Yield the name and counts of each set.

    Args:
        table: Columns set, uid, score, vote, response_tokens and finish_reason, as in generations.parquet.

    Raises:
        UnevenError: If the problems of a set have different numbers of responses.
    """
    check_even(table)
    for name, rows in table.groupby("set", sort=False):
        problem, uids = pd.factorize(rows["uid"])
        number = np.bincount(problem)
        is_right = rows["score"].to_numpy() > 0
        correct = np.bincount(problem, weights=is_right).astype(np.int64)
        means = {"format_rate": rows["answer"].notna().to_numpy()}
        if rows["finish_reason"].notna().all():
            means["truncation_rate"] = (rows["finish_reason"] == "length").to_numpy()
        if rows["response_tokens"].notna().all():
            means["response_tokens"] = rows["response_tokens"].to_numpy()
        yield (
            str(name),
            SetCounts(
                list(uids),
                int(number[0]),
                _votes(problem, rows["vote"], is_right, correct),
                correct,
                {key: np.bincount(problem, weights=values) / number for key, values in means.items()},
            ),
        )


def _votes(problem: NDArray[Any], vote: pd.Series, is_right: NDArray[Any], correct: NDArray[Any]) -> NDArray[np.int64]:
    """Return the votes per problem: for the correct answer, then for each wrong one. Shape [P, 1 + W]."""
    answer, names = pd.factorize(vote)  # -1 for no answer
    wrong = ~is_right & (answer >= 0)
    different, number = np.unique(problem[wrong] * max(1, len(names)) + answer[wrong], return_counts=True)
    of_problem = different // max(1, len(names))
    # Index of each wrong answer within its problem; `different` is sorted by problem.
    place = np.arange(len(different)) - np.searchsorted(of_problem, of_problem)
    votes = np.zeros((len(correct), 1 + (place.max() + 1 if len(place) else 0)), dtype=np.int64)
    votes[:, 0] = correct
    votes[of_problem, 1 + place] = number
    return votes


def per_problem(counts: SetCounts, ks: list[int]) -> tuple[dict[str, Floats], dict[str, float]]:
    """Return {metric: value per problem, shape [P]} and {metric: Monte Carlo standard error}, for sampled ones."""
    values = {f"avg@{counts.samples}": avg_at_n(counts.correct, counts.samples)}
    passes = pass_at_k(counts.correct, counts.samples, ks)
    majority = maj_at_k(counts.votes, counts.samples, ks)
    values |= {f"pass@{k}": passes[:, place] for place, k in enumerate(ks)}
    values |= {f"maj@{k}": majority.value[:, place] for place, k in enumerate(ks)}
    errors = {f"maj@{k}": float(majority.standard_error[place]) for place, k in enumerate(ks)}
    return values | counts.means, {name: error for name, error in errors.items() if error}


def summarise(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return {set: problems, samples, metrics, pass_at_k}, the entry `sets` of summary.json.

    Args:
        table: As for `count`.

    Raises:
        UnevenError: If the problems of a set have different numbers of responses.
    """
    return {name: _summarise_set(counts) for name, counts in count(table)}


def _summarise_set(counts: SetCounts) -> dict[str, Any]:
    values, errors = per_problem(counts, counts.ks())
    every_k = np.arange(1, counts.samples + 1)
    curve = pass_at_k(counts.correct, counts.samples, every_k)
    # In one call, so that all use the same resamples.
    intervals = confidence_intervals(np.column_stack([*values.values(), curve]))
    metrics: dict[str, dict[str, Any]] = {}
    for (name, value), interval in zip(values.items(), intervals, strict=False):
        metrics[name] = {
            "value": float(value.mean()),
            "low": interval.low,
            "high": interval.high,
            "interval": interval.kind,
        }
        if name.startswith("maj@"):
            metrics[name]["standard_error"] = errors.get(name)
    of_curve = intervals[len(values) :]
    return {
        "problems": len(counts.uids),
        "samples": counts.samples,
        "metrics": metrics,
        "pass_at_k": {
            "k": every_k.tolist(),
            "value": curve.mean(axis=0).tolist(),
            "low": [interval.low for interval in of_curve],
            "high": [interval.high for interval in of_curve],
        },
    }
