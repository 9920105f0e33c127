"""Evaluate a model: generation with vLLM, scoring with the project's verifier, metrics (docs/evaluation.md)."""

from cfpo_verl.evaluation.intervals import Interval, Paired, compare_paired, confidence_intervals
from cfpo_verl.evaluation.rates import Majority, avg_at_n, maj_at_k, pass_at_k

__all__ = [
    "Interval",
    "Majority",
    "Paired",
    "avg_at_n",
    "compare_paired",
    "confidence_intervals",
    "maj_at_k",
    "pass_at_k",
]
