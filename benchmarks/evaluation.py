"""Time the metrics of an evaluation, and verl's own metrics for validation, in one run.

    python -m benchmarks.evaluation                             # 2,000 problems x 8 responses; pass@k of 30 x 1,024
    python -m benchmarks.evaluation --problems 100 --out a.json

metrics: computes avg@n, pass@k for every k, maj@k, format, truncation and length, each with its interval over problems,
from scored responses. verl's `process_validation_metrics` gets the same responses, with their scores and answers; it
computes mean, best, worst and majority for k = 2, 4, ..., n from 1,000 resamples of each problem, and no interval over
problems. `bias` is pass@n, or verl's best@n, minus the share of problems with at least one correct response.

pass_at_k: computes pass@k for all k up to n, and the same with the estimator as published in the HumanEval paper, one
product per problem and k.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from benchmarks.tables import print_rows
from cfpo_verl.evaluation import pass_at_k
from cfpo_verl.evaluation.summary import summarise

_ROUNDS = 5


def responses(problems: int, samples: int) -> pd.DataFrame:
    """Return synthetic scored responses: easy and hard problems, common and rare wrong answers."""
    rng = np.random.default_rng(0)
    is_right = rng.random((problems, samples)) < rng.beta(0.5, 0.7, size=(problems, 1))
    wrong = np.minimum(rng.geometric(0.3, size=is_right.shape), 50).astype(str)
    vote = np.where(is_right, "0", wrong)
    return pd.DataFrame(
        {
            "set": "made-up",
            "uid": np.repeat([f"{number:032x}" for number in range(problems)], samples),
            "score": is_right.ravel().astype(float),
            "answer": vote.ravel(),
            "vote": vote.ravel(),
            "finish_reason": "stop",
            "response_tokens": rng.integers(10, 4096, problems * samples),
        }
    )


def plain_pass_at_k(correct: np.ndarray, samples: int) -> np.ndarray:
    """Return pass@k for all k with the estimator of Chen et al., arXiv:2107.03374, one problem and k at a time."""

    def estimate(c: int, k: int) -> float:
        if samples - c < k:
            return 1.0
        return float(1.0 - np.prod(1.0 - k / np.arange(samples - c + 1, samples + 1)))

    return np.array([[estimate(int(c), k) for k in range(1, samples + 1)] for c in correct])


def timed(call: Callable[[], Any], rounds: int = 1) -> tuple[Any, float]:
    """Return the result of a call and the median of its durations, in seconds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def measure_metrics(problems: int, samples: int) -> list[dict[str, Any]]:
    """Return one row for our metrics and one for verl's."""
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    table = responses(problems, samples)
    infos = {"score": table["score"].tolist(), "acc": table["score"].tolist(), "pred": table["answer"].tolist()}
    sources, uids = table["set"].tolist(), table["uid"].tolist()
    summarise(table)  # imports and first allocations
    ours, ours_s = timed(lambda: summarise(table), _ROUNDS)
    theirs, theirs_s = timed(lambda: process_validation_metrics(sources, uids, infos))
    truth = table.groupby("uid")["score"].max().mean()
    found = {
        "cfpo_verl": (ours_s, ours["made-up"]["metrics"][f"pass@{samples}"]["value"]),
        "verl": (theirs_s, theirs["made-up"]["acc"][f"best@{samples}/mean"]),
    }
    return [
        {
            "version": version,
            "problems": problems,
            "samples": samples,
            "time_s": seconds,
            "time_ratio": seconds / ours_s,
            "bias": best - truth,
        }
        for version, (seconds, best) in found.items()
    ]


def measure_pass_at_k(problems: int, samples: int) -> list[dict[str, Any]]:
    """Return one row for our estimator and one for the published one, after checking that they agree."""
    correct = np.random.default_rng(0).integers(0, samples + 1, problems)
    ks = np.arange(1, samples + 1)
    ours, ours_s = timed(lambda: pass_at_k(correct, samples, ks), _ROUNDS)
    theirs, theirs_s = timed(lambda: plain_pass_at_k(correct, samples))
    np.testing.assert_allclose(ours, theirs, atol=1e-9)
    return [
        {
            "version": version,
            "problems": problems,
            "samples": samples,
            "time_ms": 1e3 * seconds,
            "time_ratio": seconds / ours_s,
        }
        for version, seconds in (("cfpo_verl", ours_s), ("published", theirs_s))
    ]


def main() -> None:
    """Run the benchmark, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"problems": 2000, "samples": 8, "pass-problems": 30, "pass-samples": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/evaluation.json"), help="default: %(default)s")
    arguments = parser.parse_args()
    for name in ("problems", "samples", "pass_problems", "pass_samples"):
        if getattr(arguments, name) < 2:
            parser.error(f"--{name.replace('_', '-')} must be at least 2, got {getattr(arguments, name)}")
    found = {
        "cores": psutil.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "metrics": measure_metrics(arguments.problems, arguments.samples),
        "pass_at_k": measure_pass_at_k(arguments.pass_problems, arguments.pass_samples),
    }
    print_rows(found["metrics"], "metrics of an evaluation")
    print_rows(found["pass_at_k"], "pass@k for all k")
    arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
