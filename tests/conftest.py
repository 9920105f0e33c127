"""Helpers that several test files share."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from glob import glob
from pathlib import Path
from tempfile import TemporaryFile
from typing import NoReturn

import hypothesis
import psutil
import pytest
from forks import Forks

from cfpo_verl.config_groups import platform_env
from cfpo_verl.data_prep import arithmetic

PROJECT = Path(__file__).parents[1]
# Through the links to data_prep/ and hydra_configs/ too, which Path.rglob would not follow.
PACKAGE_FILES = sorted(map(Path, glob(f"{PROJECT}/cfpo_verl/**/*.py", recursive=True)))
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


def in_checkout(env: Mapping[str, str]) -> dict[str, str]:
    """Return a clean environment in which Python finds `benchmarks`, too, as it does in the checkout's folder."""
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return clean_environment({"PYTHONPATH": path, **env})


def run_ranks(ranks: int, script: Path, *arguments: str | Path) -> None:
    """Run a script as the ranks of one torch job on the CPU, and check that all end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    with ExitStack() as files:
        # Files, not pipes: a rank that waits for its full pipe to be read would have all others wait for it.
        outputs = [files.enter_context(TemporaryFile("w+")) for _ in range(ranks)]
        started = [
            subprocess.Popen(
                [sys.executable, str(script), *map(str, arguments)],
                env=clean_environment({**platform_env("cpu"), **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
                stdout=outputs[rank],
                stderr=subprocess.STDOUT,
            )
            for rank in range(ranks)
        ]
        statuses = [process.wait(timeout=300) for process in started]
        outputs[0].seek(0)
        assert statuses == [0] * ranks, outputs[0].read()[-3000:]


@pytest.fixture
def run_python() -> Run:
    """Run code in a fresh interpreter, as Ray does for its workers."""

    def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], env=clean_environment(env), capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The process that others fork from (tests/forks.py)."""
    forks = Forks(clean_environment({}))
    yield forks
    forks.close()


@pytest.fixture
def run_forked(tmp_path: Path, forks: Forks) -> Run:
    """Run code as `run_python` does, in a fork, which saves importing the libraries: verl and ours are not."""

    def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
        return forks.run(code, clean_environment(env), tmp_path)

    return run


@pytest.fixture
def run_cli(tmp_path: Path, forks: Forks) -> Run:
    """Run `cfpo-verl` in the test's folder as `run_script` does, in a fork, which saves importing the libraries."""

    def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        return forks.run([*map(str, arguments)], clean_environment(env), tmp_path)

    return run


@pytest.fixture
def run_script(tmp_path: Path) -> Run:
    """Run the console script in the test's folder: once for each command, and where a library reads a variable."""

    def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).with_name("cfpo-verl")
        command = [str(script), *map(str, arguments)]
        return subprocess.run(command, env=clean_environment(env), cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.fixture
def arithmetic_files(tmp_path: Path) -> list[Path]:
    """Train and test parquet of two-term sums."""
    return arithmetic.prepare(tmp_path / "data", operands=2, held_out=16, seed=0)


# Overrides of the quickstart with which a step takes seconds.
SMALL = [
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.rollout.val_kwargs.n=2",
]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a model that is sometimes right, as `make quickstart` lays them out."""
    from cfpo_verl import warmup
    from cfpo_verl.data_prep.schema import Problem, read_problems
    from cfpo_verl.data_prep.writing import write_train_and_test

    folder = tmp_path_factory.mktemp("stack")
    # Every answer is the same, so the warm-up takes seconds.
    problems = [Problem(problem.question, "7") for problem in arithmetic.make_problems(operands=2, seed=0)]
    train_file, test_file = write_train_and_test(folder / "data" / "arithmetic", problems, 16, "arithmetic", {})
    config = warmup.WarmupConfig(evaluate_every=2, accuracy_high=1.0)
    made = warmup.warm_up(read_problems(train_file), read_problems(test_file), config)
    warmup.save(folder / "models" / "quickstart_seed0", *made, {})
    return folder


def stack_processes() -> set[int]:
    """Return the pids of this user's Ray and vLLM processes: one run at a time fits on the machine."""
    found = set()
    for process in psutil.process_iter(["cmdline", "uids"]):
        program = Path((process.info["cmdline"] or [""])[0]).name
        is_stack = program in ("raylet", "gcs_server") or program.startswith(("ray::", "VLLM::"))
        if is_stack and process.info["uids"].real == os.getuid():
            found.add(process.pid)
    return found


def _train(workplace: Path, *overrides: str) -> tuple[Path, subprocess.CompletedProcess[str], set[int]]:
    """Run three steps with the console script, without an interruption; return the run folder and what was left."""
    before = stack_processes()
    [run_dir] = [override.removeprefix("run_dir=") for override in overrides if override.startswith("run_dir=")]
    command = [Path(sys.executable).with_name("cfpo-verl"), "train", "experiment=cpu_quickstart", *SMALL, *overrides]
    command += ["trainer.total_training_steps=3", "trainer.save_freq=100"]
    environment = clean_environment({"TENSORBOARD_DIR": str(workplace / "tensorboard")})
    result = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-5000:]
    return workplace / run_dir, result, stack_processes() - before


@pytest.fixture(scope="session")
def finished(workplace: Path) -> tuple[Path, subprocess.CompletedProcess[str], set[int]]:
    """A run with CFPO that keeps all that it can: responses, and metrics in two forms."""
    dumps = ["trainer.rollout_data_dir=run/rollouts", "trainer.validation_data_dir=run/validation"]
    return _train(workplace, "run_dir=run", *dumps, "trainer.logger=[file,tensorboard]")


@pytest.fixture(scope="session")
def finished_gspo(workplace: Path) -> tuple[Path, subprocess.CompletedProcess[str], set[int]]:
    """A run with an algorithm and a loss of verl's, to compare with."""
    return _train(workplace, "run_dir=runs/gspo", "algo=gspo")


def skip_unless_ci(reason: str) -> NoReturn:
    """Skip a test for what this machine lacks; where everything has to be there, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"cannot be tested: {reason}")
    pytest.skip(reason)


def shared_data(name: str) -> Path:
    """Return a real data file, or skip the test where the folder is missing."""
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"needs the public data file {name} in {SHARED_DATA}, which is not part of the project")
    return path
