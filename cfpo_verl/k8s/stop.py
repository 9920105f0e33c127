"""`python -m cfpo_verl.k8s.stop RUN_DIR`: let the run save a checkpoint and end before its pod is removed.

Kubernetes runs it as the pod's preStop hook before it sends SIGTERM to a pod that is preempted, evicted, drained or
deleted. It also runs it when the pods of a finished run are removed; then there is nothing to wait for.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cfpo_verl.run_dir import stop_request_path
from cfpo_verl.terminal import App

_POLL_S = 1.0

app = App()


def stop(run_dir: Path, is_running: Callable[[], bool], deadline_s: float) -> str:
    """Ask a run to save and end, wait until it has ended, and return a message with the result.

    Args:
        run_dir: Run folder.
        is_running: Returns whether a run is in progress.
        deadline_s: Longest time to wait, in seconds.
    """
    if not is_running():
        return "no run to stop"
    end = time.monotonic() + deadline_s
    while is_running():
        stop_request_path(run_dir).touch()  # repeated, since a run that is just starting removes it
        if time.monotonic() >= end:
            return f"the run has not ended within {deadline_s:g} s; its steps since the last checkpoint are lost"
        time.sleep(_POLL_S)
    stop_request_path(run_dir).unlink(missing_ok=True)  # may have been recreated after the run answered it
    return "the run has ended"


def has_running_job(address: str) -> bool:
    """Ask Ray's dashboard whether a submitted job is in progress; without an answer, assume that none is.

    Args:
        address: Address of the dashboard, as http://HOST:PORT.
    """
    from ray.exceptions import RpcError
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        jobs = JobSubmissionClient(address).list_jobs()
    except (ConnectionError, RuntimeError, RpcError):  # the head is gone, and so is the run
        return False
    return any(job.status in (JobStatus.PENDING, JobStatus.RUNNING) for job in jobs)


def dashboard_address(ray_address: str) -> str:
    """Return the dashboard's address for the RAY_ADDRESS that KubeRay sets.

    Example:
        >>> dashboard_address("math-head-svc.rl.svc.cluster.local:6379")
        'http://math-head-svc.rl.svc.cluster.local:8265'
    """
    return f"http://{ray_address.rpartition(':')[0]}:8265"


@app.command()
def main(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run folder.")],
    deadline_s: Annotated[float, typer.Option(help="Longest time to wait, in seconds.")],
) -> None:
    """Let the run save a checkpoint and end before its pod is removed."""
    address = dashboard_address(os.environ.get("RAY_ADDRESS") or "127.0.0.1:6379")
    typer.echo(stop(run_dir, lambda: has_running_job(address), deadline_s))


if __name__ == "__main__":
    app(prog_name="python -m cfpo_verl.k8s.stop")
