"""The metrics of verl that a report shows."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

Metrics = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Curve:
    """A metric that is shown as a figure and as a row of the tables.

    Args:
        key: Name in files and on the page.
        title: Title, with the unit if there is one.
        pattern: Regular expression for the whole name of the metric. Each metric that matches is shown.
        explanation: Description in one sentence.
    """

    key: str
    title: str
    pattern: str
    explanation: str

    def points(self, metrics: Metrics) -> dict[str, list[tuple[int, float]]]:
        """Return {metric name: [(step, value), ...]} for every metric of the run that matches."""
        # Most patterns are plain names, and matching all names of thousands of steps takes seconds.
        is_name = re.fullmatch(r"[\w/]+", self.pattern)
        names = [self.pattern] if is_name else dict.fromkeys(chain.from_iterable(metrics.values()))
        found = {
            name: [(step, float(values[name])) for step, values in metrics.items() if name in values]
            for name in names
            if re.fullmatch(self.pattern, name)
        }
        return {name: points for name, points in found.items() if points}


REWARD = Curve("reward", "Training reward", r"critic/score/mean", "Mean score of the responses of a step.")
VALIDATION = Curve(
    "validation",
    "Validation accuracy",
    r"val-core/.+/acc/mean@\d+",
    "Fraction of right responses to held-out problems.",
)
KL = Curve(
    "kl",
    "KL to old policy (nats)",
    r"actor/ppo_kl",
    "Mean of -log r over tokens: distance of the updated policy from the one that generated the responses.",
)
RATIO_DEVIATION = Curve(
    "ratio_deviation",
    "Ratio deviation, mean |r - 1|",
    r"actor/cfpo/ratio_deviation",
    "At zero the penalty of CFPO has no effect. verl's own losses do not report it.",
)
NOISE_FLOOR = Curve(
    "noise_floor",
    "Noise floor, mean |r - 1| before an update",
    r"actor/cfpo/noise_floor_min",
    "In the first mini-batch of a rollout both policies have the same weights, and r differs from 1 only because two "
    "passes do.",
)
NOISE_FLOOR_P99 = Curve(
    "noise_floor_p99",
    "Noise floor, 99th percentile of |r - 1|",
    r"actor/cfpo/noise_floor_p99_min",
    "One token in a hundred differs by more before the first update.",
)
PAST_OPTIMUM = Curve(
    "past_optimum",
    "Share of tokens past the optimum",
    r"actor/pg_clipfrac",
    "Tokens for which PPO's gradient is zero; CFPO pulls them back.",
)
ENTROPY = Curve(
    "entropy", "Entropy (nats)", r"actor/entropy", "Mean over tokens. Near zero, every response is the same."
)
GRADIENT_NORM = Curve("grad_norm", "Gradient norm", r"actor/grad_norm", "Before clipping, mean over a step's updates.")
RESPONSE_LENGTH = Curve(
    "response_length", "Response length (tokens)", r"response_length/mean", "Mean over the responses of a step."
)
CUT_OFF = Curve(
    "cut_off",
    "Share of responses cut off",
    r"response_length/clip_ratio",
    "Responses that reached the length limit; most have no final answer.",
)
THROUGHPUT = Curve(
    "throughput",
    "Throughput (tokens/s/GPU)",
    r"perf/throughput",
    "Tokens of prompts and responses, divided by the time of the whole step.",
)
STEP_TIME = Curve("step_time", "Step time (s)", r"timing_s/step", "Wall-clock time without validation and saving.")

# The loss reports cfpo/ratio_deviation; verl's trainer puts actor/ before names that do not begin with it.
CURVES = (
    REWARD,
    VALIDATION,
    KL,
    ENTROPY,
    RATIO_DEVIATION,
    NOISE_FLOOR,
    NOISE_FLOOR_P99,
    PAST_OPTIMUM,
    GRADIENT_NORM,
    RESPONSE_LENGTH,
    CUT_OFF,
    THROUGHPUT,
    STEP_TIME,
)

# Disjoint parts of a step in verl's timing_s; the rest of the step is "other".
PHASES = {
    "gen": "generate",
    "reward": "reward",
    "old_log_prob": "old log-probabilities",
    "ref": "reference",
    "values": "values",
    "adv": "advantages",
    "update_critic": "update critic",
    "update_actor": "update actor",
    "update_weights": "synchronise weights",
    "testing": "validate",
    "save_checkpoint": "save",
}
OTHER_PHASE = "other"
OUTSIDE_STEP = ("validate", "save")


def data_source(metric: str) -> str:
    """Return the data source in the name of a validation metric, "" in any other name.

    Example:
        >>> data_source("val-core/openai/gsm8k/acc/mean@8"), data_source("actor/entropy")
        ('openai/gsm8k', '')
    """
    return "/".join(metric.split("/")[1:-2]) if metric.startswith("val-") else ""


def phase_times_s(metrics: Metrics) -> dict[str, float]:
    """Return the mean time of each phase of a step in seconds, over the steps that report their time.

    A phase that only some steps have, such as validation, is averaged over all steps. verl does not count validation
    and saving as part of the step.

    Example:
        >>> phase_times_s({1: {"timing_s/step": 5.0, "timing_s/gen": 3.0, "timing_s/update_actor": 1.5}})
        {'generate': 3.0, 'update actor': 1.5, 'other': 0.5}
    """
    timed = [values for values in metrics.values() if "timing_s/step" in values]
    if not timed:
        return {}

    def mean(name: str) -> float:
        return math.fsum(value for values in timed if math.isfinite(value := float(values.get(name, 0)))) / len(timed)

    parts = {label: mean(f"timing_s/{name}") for name, label in PHASES.items()}
    inside = math.fsum(time_s for label, time_s in parts.items() if label not in OUTSIDE_STEP)
    parts[OTHER_PHASE] = max(mean("timing_s/step") - inside, 0)
    return {label: time_s for label, time_s in parts.items() if time_s > 0}
