"""Run folders of `cfpo-verl train`, and single files of verl's `file` logger."""

import json
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cfpo_verl.report.grouping import flatten
from cfpo_verl.report.metrics import STEP_TIME, Metrics
from cfpo_verl.report.readers import responses
from cfpo_verl.report.run import Run, State, judge_state
from cfpo_verl.run_dir import attempt_files, read_attempts, read_records

_TAIL_BYTES = 65_536
# verl's trainers print this after the last step.
_DONE = "Final validation metrics"


def accepts(path: Path) -> bool:
    """Return whether this is a run folder, with metrics or before its first step."""
    return bool(attempt_files(path, "metrics") or attempt_files(path, "config"))


def accepts_file(path: Path) -> bool:
    """Return whether this is a file of verl's `file` logger."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    return not first.strip() or first.startswith('{"step":')


def read_file(path: Path) -> Run:
    """Read a file of verl's `file` logger as a run.

    Raises:
        RunDirError: If a line other than a torn last one is not a record.
    """
    records, is_torn = read_records(path)
    notes = [f"{path.name}: the last line was cut off while it was written, and is left out"] if is_torn else []
    metrics = _numbers(dict(sorted(records)), notes)
    return Run(path.stem, "file logger", metrics, notes=tuple(notes), folder=path)


def read(run_dir: Path, response_count: int) -> Run:
    """Read a run folder.

    Args:
        run_dir: The folder.
        response_count: Number of responses to keep.

    Raises:
        RunDirError: If a line of the metrics other than a torn last one is not a record.
    """
    metrics: Metrics = {}
    notes: list[str] = []
    if attempt_files(run_dir, "metrics"):
        found, notes = read_attempts(run_dir)
        metrics = _numbers(found, notes)
    if not metrics:
        notes.append("no step has finished yet")
    configs = {attempt: _read_config(file, notes) for attempt, file in attempt_files(run_dir, "config").items()}
    config = list(configs.values())[-1] if configs else None
    changed = _changed_keys(list(configs.values()))
    if changed:
        notes.append(f"the config of the last attempt differs from an earlier one in {', '.join(changed)}")
    dumps = responses.dump_folders(run_dir, config or {})
    return Run(
        run_dir.resolve().name,
        "run folder",
        metrics,
        _state(run_dir, metrics, config or {}),
        None if config is None else flatten(config),
        _read_versions(run_dir),
        tuple(responses.read_dumps(dumps, response_count, notes)),
        tuple(notes),
        run_dir,
    )


def _numbers(metrics: Metrics, notes: list[str]) -> Metrics:
    """Leave out values that are not numbers, and add their names to the notes."""
    numbers = {
        step: {name: value for name, value in values.items() if isinstance(value, int | float)}
        for step, values in metrics.items()
    }
    others = {name for step, values in metrics.items() for name in values if name not in numbers[step]}
    if others:
        notes.append(f"values that are not numbers are left out: {', '.join(sorted(others))}")
    return numbers


def _read_config(file: Path, notes: list[str]) -> dict[str, Any]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        notes.append(f"{file.name} cannot be read: {str(error).splitlines()[0]}")
        return {}
    return config if isinstance(config, dict) else {}


def _changed_keys(configs: list[dict[str, Any]]) -> list[str]:
    """Return the keys, other than the path of the metrics, in which the last config differs from any earlier one."""
    if len(configs) < 2:
        return []
    *earlier, last = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for flat in (*earlier, last) for key in flat if not key.endswith("VERL_FILE_LOGGER_PATH"))
    return [key for key in keys if any(flat.get(key) != last.get(key) for flat in earlier)]


def _read_versions(run_dir: Path) -> Mapping[str, str | None]:
    files = list(attempt_files(run_dir, "versions").values())
    try:
        versions = json.loads(files[-1].read_text()) if files else {}
    except ValueError:
        return {}
    return versions if isinstance(versions, dict) else {}


def _state(run_dir: Path, metrics: Metrics, config: Mapping[str, Any]) -> State:
    logs = list(attempt_files(run_dir, "log").values())
    tail = _tail(logs[-1]) if logs else ""
    written = [*attempt_files(run_dir, "metrics").values(), *attempt_files(run_dir, "config").values(), *logs]
    times_s = [point for points in STEP_TIME.points(metrics).values() for _step, point in points]
    trainer = config.get("trainer")
    total = trainer.get("total_training_steps") if isinstance(trainer, Mapping) else None
    return judge_state(
        max(metrics, default=0),
        total if isinstance(total, int) else None,
        _last_words(tail),
        _DONE in tail,
        time.time() - max(file.stat().st_mtime for file in written),
        statistics.median(times_s) if times_s else 0.0,
    )


def _tail(file: Path) -> str:
    with file.open("rb") as opened:
        opened.seek(max(file.stat().st_size - _TAIL_BYTES, 0))
        return opened.read().decode(errors="replace")


def _last_words(tail: str) -> str:
    """Return the error that ended the run: the last line of the driver's traceback, which has no prefix of a worker."""
    begins = [
        match.start() for match in re.finditer(r"^Traceback \(most recent call last\):", tail, flags=re.MULTILINE)
    ]
    return tail[begins[-1] :].strip().splitlines()[-1][:300] if begins else ""
