"""Which of verl's metrics a report shows, and how they are found in a run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Run = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Curve:
    """One panel of the figure and one column of the table.

    Args:
        title: What it is called, with its unit where it has one.
        pattern: Regular expression for the metric's whole name. What several metrics match is shown several times.
    """

    title: str
    pattern: str

    def points(self, run: Run) -> dict[str, list[tuple[int, float]]]:
        """Return {metric name: [(step, value), ...]} for every metric of the run that matches."""
        found: dict[str, list[tuple[int, float]]] = {}
        for step, values in run.items():
            for name, value in values.items():
                if re.fullmatch(self.pattern, name):
                    found.setdefault(name, []).append((step, float(value)))
        return found


VALIDATION = Curve("Validation accuracy", r"val-core/.+/acc/mean@\d+")

# The loss reports cfpo/ratio_deviation; verl's trainer puts actor/ before names that do not begin with it.
CURVES = (
    Curve("Training reward", r"critic/score/mean"),
    VALIDATION,
    Curve("KL to old policy (nats)", r"actor/ppo_kl"),
    Curve("Ratio deviation, mean |r - 1|", r"actor/cfpo/ratio_deviation"),
    Curve("Share of tokens past the clip edge", r"actor/pg_clipfrac"),
    Curve("Entropy (nats)", r"actor/entropy"),
)

STEP_TIME = Curve("Step time (s)", r"timing_s/step")
