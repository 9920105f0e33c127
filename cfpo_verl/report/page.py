"""Render a report as one self-contained HTML page."""

import base64
import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from cfpo_verl import __version__
from cfpo_verl.report import figure, stability
from cfpo_verl.report.contents import Report
from cfpo_verl.report.grouping import COUNTED_SHARE, differences, is_relevant
from cfpo_verl.report.metrics import CURVES, REWARD, STEP_TIME, VALIDATION, data_source
from cfpo_verl.report.run import Evaluation, Response, Run
from cfpo_verl.report.statistics import FINAL_SHARE, MOST_UNSMOOTHED, final_value
from cfpo_verl.report.table import final_numbers

# The middle of longer texts is left out: the page stays small, and the answer is at the end.
_MOST_CHARACTERS = 6000
_FOLDER = "assets"


def render(report: Report, refresh_s: float | None = None) -> str:
    """Return the page.

    Everything read from files (responses, config values, names) is escaped: in HTML by the template, in the data of the
    script as JSON without <, > and &. The page's Content-Security-Policy forbids other scripts and all requests.

    Args:
        report: Contents of the page.
        refresh_s: Time between reloads of the page in seconds, None for no reloads.
    """
    environment = Environment(
        loader=PackageLoader("cfpo_verl.report", _FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": lambda share: f"{share:.0%}"}
    drawn = [(plot, *figure.page_svg(plot)) for plot in report.plots]
    passed = [(plot, *figure.page_svg(plot)) for plot in report.pass_plots]
    configs = {name: run.config for name, run in report.runs.items() if run.config is not None}
    script = _file("page.js")
    responses = _responses(report)
    data = {
        "plots": {plot.key: frame for plot, _svg, frame in (*drawn, *passed)},
        "responses": responses,
        "refreshS": refresh_s,
    }
    inputs: list[Run | Evaluation] = [*report.runs.values(), *report.evaluations]
    return environment.get_template("page.html").render(
        title=report.title,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        refresh_s=refresh_s,
        style=Markup(_file("page.css") + _colours()),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(htmlsafe_json_dumps(data, allow_nan=False)),
        report=report,
        runs=report.runs.values(),
        cards=[_card(report, run) for run in report.runs.values()],
        drawn=[(plot, Markup(svg)) for plot, svg, _frame in drawn],
        passed=[(plot, Markup(svg)) for plot, svg, _frame in passed],
        phases=Markup(figure.phases_svg(report.times_s)) if report.times_s else "",
        phase_colours={
            phase: colour
            for phase, colour in figure.PHASE_COLOURS.items()
            if any(phase in times for times in report.times_s.values())
        },
        not_reported=_not_reported(report),
        most_unsmoothed=MOST_UNSMOOTHED,
        final_share=FINAL_SHARE,
        final=final_numbers({name: run.metrics for name, run in report.runs.items()}, report.groups),
        rules=[(rule, _breaches(report, rule)) for rule in stability.RULES],
        counted_share=COUNTED_SHARE,
        least_steps=stability.LEAST_STEPS,
        evaluation_rows=_evaluation_rows(report),
        response_runs=list(dict.fromkeys(response["run"] for response in responses)),
        sources=sorted({response["source"] for response in responses}),
        differing=differences(configs) if len(configs) > 1 else {},
        configs=configs,
        is_relevant=is_relevant,
        notes={source.name: source.notes for source in inputs if source.notes},
        series_count=len(figure.COLOURS),
    )


@cache
def _file(name: str) -> str:
    return files("cfpo_verl.report").joinpath(_FOLDER, name).read_text(encoding="utf-8")


def _colours() -> str:
    """Return the colours of the figures as CSS variables, lighter ones for dark mode."""
    light = "".join(f"--series-{number}: {colour}; " for number, colour in enumerate(figure.COLOURS))
    dark = "".join(f"--series-{number}: {_lighter(colour)}; " for number, colour in enumerate(figure.COLOURS))
    return f":root {{ {light}}}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"


def _lighter(colour: str, share: float = 0.42) -> str:
    """Mix a colour with white.

    Example:
        >>> _lighter("#000000", 0.5)
        '#808080'
    """
    parts = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)


def _number(value: float | None) -> str:
    """Format a number with at most four significant digits.

    Example:
        >>> _number(0.81234), _number(1234567.0), _number(float("nan")), _number(None)
        ('0.8123', '1,234,567', 'nan', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if math.isfinite(value) and abs(value) >= 1000 else f"{value:.4g}"


def _card(report: Report, run: Run) -> dict[str, Any]:
    """Return the contents of a run's card in the overview."""
    numbers = [
        (f"accuracy, {data_source(metric)}", final_value(points, 0))
        for metric, points in VALIDATION.points(run.metrics).items()
    ]
    numbers += [("reward", final_value(points)) for points in REWARD.points(run.metrics).values()]
    times_s = [value for points in STEP_TIME.points(run.metrics).values() for _step, value in points]
    number = report.number_of(run.name)
    return {
        "run": run,
        "number": number,
        "group": report.groups[number].label,
        "verdict": report.verdicts[run.name],
        "numbers": numbers,
        "hours": math.fsum(times_s) / 3600,
    }


def _not_reported(report: Report) -> list[str]:
    """Return the titles of the metrics that no run reports."""
    shown = {plot.title.split(":")[0] for plot in report.plots}
    return [curve.title for curve in CURVES if curve.title not in shown] if report.runs else []


def _breaches(report: Report, rule: stability.Rule) -> list[tuple[str, int, int]]:
    """Return (run, step, index of its group) for each run that has broken a rule."""
    return [
        (name, broken.step, report.number_of(name))
        for name, verdict in report.verdicts.items()
        for broken in verdict.broken
        if broken.rule is rule
    ]


def _evaluation_rows(report: Report) -> list[tuple[str, str, list[Mapping[str, Any] | None]]]:
    """Return (set, metric, value and interval in each evaluation) for all metrics of all evaluations."""
    rows = []
    for name in dict.fromkeys(name for evaluation in report.evaluations for name in evaluation.sets):
        found = [evaluation.sets.get(name, {}).get("metrics", {}) for evaluation in report.evaluations]
        rows += [
            (name, metric, [metrics.get(metric) for metrics in found])
            for metric in dict.fromkeys(metric for metrics in found for metric in metrics)
        ]
    return rows


def _responses(report: Report) -> list[dict[str, Any]]:
    shown = [
        _response(run.name, report.number_of(run.name), response)
        for run in report.runs.values()
        for response in run.responses
    ]
    shown += [
        _response(f"{evaluation.name} (evaluation)", report.evaluation_numbers[evaluation.name], response)
        for evaluation in report.evaluations
        for response in evaluation.responses
    ]
    return shown


def _response(run: str, number: int, response: Response) -> dict[str, Any]:
    return {
        "run": run,
        "group": number,
        "source": response.source,
        "step": response.step,
        "prompt": _shortened(response.prompt),
        "text": _shortened(response.text),
        "gold": _shortened(response.gold),
        "answer": None if response.answer is None else _shortened(response.answer),
        "score": response.score if math.isfinite(response.score) else None,
        "isRight": response.is_right,
    }


def _shortened(text: str, most: int = _MOST_CHARACTERS) -> str:
    r"""Omit the middle of a long text.

    Example:
        >>> _shortened("abcdefghij", 4)
        'ab\n[... 6 characters left out ...]\nij'
    """
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[... {len(text) - most} characters left out ...]\n{text[-(most // 2) :]}"
