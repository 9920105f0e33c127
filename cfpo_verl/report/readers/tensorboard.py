"""Event files of TensorBoard, as verl's `tensorboard` logger writes them."""

from collections import defaultdict
from pathlib import Path

from cfpo_verl.report.run import ReportError, Run

_PATTERN = "events.out.tfevents.*"


def accepts(path: Path) -> bool:
    """Return whether this is an event file, or a folder with one at any depth."""
    if path.is_file():
        return path.match(_PATTERN)
    return path.is_dir() and next(path.rglob(_PATTERN), None) is not None


def read(path: Path) -> list[Run]:
    """Read each folder with event files as a run; several files in one folder are attempts at the same run.

    Raises:
        ReportError: If there are no scalars.
    """
    files = [path] if path.is_file() else sorted(path.rglob(_PATTERN))
    folders: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        folders[file.parent].append(file)
    return [_read_run(folder, path if path.is_file() else folder) for folder in folders]


def _read_run(folder: Path, source: Path) -> Run:
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator

    # 0 keeps all events. The accumulator drops events that a resumed run replaces.
    events = EventAccumulator(str(source), size_guidance={SCALARS: 0, TENSORS: 1})
    events.Reload()
    metrics: dict[int, dict[str, float]] = defaultdict(dict)
    for name in events.Tags()[SCALARS]:
        for event in events.Scalars(name):
            metrics[event.step][name] = event.value
    if not metrics:
        raise ReportError(f"{source}: the event files have no scalars, so no step has finished yet")
    return Run(folder.resolve().name, "TensorBoard", dict(sorted(metrics.items())), folder=source)
