"""Collect the contents of a report and write its files."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from cfpo_verl.files import replacing, writing
from cfpo_verl.report import figure, readers
from cfpo_verl.report.contents import Report
from cfpo_verl.report.grouping import Group, group_runs
from cfpo_verl.report.metrics import phase_times_s
from cfpo_verl.report.page import render
from cfpo_verl.report.plots import metric_plots, pass_plots
from cfpo_verl.report.run import Evaluation, Run
from cfpo_verl.report.stability import judge
from cfpo_verl.report.statistics import mean_interval
from cfpo_verl.report.table import to_markdown

SUFFIXES = (".html", ".png", ".svg", ".md")


def collect(paths: Sequence[Path], responses_per_run: int) -> Report:
    """Read all inputs and compute what the report shows.

    Raises:
        UserError: If an input cannot be read.
    """
    found, evaluations = readers.read(paths, responses_per_run)
    runs = {run.name: run for run in found}
    groups = group_runs(
        {name: run.config for name, run in runs.items()}, {name: run.last_step for name, run in runs.items()}
    )
    verdicts = {name: judge(run.metrics, run.config) for name, run in runs.items()}
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
    """Give an evaluation the colour of its run's group, or else a colour that no group has."""
    folders = {run.folder.resolve(): name for name, run in runs.items() if run.folder is not None}
    numbers: dict[str, int] = {}
    free = len(groups)
    for evaluation in evaluations:
        run = folders.get(evaluation.run_dir.resolve()) if evaluation.run_dir else None
        number = next((number for number, group in enumerate(groups) if run in group.runs), None)
        if number is None or number in numbers.values():
            number, free = free, free + 1
        numbers[evaluation.name] = number
    return numbers


def _phase_times_s(runs: dict[str, Run], groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    times_s = {}
    for group in groups:
        found = [times for name in group.counted if (times := phase_times_s(runs[name].metrics))]
        if found:
            phases = dict.fromkeys(phase for times in found for phase in times)
            times_s[group.label] = {
                phase: mean_interval([times.get(phase, 0.0) for times in found]).mean for phase in phases
            }
    return times_s


def write(report: Report, stem: Path, figures: Path | None, refresh_s: float | None) -> list[Path]:
    """Write the page, the pictures and the table; older files are replaced only when all new ones are complete.

    Args:
        report: Contents.
        stem: Path of the files without their suffixes.
        figures: Folder for each figure as PNG and SVG, None for none.
        refresh_s: Time between reloads of the page in seconds, None for no reloads.

    Returns:
        The files, the page first.

    Raises:
        FileError: If the system refuses to write them.
    """
    paths = [stem.with_name(f"{stem.name}{suffix}") for suffix in SUFFIXES]
    plots = [*report.plots, *report.pass_plots]
    with ExitStack() as files:
        page, png, svg, table = (files.enter_context(replacing(path)) for path in paths)
        files.enter_context(writing(stem))
        page.write_text(render(report, refresh_s), encoding="utf-8", errors="replace")
        figure.save_overview(plots, report.times_s, report.title, [png, svg])
        table.write_text(to_markdown(*report.table), encoding="utf-8", errors="replace")
    return paths + (figure.save_each(plots, report.times_s, figures) if figures is not None else [])


def stem(paths: Sequence[Path], out: Path | None) -> Path:
    """Return the path of a report's files without their suffixes.

    That is `out`, or else `report` in the input if it is a single folder, or else `report` in the current folder.
    """
    if out is not None:
        return out.with_suffix("") if out.suffix in SUFFIXES else out
    return (paths[0] if len(paths) == 1 and paths[0].is_dir() else Path()) / "report"


def may_go_on(report: Report) -> bool:
    """Return whether a run may still write metrics."""
    return any(run.state.name in ("in progress", "unknown") for run in report.runs.values())
