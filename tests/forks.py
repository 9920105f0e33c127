"""Runs of `cfpo-verl` and of code, as forks of one process that has imported the libraries already.

Each run is a process with its own environment, folder, output and exit status. Only the seconds in which Python
imports torch and other libraries are shared. Not verl, which settles its platform when it is imported, nor ours.
"""

import atexit
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

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

    def run(self, what: list[str] | str, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run `cfpo-verl` with a list of arguments, or Python code, as `subprocess.run` does."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            outputs = [f"{folder}/stdout", f"{folder}/stderr"]
            request = {"what": what, "env": dict(env), "cwd": str(cwd), "outputs": outputs}
            self._server.stdin.write(f"{json.dumps(request)}\n")
            self._server.stdin.flush()
            status = int(self._server.stdout.readline())
            texts = [Path(output).read_text() for output in outputs]
        return subprocess.CompletedProcess(["cfpo-verl", *what] if isinstance(what, list) else what, status, *texts)

    def close(self) -> None:
        """End the process."""
        self._server.communicate()


def _serve() -> None:
    """Answer each request with the exit status of a fork."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(request: dict[str, Any]) -> NoReturn:
    """Let this process be what the request describes, to its end."""
    for number, name in enumerate([os.devnull, *request["outputs"]]):
        opened = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    status: object = 0
    try:
        if isinstance(request["what"], list):
            sys.argv = [str(Path(sys.executable).with_name("cfpo-verl")), *request["what"]]
            from cfpo_verl.cli import main

            main()
        else:
            exec(compile(request["what"], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
        status = 1
    # As at the end of any Python, but without taking apart what was imported, which takes a second.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def main() -> None:
    """Import the libraries and serve."""
    for library in LIBRARIES:
        importlib.import_module(library)
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    # A fork has only the thread that called fork, and may wait forever for the others. jemalloc, pyarrow's allocator,
    # sees to its own.
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"LIBRARIES have started threads: {threads}"
    gc.freeze()  # a collection in a fork would copy all pages
    _serve()


if __name__ == "__main__":
    main()
