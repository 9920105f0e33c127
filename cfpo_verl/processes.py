"""End every process that a run started, and no other."""

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h


def _adopt_orphans() -> None:
    """Make orphaned descendants children of this process, so that none can get out of sight."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(grace_s: float) -> None:
    """Terminate all descendants of this process, then kill those that are still there.

    Args:
        grace_s: Seconds between the polite request and the kill.
    """
    # Killing a parent hands us its children, so look again until there are none.
    while descendants := psutil.Process().children(recursive=True):
        for process in descendants:
            try:
                process.terminate()
            except psutil.NoSuchProcess:
                continue
        _gone, alive = psutil.wait_procs(descendants, timeout=grace_s)
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive, timeout=grace_s)


def _raise_exit(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


@contextmanager
def ending_what_it_starts(grace_s: float = 10.0) -> Iterator[None]:
    """Run a block, then end Ray and all that the block left running, however it was left.

    SIGTERM, which SLURM and `kill` send, leaves the block as an exception, as Ctrl-C does.

    Args:
        grace_s: Seconds that a process has to end by itself before it is killed.
    """
    _adopt_orphans()
    previous = signal.signal(signal.SIGTERM, _raise_exit)
    try:
        yield
    finally:
        # A second Ctrl-C must not stop the clean-up half-way.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            ray.shutdown()
        end_descendants(grace_s)
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, previous)
