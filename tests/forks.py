"""Runs of `cfpo-verl` as forks of one process that has imported the libraries already.

Each run is a process with its own environment, folder, output and exit status. Only the seconds in which Python
imports torch and other libraries are shared. Not verl, which settles its platform when it is imported, nor ours.
"""

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("datasets", "hydra", "jinja2", "math_verify", "matplotlib.pyplot", "omegaconf", "pandas", "pyarrow.parquet"),
    *("ray", "rich.console", "rich.table", "scipy.stats", "tensordict", "torch", "transformers", "typer"),
)


class Forks:
    """Starts the process to fork from, and runs in forks of it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        # Libraries with threads for their sums would leave them behind in a fork.
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env={**env, **single},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run `cfpo-verl` with the arguments, as `subprocess.run` does."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            outputs = [f"{folder}/stdout", f"{folder}/stderr"]
            request = {"arguments": list(arguments), "env": dict(env), "cwd": str(cwd), "outputs": outputs}
            self._server.stdin.write(f"{json.dumps(request)}\n")
            self._server.stdin.flush()
            status = int(self._server.stdout.readline())
            texts = [Path(output).read_text() for output in outputs]
        return subprocess.CompletedProcess(["cfpo-verl", *arguments], status, *texts)

    def close(self) -> None:
        """End the process."""
        self._server.communicate()


def _serve() -> dict[str, Any] | None:
    """Fork for each request; return the request in the fork, and None when there is no other."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def _become(request: dict[str, Any]) -> None:
    """Let this process be what the request describes."""
    for number, name in enumerate([os.devnull, *request["outputs"]]):
        opened = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [str(Path(sys.executable).with_name("cfpo-verl")), *request["arguments"]]


def main() -> None:
    """Serve, and in a fork run `cfpo-verl`."""
    for library in LIBRARIES:
        importlib.import_module(library)
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    # A fork has only the thread that called fork, and may wait forever for the others. jemalloc, pyarrow's allocator,
    # sees to its own.
    assert threads <= {"python", "python3", "python3.11", "jemalloc_bg_thd"}, f"LIBRARIES start threads: {threads}"
    gc.freeze()  # a collection in a fork would copy all pages
    if request := _serve():
        _become(request)
        status = 1
        try:
            from cfpo_verl.cli import main

            main()
        except SystemExit as ended:
            status = ended.code
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
