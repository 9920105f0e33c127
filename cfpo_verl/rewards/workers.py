"""Killable worker processes for comparisons that may never terminate.

The deadline of a job is CPU time, counted from when a worker starts it, so queueing and a busy machine do not matter.
The kernel kills a process at its deadline, even inside one long multiplication.
"""

import logging
import os
import resource
import signal
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from types import ModuleType
from typing import Any

from pebble import ProcessExpired, ProcessPool

from cfpo_verl.errors import UserError

logger = logging.getLogger(__name__)

# Jobs after which a worker is replaced, so that memory leaks of libraries stay bounded.
_JOBS_PER_WORKER = 20_000
# Wall-clock limit after which a job is given to another worker, for example when a machine swaps or stops the process.
_WALL_DEADLINE_S = 30.0
_ATTEMPTS = 3
# Exit status of a worker that ran out of memory.
_OUT_OF_MEMORY = 71


class LimitError(UserError):
    """A limit of the worker processes is not a positive number."""


@dataclass(frozen=True)
class Limits:
    """Limits of the worker processes.

    Args:
        workers: Number of worker processes.
        deadline_s: CPU time limit per comparison, in seconds.
        memory_gb: Memory limit per worker, in GiB.
    """

    workers: int = 2
    deadline_s: float = 1.0
    memory_gb: float = 1.0

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            LimitError: If one is not a positive number.
        """
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise LimitError(f"reward_kwargs.{name} must be a number greater than 0, got {value!r}")


@dataclass(frozen=True)
class Decision:
    """The outcome of a job.

    Args:
        is_equal: The verdict; False without one.
        timed_out: Whether there is no verdict because the job exceeded its time or memory limit.
        error: The exception that a library raised instead, or "".
    """

    is_equal: bool
    timed_out: bool = False
    error: str = ""


class _Process(ForkServerProcess):
    """A process that does not import its parent's main script, which may be Ray's or lack a __main__ guard."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return ForkServerProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _Context(ForkServerContext):
    Process = _Process


def _limit_worker(memory_bytes: int) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run(deadline_s: float, answer: str, gold: str, relative_tolerance: float, words: frozenset[str]) -> Decision:
    """Compare two answers in a worker, which dies at the deadline."""
    from cfpo_verl.rewards.symbolic import decide

    # No handler is installed: the default action of this signal kills the process.
    signal.setitimer(signal.ITIMER_PROF, deadline_s)
    try:
        return Decision(decide(answer, gold, relative_tolerance, words))
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    except Exception as error:  # sympy may raise anything; the parent logs and counts it
        return Decision(False, error=f"{type(error).__name__}: {error}"[:500])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@dataclass
class _Job:
    """A pending comparison and the pool that runs it."""

    arguments: tuple[Any, ...]
    attempts_left: int = _ATTEMPTS
    pool: ProcessPool | None = None


