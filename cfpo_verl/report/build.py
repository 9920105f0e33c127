"""Put a report together and write its files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cfpo_verl.report import figure, readers
from cfpo_verl.report.grouping import Group, group
from cfpo_verl.report.metrics import phase_times_s
from cfpo_verl.report.plots import Plot, metric_plots, pass_plots
from cfpo_verl.report.run import Evaluation, Run
from cfpo_verl.report.stability import Verdict, judge
from cfpo_verl.report.statistics import mean_interval
from cfpo_verl.report.table import summarise, to_markdown

SUFFIXES = (".html", ".png", ".svg", ".md")


@dataclass(frozen=True)
class Report:
    """Everything that the files of a report show.

    Args:
        runs: {name: run}.
        evaluations: With distinct names.
        groups: Runs that differ only in their seed.
        verdicts: {run: verdict}.
        plots: Curves of the training.
        pass_plots: pass@k of the evaluations.
        evaluation_numbers: {evaluation: number of its colour}.
        times_s: {label of a group: {phase: seconds of a step}}.
    """

    runs: dict[str, Run]
    evaluations: list[Evaluation]
    groups: list[Group]
    verdicts: dict[str, Verdict]
    plots: list[Plot]
    pass_plots: list[Plot]
    evaluation_numbers: dict[str, int]
    times_s: dict[str, dict[str, float]]

    def number_of(self, run: str) -> int:
        """Return the number of a run's group, which decides its colour."""
        return next(number for number, it in enumerate(self.groups) if run in it.runs)

    @property
    def behind(self) -> list[str]:
        """Runs that no mean counts, as others of their group have got further."""
        return [name for it in self.groups for name in it.runs if name not in it.counted]

    @property
    def title(self) -> str:
        """Names of the runs, or of the evaluations where there are none."""
        names = list(self.runs) or [evaluation.name for evaluation in self.evaluations]
        return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"

    @property
    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the first, last and mean values."""
        return summarise({name: run.metrics for name, run in self.runs.items()})


def collect(paths: Sequence[Path], responses_per_run: int) -> Report:
    """Read all inputs and work out what the report shows.

    Raises:
        ReportError: If an input cannot be read.
    """
    found, evaluations = readers.read(paths, responses_per_run)
    runs = {run.name: run for run in found}
    groups = group(
        {name: run.config for name, run in runs.items()}, {name: run.last_step for name, run in runs.items()}
    )
    verdicts = {name: judge(run.metrics) for name, run in runs.items()}
    numbers = _evaluation_numbers(evaluations, groups, runs)
    return Report(
        runs,
        evaluations,
        groups,
        verdicts,
        metric_plots(runs, groups, verdicts),
        pass_plots(evaluations, numbers),
        numbers,
        _phase_times_s(runs, groups),
    )


def _evaluation_numbers(
    evaluations: Sequence[Evaluation], groups: Sequence[Group], runs: dict[str, Run]
) -> dict[str, int]:
    """Give an evaluation the colour of its run's group, and others colours that no group has."""
    folders = {run.folder.resolve(): name for name, run in runs.items() if run.folder is not None}
    numbers: dict[str, int] = {}
    free = len(groups)
    for evaluation in evaluations:
        run = folders.get(evaluation.run_dir.resolve()) if evaluation.run_dir else None
        number = next((number for number, it in enumerate(groups) if run in it.runs), None)
        if number is None or number in numbers.values():
            number, free = free, free + 1
        numbers[evaluation.name] = number
    return numbers


def _phase_times_s(runs: dict[str, Run], groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    times_s = {}
    for it in groups:
        found = [times for name in it.counted if (times := phase_times_s(runs[name].metrics))]
        if found:
            phases = dict.fromkeys(phase for times in found for phase in times)
            times_s[it.label] = {
                phase: mean_interval([times.get(phase, 0.0) for times in found]).mean for phase in phases
            }
    return times_s


def write(report: Report, stem: Path, figures: Path | None, refresh_s: float | None) -> list[Path]:
    """Write the page, the picture and the table; each replaces its predecessor at once, so that no reader sees half.

    Args:
        report: What to show.
        stem: Path of the files without their endings.
        figures: Folder for each figure as PNG and SVG, None for none.
        refresh_s: The page reloads itself so often, None for never.

    Returns:
        The files, the page first.
    """
    from cfpo_verl.report.page import render

    stem.parent.mkdir(parents=True, exist_ok=True)
    page, png, svg, table = (stem.with_name(f"{stem.name}{suffix}") for suffix in SUFFIXES)
    parts = {path: path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}") for path in (page, png, svg, table)}
    try:
        parts[page].write_text(render(report, refresh_s), encoding="utf-8", errors="replace")
        plots = [*report.plots, *report.pass_plots]
        figure.save_overview(plots, report.times_s, report.title, [parts[png], parts[svg]])
        parts[table].write_text(to_markdown(*report.table), encoding="utf-8", errors="replace")
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    written = list(parts)
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        written += figure.save_each(plots, report.times_s, figures)
    return written


def stem(paths: Sequence[Path], out: Path | None) -> Path:
    """Return the path of a report's files without their endings: `out`, or report in the only folder, or here."""
    if out is not None:
        return out.with_suffix("") if out.suffix in SUFFIXES else out
    return (paths[0] if len(paths) == 1 and paths[0].is_dir() else Path()) / "report"


def may_go_on(report: Report) -> bool:
    """Say whether a run may still write metrics."""
    return any(run.state.name in ("in progress", "unknown") for run in report.runs.values())
