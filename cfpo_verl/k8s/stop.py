"""`python -m cfpo_verl.k8s.stop RUN_DIR`: before a pod goes, let the run save a checkpoint and end.

Kubernetes runs it, as the pod's preStop hook, before it sends SIGTERM to a pod that is preempted, evicted, drained or
deleted, and also when a run has ended and its pods are removed; then there is nothing to wait for.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cfpo_verl.run_dir import stop_request_path

_POLL_S = 1.0


def stop(run_dir: Path, is_running: Callable[[], bool], deadline_s: float) -> str:
    """Ask a run to save and end, wait until it has ended, and say what happened.

    Args:
        run_dir: Folder of the run.
        is_running: Whether there is a run.
        deadline_s: Seconds to wait at most.
    """
    if not is_running():
        return "no run to stop"
    end = time.monotonic() + deadline_s
    while is_running():
        stop_request_path(run_dir).touch()  # again, since a run that is just starting removes what it finds
        if time.monotonic() >= end:
            return (
                f"the run has not ended within {deadline_s:g} s; the next attempt loses its steps since the last save"
            )
        time.sleep(_POLL_S)
    stop_request_path(run_dir).unlink(missing_ok=True)  # made again after the run had answered it
    return "the run has ended"


def has_running_job(address: str) -> bool:
    """Ask Ray's dashboard whether a submitted job is under way; no answer is a no.

    Args:
        address: Of the dashboard, as http://HOST:PORT.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        jobs = JobSubmissionClient(address).list_jobs()
    except (ConnectionError, RuntimeError):  # the head is gone, and the run with it
        return False
    return any(job.status in (JobStatus.PENDING, JobStatus.RUNNING) for job in jobs)


def dashboard_address(ray_address: str) -> str:
    """Return the address of the dashboard of the cluster that KubeRay names in RAY_ADDRESS.

    Example:
        >>> dashboard_address("math-head-svc.rl.svc.cluster.local:6379")
        'http://math-head-svc.rl.svc.cluster.local:8265'
    """
    return f"http://{ray_address.rpartition(':')[0]}:8265"


def main(arguments: Sequence[str]) -> int:
    """Stop as the hook asks. It never fails: the pod goes anyway."""
    parser = argparse.ArgumentParser(prog="python -m cfpo_verl.k8s.stop", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--deadline-s", type=float, required=True)
    options = parser.parse_args(arguments)
    address = dashboard_address(os.environ.get("RAY_ADDRESS") or "127.0.0.1:6379")
    print(stop(options.run_dir, lambda: has_running_job(address), options.deadline_s), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
