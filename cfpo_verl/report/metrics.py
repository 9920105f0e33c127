"""Which of verl's metrics a report shows, and how they are found in a run."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

Metrics = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Curve:
    """One figure and one line of the tables.

    Args:
        key: Names it in files and in the page.
        title: What it is called, with its unit where it has one.
        pattern: Regular expression for the metric's whole name. What several metrics match is shown several times.
        explanation: What the number is, in a sentence.
    """

    key: str
    title: str
    pattern: str
    explanation: str

    def points(self, metrics: Metrics) -> dict[str, list[tuple[int, float]]]:
        """Return {metric name: [(step, value), ...]} for every metric of the run that matches."""
        # Most patterns are just a name, and looking at all names of thousands of steps takes seconds.
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
    "Share of right responses on held-out problems.",
)
KL = Curve(
    "kl",
    "KL to old policy (nats)",
    r"actor/ppo_kl",
    "Mean of -log r over tokens: how far an update moves from the policy that generated.",
)
RATIO_DEVIATION = Curve(
    "ratio_deviation",
    "Ratio deviation, mean |r - 1|",
    r"actor/cfpo/ratio_deviation",
    "Zero means that nothing of CFPO is at work. verl's own losses do not report it.",
)
PAST_OPTIMUM = Curve(
    "past_optimum",
    "Share of tokens past the optimum",
    r"actor/pg_clipfrac",
    "Tokens where PPO's gradient is zero; CFPO pulls them back.",
)
ENTROPY = Curve(
    "entropy", "Entropy (nats)", r"actor/entropy", "Mean over tokens. Near zero, every response is the same."
)
GRADIENT_NORM = Curve("grad_norm", "Gradient norm", r"actor/grad_norm", "Before clipping, mean of a step's updates.")
RESPONSE_LENGTH = Curve(
    "response_length", "Response length (tokens)", r"response_length/mean", "Mean over the responses of a step."
)
CUT_OFF = Curve(
    "cut_off",
    "Share of responses cut off",
    r"response_length/clip_ratio",
    "Responses that ran into the length limit; they mostly end without an answer.",
)
THROUGHPUT = Curve(
    "throughput",
    "Throughput (tokens/s/GPU)",
    r"perf/throughput",
    "Tokens of prompts and responses, by the time of the whole step.",
)
STEP_TIME = Curve("step_time", "Step time (s)", r"timing_s/step", "Wall-clock time, without validation and saving.")

# The loss reports cfpo/ratio_deviation; verl's trainer puts actor/ before names that do not begin with it.
CURVES = (
    REWARD,
    VALIDATION,
    KL,
    ENTROPY,
    RATIO_DEVIATION,
    PAST_OPTIMUM,
    GRADIENT_NORM,
    RESPONSE_LENGTH,
    CUT_OFF,
    THROUGHPUT,
    STEP_TIME,
)

# Parts of a step in verl's timing_s, none within another; what is left of the step is "other".
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
    """Return the mean time of a step's parts in seconds, over the steps that report their time.

    A part that only some steps have, such as validation, counts with its mean over all steps. Validation and saving are
    outside what verl calls the step.

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