class SymbolicWorkers:
    """A pool of worker processes, started by the first job and replaced when it breaks or stalls."""

    def __init__(self, limits: Limits, stall_s: float = _WALL_DEADLINE_S + 30) -> None:
        """Create the pool lazily.

        Args:
            limits: Limits of the workers.
            stall_s: Seconds without a finished job after which a pool with pending jobs is replaced.
        """
        self.limits = limits
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None
        self._open: dict[Future[Decision], _Job] = {}
        self._last_progress_s = 0.0
        self._watch: threading.Thread | None = None

    def submit(self, answer: str, gold: str, relative_tolerance: float, words: frozenset[str]) -> "Future[Decision]":
        """Submit a comparison of two answers.

        Returns:
            A future that always resolves to a decision, never to an exception.
        """
        outcome: Future[Decision] = Future()
        job = _Job((answer, gold, relative_tolerance, words))
        with self._lock:
            if not self._open:
                self._last_progress_s = time.monotonic()
            self._open[outcome] = job
        self._try(outcome, job)
        return outcome

    def close(self) -> None:
        """End all workers; pending jobs count as timed out. A later job starts new workers."""
        with self._lock:
            pool, self._pool = self._pool, None
            left = list(self._open)
        for outcome in left:
            self._resolve(outcome, Decision(False, timed_out=True))
        if pool is not None:
            _end(pool)

    def _try(self, outcome: "Future[Decision]", job: _Job) -> None:
        job.attempts_left -= 1
        job.pool = pool = self._running_pool()
        try:
            future = pool.schedule(_run, (self.limits.deadline_s, *job.arguments), timeout=_WALL_DEADLINE_S)
        except RuntimeError as error:  # the pool broke or was stopped in the meantime
            self._try_again(outcome, job, pool, error)
        else:
            future.add_done_callback(lambda done: self._finish(outcome, job, pool, done))

    def _finish(self, outcome: "Future[Decision]", job: _Job, pool: ProcessPool, done: "Future[Decision]") -> None:
        self._last_progress_s = time.monotonic()
        error = RuntimeError("cancelled") if done.cancelled() else done.exception()
        if error is None:
            self._resolve(outcome, done.result())
        elif isinstance(error, ProcessExpired) and error.exitcode in (-signal.SIGPROF, _OUT_OF_MEMORY):
            self._resolve(outcome, Decision(False, timed_out=True))
        elif isinstance(error, ProcessExpired | FutureTimeoutError) and job.attempts_left and job.pool is pool:
            # The worker was killed or stopped from outside, not by the limits of the job.
            self._try(outcome, job)
        else:
            self._try_again(outcome, job, pool, error)

    def _try_again(self, outcome: "Future[Decision]", job: _Job, pool: ProcessPool, error: BaseException) -> None:
        """Resubmit a job to a new pool, unless another pool already has it."""
        self._discard(pool, repr(error))
        if job.pool is not pool or outcome.done():
            return
        if job.attempts_left:
            self._try(outcome, job)
        else:
            logger.error("a comparison failed %d times (%r); it counts as timed out", _ATTEMPTS, error)
            self._resolve(outcome, Decision(False, timed_out=True))

    def _resolve(self, outcome: "Future[Decision]", decision: Decision) -> None:
        with self._lock:
            if self._open.pop(outcome, None) is None:
                return  # another pool was faster
        outcome.set_result(decision)

    def _running_pool(self) -> ProcessPool:
        with self._lock:
            if self._pool is None:
                context = _Context()
                # The fork server imports Math-Verify once, so that a worker starts in milliseconds.
                context.set_forkserver_preload(["cfpo_verl.rewards.symbolic"])
                _start_fork_server()
                self._pool = ProcessPool(
                    max_workers=self.limits.workers,
                    max_tasks=_JOBS_PER_WORKER,
                    initializer=_limit_worker,
                    initargs=(int(self.limits.memory_gb * 2**30),),
                    context=context,
                )
            if self._watch is None:
                self._watch = threading.Thread(target=self._watch_over, name="symbolic-workers-watch", daemon=True)
                self._watch.start()
            return self._pool

    def _discard(self, pool: ProcessPool, reason: str) -> None:
        with self._lock:
            if self._pool is not pool:
                return
            self._pool = None
        logger.warning("replacing the worker processes: %s", reason)
        # In another thread: this one may belong to the pool, and ending the pool would wait for it.
        threading.Thread(target=_end, args=(pool,), name="symbolic-workers-end", daemon=True).start()

    def _watch_over(self) -> None:
        """Replace a stalled pool: a worker killed while holding a lock blocks all others."""
        while True:
            time.sleep(min(5.0, self._stall_s / 4))
            with self._lock:
                pool = self._pool
                if not self._open or pool is None or time.monotonic() - self._last_progress_s < self._stall_s:
                    continue
                self._last_progress_s = time.monotonic()
                stalled = [(outcome, job) for outcome, job in self._open.items() if job.pool is pool]
            error = TimeoutError(f"no job was finished within {self._stall_s:.0f} s")
            for outcome, job in stalled:
                self._try_again(outcome, job, pool, error)


def _start_fork_server() -> None:
    """Start the fork server with the import path of this process."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path


def forget_fork_server() -> None:
    """Make a forked process start its own fork server, since it cannot wait for its parent's."""
    forkserver._forkserver.__init__()  # type: ignore[misc]


def _end(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()
