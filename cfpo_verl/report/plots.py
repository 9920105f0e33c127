"""Contents of the figures: curves of groups, with mean and band, before they are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cfpo_verl.report.grouping import Group
from cfpo_verl.report.metrics import CURVES, VALIDATION, Curve, data_source
from cfpo_verl.report.run import Evaluation, Run
from cfpo_verl.report.stability import Verdict
from cfpo_verl.report.statistics import MOST_UNSMOOTHED, Band, Points, band

# A curve whose peak is more than this many times its median is drawn on a logarithmic axis.
_LOG_FROM = 50


@dataclass(frozen=True)
class Line:
    """One line of a figure: the mean of a group, or one evaluation.

    Args:
        label: Label in the legend.
        number: Index of the group, which decides the colour.
        band: Mean, lowest and highest value.
        runs: The curves behind the mean, drawn as thin lines; none for a single curve that is not smoothed.
    """

    label: str
    number: int
    band: Band
    runs: tuple[Points, ...] = ()


@dataclass(frozen=True)
class Mark:
    """A step at which a rule of the verdict was broken."""

    step: int
    number: int
    text: str


@dataclass(frozen=True)
class Plot:
    """One figure.

    Args:
        key: Name in files and on the page.
        title: Title, with the unit if there is one.
        explanation: Description in one sentence.
        lines: Lines, in the order of groups.
        marks: Vertical lines.
        x_label: "training step" or "k".
        linear_below: If values differ by orders of magnitude: the y axis is logarithmic above this value and linear
            below it, so that zero and negative values can be shown. None for a linear axis.
        is_log_x: Whether the x axis is logarithmic (base 2).
        missing: Labels of groups that do not report the metric.
    """

    key: str
    title: str
    explanation: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    x_label: str = "training step"
    linear_below: float | None = None
    is_log_x: bool = False
    missing: tuple[str, ...] = ()


def metric_plots(runs: Mapping[str, Run], groups: Sequence[Group], verdicts: Mapping[str, Verdict]) -> list[Plot]:
    """Return a figure for each metric that a run reports; validation has one for each data source."""
    plots = []
    for curve in CURVES:
        points = {name: curve.points(run.metrics) for name, run in runs.items()}
        for metric in dict.fromkeys(metric for found in points.values() for metric in found):
            by_run = {name: found[metric] for name, found in points.items() if metric in found}
            plots.append(_metric_plot(curve, metric, by_run, groups, verdicts))
    return plots


def _metric_plot(
    curve: Curve,
    metric: str,
    points: Mapping[str, Points],
    groups: Sequence[Group],
    verdicts: Mapping[str, Verdict],
) -> Plot:
    lines, marks, missing = [], [], []
    for number, group in enumerate(groups):
        curves = [points[name] for name in group.runs if name in points]
        averaged = [points[name] for name in group.counted if name in points] or curves
        if curves:
            is_shown = len(curves) > 1 or len(curves[0]) > MOST_UNSMOOTHED
            lines.append(Line(group.label, number, band(averaged), tuple(curves) if is_shown else ()))
        else:
            missing.append(group.label)
        marks += [
            Mark(broken.step, number, f"{name}: {broken.rule.name} at step {broken.step}")
            for name in group.runs
            for broken in verdicts[name].broken
            if broken.rule.curve == curve.key
        ]
    source = data_source(metric)
    samples = metric.rpartition("@")[2]
    return Plot(
        f"{curve.key}_{source.replace('/', '_')}" if source else curve.key,
        f"{curve.title}: {source}" if source else curve.title,
        f"{curve.explanation} {_samples(samples)}" if curve is VALIDATION else curve.explanation,
        tuple(lines),
        tuple(marks),
        linear_below=_linear_below([value for curve_points in points.values() for _step, value in curve_points]),
        missing=tuple(missing),
    )


def _samples(count: str) -> str:
    return "One response each." if count == "1" else f"Mean over {count} responses each."


def _linear_below(values: Sequence[float]) -> float | None:
    """Return the median magnitude if the largest is more than `_LOG_FROM` times that, else None.

    Example:
        >>> _linear_below([1.0, -2.0, 3.0]), _linear_below([0.0, 1.0, 2.0, 1e6, -3.0])
        (None, 2.5)
    """
    sizes = np.abs([value for value in values if np.isfinite(value) and value != 0])
    if len(sizes) == 0 or sizes.max() <= _LOG_FROM * np.median(sizes):
        return None
    return float(np.median(sizes))


def pass_plots(evaluations: Sequence[Evaluation], numbers: Mapping[str, int]) -> list[Plot]:
    """Return a figure of pass@k for each set for which an evaluation has a curve.

    Args:
        evaluations: With distinct names.
        numbers: {name of an evaluation: index of its colour}.
    """
    plots = []
    for name in dict.fromkeys(name for evaluation in evaluations for name in evaluation.sets):
        lines = []
        for evaluation in evaluations:
            curve = evaluation.sets.get(name, {}).get("pass_at_k")
            if curve and len(curve["k"]) > 1:
                values = [np.array(curve[key], dtype=float) for key in ("k", "value", "low", "high")]
                lines.append(Line(evaluation.name, numbers[evaluation.name], Band(*values)))
        if lines:
            explanation = "Probability that at least one of k responses is right, with its 95 % interval over problems."
            plots.append(
                Plot(f"pass_at_k_{name}", f"pass@k: {name}", explanation, tuple(lines), x_label="k", is_log_x=True)
            )
    return plots
