"""What holds for every test, doctests included: a folder of its own, and its lane. Helpers are in tests/conftest.py."""

import os
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent
# Where `make quickstart` and other runs leave their files. Whether they are there must not change a test.
PRODUCTS = tuple(f"{CHECKOUT / name}{os.sep}" for name in ("data", "models", "runs", "outputs", "evals", "checkpoints"))
# The slow lanes, in the order in which they run; a test of none of them is a unit test.
LANES = ("browser", "stack", "slurm")

_READS = ("open", "os.listdir", "os.scandir")
_WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate")
_STARTS = ("subprocess.Popen", "os.posix_spawn", "os.chdir")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CACHES = ("__pycache__", ".pytest_cache", ".hypothesis", ".cache", ".coverage", ".ruff_cache", ".mypy_cache", ".git")

# As many processes as cores run unit tests, and more than one thread in each would only slow the others down.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class Watch:
    """Notes what the current test does that its lane forbids: to touch the checkout, or to start Ray.

    Python reports opened and listed files, and started programs, but not `os.stat`. That is why a test's folder is
    elsewhere and no program may be started in the checkout either: relative paths then cannot lead there.
    """

    def __init__(self) -> None:
        self.lane: str | None = None
        self.seen: list[str] = []
        self.on = False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        """Receive one of Python's audit events."""
        if not self.on:
            return
        if event in _READS or event in _WRITES:
            self._note_file(event, arguments)
        elif event in _STARTS:
            self._note_start(event, arguments)

    def _note_file(self, event: str, arguments: tuple[object, ...]) -> None:
        for given in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
            if not isinstance(given, str | bytes | os.PathLike):
                continue
            path = os.path.abspath(os.fsdecode(given))
            if not path.startswith(f"{CHECKOUT}{os.sep}"):
                continue
            flags = arguments[2] if event == "open" else 0
            writes = event in _WRITES or (isinstance(flags, int) and flags & _WRITING)
            if f"{path}{os.sep}".startswith(PRODUCTS):
                self.seen.append(f"{event} {path}")
            elif writes and not any(part.startswith(_CACHES) for part in Path(path).relative_to(CHECKOUT).parts):
                self.seen.append(f"{event} {path}, to write")

    def _note_start(self, event: str, arguments: tuple[object, ...]) -> None:
        given = arguments[0] if event == "os.chdir" else arguments[2] if event == "subprocess.Popen" else None
        folder = os.path.abspath(os.fsdecode(given)) if isinstance(given, str | bytes | os.PathLike) else os.getcwd()
        if f"{folder}{os.sep}".startswith(f"{CHECKOUT}{os.sep}"):
            self.seen.append(f"{event} in {folder}")
        if event != "os.chdir" and self.lane is None:
            program = os.path.basename(os.fsdecode(arguments[0] or b""))  # type: ignore[arg-type]
            if program in ("raylet", "gcs_server"):
                self.seen.append(f"starts Ray ({program}), which is for the lanes {' and '.join(LANES[1:])}")


_watch = Watch()
sys.addaudithook(_watch)


def lane(item: pytest.Item) -> str | None:
    """Return the lane of a test, None for a unit test."""
    return next((name for name in LANES if item.get_closest_marker(name)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a failure of a fast test come before any slow one starts."""
    items.sort(key=lambda item: LANES.index(found) + 1 if (found := lane(item)) else 0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Watch fixtures, too."""
    _watch.lane, _watch.on = lane(item), True


@pytest.fixture(scope="session", autouse=True)
def away_from_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of a module or a session do not run in the checkout either; and no test leaves anything there."""
    before = set(os.listdir(CHECKOUT))
    with chdir(tmp_path_factory.mktemp("session")):
        yield
    new = {name for name in set(os.listdir(CHECKOUT)) - before if not name.startswith(_CACHES)}
    assert not new, f"the tests left these in {CHECKOUT}: {', '.join(sorted(new))}"


@pytest.fixture(autouse=True)
def folder_of_its_own(away_from_the_checkout: None, tmp_path: Path) -> Iterator[None]:
    """Run each test in an empty folder, and fail it if it leaves that for the checkout."""
    with chdir(tmp_path):
        yield
    _watch.on = False
    seen, _watch.seen = _watch.seen, []
    assert not seen, "not in this lane:\n" + "\n".join(seen)
