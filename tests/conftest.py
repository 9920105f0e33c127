"""Helpers that several test files share."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import hypothesis
import pytest
from cfpo_verl.data_prep import arithmetic

from cfpo_verl.config_groups import platform_env

PROJECT = Path(__file__).parents[1]
SHARED_DATA = PROJECT.parent / "shared" / "data"

# The variables with which verl, vLLM and this package can be switched; a test sets those it means.
_SWITCHES = (*platform_env("cpu"), "VERL_USE_EXTERNAL_MODULES", "VERL_USE_EXTERNAL_PLUGINS", "VERL_FILE_LOGGER_PATH")

# Background jobs of a shell ignore Ctrl-C, and so would what the tests start; they must not depend on that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine must not turn a property into a failure.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

Run = Callable[..., subprocess.CompletedProcess[str]]


def clean_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without the switches above, plus `env`."""
    return {**{name: value for name, value in os.environ.items() if name not in _SWITCHES}, **env}


def run_ranks(ranks: int, script: Path, *arguments: str | Path) -> None:
    """Run a script as the ranks of one torch job on the CPU, and check that all end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env=clean_environment({**platform_env("cpu"), **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * ranks, outputs[0][-3000:]


@pytest.fixture
def run_python() -> Run:
    """Run code in a fresh interpreter, as Ray does for its workers."""

    def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], env=clean_environment(env), capture_output=True, text=True)

    return run


@pytest.fixture
def run_cli(tmp_path: Path) -> Run:
    """Run the console script in an empty folder."""

    def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).with_name("cfpo-verl")
        command = [str(script), *map(str, arguments)]
        return subprocess.run(command, env=clean_environment(env), cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.fixture
def arithmetic_files(tmp_path: Path) -> list[Path]:
    """Train and test parquet of two-term sums."""
    return arithmetic.prepare(tmp_path / "data", operands=2, held_out=16, seed=0)


def shared_data(name: str) -> Path:
    """Return a real data file, or skip the test where the folder is missing."""
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"needs the public data file {name} in {SHARED_DATA}, which is not part of the project")
    return path
