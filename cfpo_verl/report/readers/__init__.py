"""Read what a report is made of; one file for each kind of source."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from cfpo_verl.files import reading
from cfpo_verl.report.readers import evaluation, run_folder, tensorboard, wandb_export
from cfpo_verl.report.run import Evaluation, ReportError, Run

_Named = TypeVar("_Named", Run, Evaluation)

_KINDS = (
    "a run folder of `cfpo-verl train` (metrics.<attempt>.jsonl), a .jsonl file of verl's file logger, a folder or "
    "file of TensorBoard (events.out.tfevents...), an export of W&B (.csv, .json, .jsonl or .parquet), or an "
    "evaluation of `cfpo-verl eval` (its folder or summary.json)"
)


def read(paths: Sequence[Path], responses_per_run: int) -> tuple[list[Run], list[Evaluation]]:
    """Read all inputs of a report, whatever they are.

    Args:
        paths: Files and folders.
        responses_per_run: How many responses to keep of each run and evaluation.

    Raises:
        ReportError: If one is none of these, or broken; the message says what is accepted.
        RunDirError: If the metrics of a run folder are broken.
        FileError: If the system refuses to read one.
    """
    runs: list[Run] = []
    evaluations: list[Evaluation] = []
    charts: list[Path] = []  # one of W&B's holds a metric or two, so those of a run are read together
    for path in paths:
        with reading(path):
            if evaluation.accepts(path):
                evaluations.append(evaluation.read(path, responses_per_run))
            elif run_folder.accepts(path):
                runs.append(run_folder.read(path, responses_per_run))
            elif run_folder.accepts_file(path):
                runs.append(run_folder.read_file(path))
            elif tensorboard.accepts(path) and not _holds_runs(path):
                runs.extend(tensorboard.read(path))
            elif wandb_export.is_chart(path):
                charts.append(path)
            elif wandb_export.accepts(path):
                runs.append(wandb_export.read_history(path))
            else:
                raise ReportError(_refusal(path))
    runs.extend(wandb_export.read_charts(charts))
    return _with_distinct_names(runs), _with_distinct_names(evaluations)


def _holds_runs(path: Path) -> bool:
    """Say whether there are run folders inside: the event files deeper down are then theirs."""
    return path.is_dir() and any(run_folder.accepts(it) for it in path.iterdir())


def _refusal(path: Path) -> str:
    if not path.exists():
        return f"{path}: no metrics here, there is no such file or folder. Give {_KINDS}"
    if _holds_runs(path):
        inside = [str(it) for it in sorted(path.iterdir()) if run_folder.accepts(it)]
        return f"{path}: no metrics here, but run folders. Give {' '.join(inside)}"
    return f"{path}: no metrics here. Give {_KINDS}"


def _with_distinct_names(found: Sequence[_Named]) -> list[_Named]:
    """Call those of the same name by their folder, and number those that have that in common too."""
    names = [it.name for it in found]
    longer = [str(it.folder or it.name) if names.count(it.name) > 1 else it.name for it in found]
    return [
        it
        if name == it.name and longer.count(name) == 1
        else replace(it, name=name if longer.count(name) == 1 else f"{name} ({number})")
        for number, (it, name) in enumerate(zip(found, longer, strict=True), start=1)
    ]
