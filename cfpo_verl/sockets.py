"""Where verl's socket for weights lies: by default in /tmp, under a name that two jobs on a node can share."""

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
    """Return the handle of the same socket in another folder; one that is not in /tmp stays where it is.

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
    """Move the socket into the folder that the environment names, in every process that will open it.

    Why: verl calls the socket after the id of the Ray job, which is 01000000 for the first driver of *every* Ray
    cluster, and its sender deletes whatever has that name already. Two jobs on one node would so get each other's
    weights.
    """
    if os.environ.get(SOCKET_DIR_VARIABLE):
        # verl's module needs much that this process may never import.
        wrapt.when_imported(_MODULE)(_move_both_ends)
