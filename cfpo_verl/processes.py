"""End all processes that a run started, and only those."""

import ctypes
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h


def _adopt_orphans(adopt: bool) -> None:
    """Make orphaned descendants children of this process, so that they can be found, or stop doing so."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _descendants(spared: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Return the descendants of this process except the spared ones and their descendants."""
    found = []
    for child in psutil.Process().children():
        if child not in spared:
            with suppress(psutil.Error):
                found += [child, *child.children(recursive=True)]
    return found


def end_descendants(grace_s: float, spared: Sequence[psutil.Process] = ()) -> None:
    """Terminate the descendants of this process, then kill those that are still alive.

    Args:
        grace_s: Seconds between SIGTERM and SIGKILL.
        spared: Children to leave running, with their descendants.
    """
    # The children of a killed process become ours, so repeat until there are none.
    while descendants := _descendants(spared):
        for process in descendants:
            with suppress(psutil.Error):
                process.terminate()
        _gone, alive = psutil.wait_procs(descendants, timeout=grace_s)
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        _gone, stuck = psutil.wait_procs(alive, timeout=grace_s)
        if stuck:
            return  # SIGKILL did not end them: they wait for a device, or belong to another user


def _raise_exit(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


@contextmanager
def ending_what_it_starts(grace_s: float = 10.0) -> Iterator[None]:
    """Run a block; when it is left, also by an exception, shut down Ray and end all processes it has started.

    Children that this process had before, for example after an `exec` in a batch script, are left running. SIGTERM,
    which SLURM and `kill` send, raises SystemExit in the block.

    Args:
        grace_s: Seconds a process has to exit after SIGTERM before it is killed.
    """
    children_before = psutil.Process().children()
    _adopt_orphans(True)
    previous = signal.signal(signal.SIGTERM, _raise_exit)
    try:
        yield
    finally:
        # A second Ctrl-C must not interrupt the clean-up.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            ray = sys.modules.get("ray")
            if ray is not None and ray.is_initialized():
                ray.shutdown()
        finally:
            end_descendants(grace_s, children_before)
            _adopt_orphans(False)
            signal.signal(signal.SIGINT, interrupt)
            signal.signal(signal.SIGTERM, previous)
