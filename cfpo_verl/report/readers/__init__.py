"""Readers for the inputs of a report, one module for each kind."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from cfpo_verl.files import reading
from cfpo_verl.report.readers import evaluation, run_folder, tensorboard, wandb_export
from cfpo_verl.report.run import Evaluation, ReportError, Run

_Named = TypeVar("_Named", Run, Evaluation)

_KINDS = (
    "a run folder of `cfpo-verl train` (metrics.<attempt>.jsonl), a .jsonl file of verl's file logger, a TensorBoard "
    "folder or file (events.out.tfevents...), a W&B export (.csv, .json, .jsonl or .parquet), or an evaluation of "
    "`cfpo-verl eval` (its folder or summary.json)"
)


def read(paths: Sequence[Path], responses_per_run: int) -> tuple[list[Run], list[Evaluation]]:
    """Read all inputs of a report, whatever they are.

    Args:
        paths: Files and folders.
        responses_per_run: Number of responses to keep of each run and evaluation.

    Raises:
        ReportError: If one is none of these, or broken; the message says what is accepted.
        RunDirError: If the metrics of a run folder are broken.
        FileError: If the system refuses to read one.
    """
    runs: list[Run] = []
    evaluations: list[Evaluation] = []
    charts: list[Path] = []  # read together: each W&B chart has only one or two metrics of a run
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
    """Return whether a folder has run folders in it, to which the event files below it then belong."""
    return path.is_dir() and any(run_folder.accepts(folder) for folder in path.iterdir())


def _refusal(path: Path) -> str:
    if not path.exists():
        return f"{path}: no metrics here: no such file or folder. Give {_KINDS}"
    if _holds_runs(path):
        inside = [str(folder) for folder in sorted(path.iterdir()) if run_folder.accepts(folder)]
        return f"{path}: no metrics here, only run folders. Give {' '.join(inside)}"
    return f"{path}: no metrics here. Give {_KINDS}"


def _with_distinct_names(found: Sequence[_Named]) -> list[_Named]:
    """Name runs of the same name after their folders, and number those that share the folder too."""
    short = [source.name for source in found]
    longer = [str(source.folder or source.name) if short.count(source.name) > 1 else source.name for source in found]
    return [
        replace(source, name=name if longer.count(name) == 1 else f"{name} ({number})")
        for number, (source, name) in enumerate(zip(found, longer, strict=True), start=1)
    ]
