"""Move verl's weight-transfer socket out of /tmp, where two jobs on a node would use the same name."""

import functools
import os
from collections.abc import Callable
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any

import wrapt

SOCKET_DIR_VARIABLE = "CFPO_VERL_SOCKET_DIR"
_MODULE = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"
_TMP = "ipc:///tmp/"


def moved(handle: str, folder: str) -> str:
    """Return a socket's handle in another folder. A handle outside /tmp is returned unchanged.

    Example:
        >>> moved("ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock", "/tmp/job-7")
        'ipc:///tmp/job-7/rl-colocate-zmq-01000000-replica-0-rank-0.sock'
        >>> moved("tcp://10.0.0.1:5000", "/tmp/job-7")
        'tcp://10.0.0.1:5000'
    """
    if not handle.startswith(_TMP) or handle.startswith(f"ipc://{folder}/"):
        return handle
    return f"ipc://{PurePosixPath(folder) / handle.removeprefix(_TMP)}"


def _moving(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def init_elsewhere(self: Any, zmq_handle: str, *arguments: Any, **options: Any) -> None:
        init(self, moved(zmq_handle, os.environ[SOCKET_DIR_VARIABLE]), *arguments, **options)

    return init_elsewhere


def _move_both_ends(module: ModuleType) -> None:
    for end in (module.BucketedWeightSender, module.BucketedWeightReceiver):
        if not hasattr(end.__init__, "__wrapped__"):
            end.__init__ = _moving(end.__init__)


def install_if_selected() -> None:
    """Move the socket to the folder in CFPO_VERL_SOCKET_DIR, in every process that opens it.

    Why: verl names the socket after the id of the Ray job, which is 01000000 for the first driver of *every* Ray
    cluster, and the sender deletes an existing socket of that name. Two jobs on one node would receive each other's
    weights.
    """
    if os.environ.get(SOCKET_DIR_VARIABLE):
        # Not imported here: verl's module has heavy dependencies that this process may not need.
        wrapt.when_imported(_MODULE)(_move_both_ends)
