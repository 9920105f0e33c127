"""Calls of SLURM's commands."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cfpo_verl.sites import JobError

_ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "REVOKED"),
    "PREEMPTED",
}


class QueueError(JobError):
    """SLURM rejected a checked job, or queued it and a later step failed."""

    exit_status = 1


def _run(command: Sequence[str | Path]) -> str:
    program = str(command[0])
    if shutil.which(program) is None:
        raise JobError(f"{program} is not installed here. Run this where SLURM's commands are, such as a login node")
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if result.returncode:
        raise JobError(f"{program}: {(result.stderr or result.stdout).strip()}")
    return result.stdout


def submit(script: Path) -> str:
    """Submit a script with sbatch and return the job's id.

    Raises:
        QueueError: If sbatch is missing or rejects the script.
    """
    try:
        answer = _run(["sbatch", "--parsable", script])
    except JobError as error:
        raise QueueError(f"{error}\nThe script is {script}; nothing was queued") from error
    return answer.strip().split(";", 1)[0]  # a federated cluster adds ;cluster


def states(job_id: str) -> list[dict[str, str]]:
    """Return scontrol's fields for a job, or for each job of an array; empty once SLURM has purged the job.

    Raises:
        JobError: If scontrol is missing or fails.
    """
    try:
        shown = _run(["scontrol", "show", "job", "--oneliner", job_id])
    except JobError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in shown.splitlines() if line]


def state_if_active(job_id: str) -> str | None:
    """Return the state of a job that has not ended; None if it has ended, or if there is no scontrol here."""
    if shutil.which("scontrol") is None:
        return None
    return next((job["JobState"] for job in states(job_id) if job["JobState"] not in _ENDED), None)


def cancel(job_id: str) -> None:
    """Cancel a job.

    Raises:
        JobError: If scancel is missing or fails.
    """
    _run(["scancel", job_id])
