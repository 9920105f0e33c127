"""Contents of a report, before it is drawn or written."""

from dataclasses import dataclass

from cfpo_verl.report.grouping import Group
from cfpo_verl.report.plots import Plot
from cfpo_verl.report.run import Evaluation, Run
from cfpo_verl.report.stability import Verdict
from cfpo_verl.report.table import summarise


@dataclass(frozen=True)
class Report:
    """Contents of a report.

    Args:
        runs: {name: run}.
        evaluations: With distinct names.
        groups: Runs that differ only in their seed.
        verdicts: {run: verdict}.
        plots: Curves of the training.
        pass_plots: pass@k of the evaluations.
        evaluation_numbers: {evaluation: index of its colour}.
        times_s: {label of a group: {phase: seconds per step}}.
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
        """Return the index of a run's group, which decides its colour."""
        return next(number for number, group in enumerate(self.groups) if run in group.runs)

    @property
    def behind(self) -> list[str]:
        """Runs left out of their group's mean because they lag behind."""
        return [name for group in self.groups for name in group.runs if name not in group.counted]

    @property
    def title(self) -> str:
        """Names of the runs, or of the evaluations where there are none."""
        names = list(self.runs) or [evaluation.name for evaluation in self.evaluations]
        return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"

    @property
    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the first, last and mean values."""
        return summarise({name: run.metrics for name, run in self.runs.items()})
