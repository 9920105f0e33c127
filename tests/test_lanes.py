"""The lanes of tests: what conftest.py watches over, what the Makefile starts, and what continuous integration does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, clean_environment

ROOT_CONFTEST = PROJECT / "conftest.py"
LANES = ("browser", "stack", "slurm")
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))

TESTS = {
    "reads the data of the checkout": ("open({data!r}).close()", "open {data}"),
    "lists the folder": ("os.listdir({folder!r})", "os.listdir {folder}"),
    "writes to the checkout": ("open({new!r}, 'w').close()", "open {new}, to write"),
    "changes into the checkout": ("os.chdir({checkout!r})", "os.chdir in {checkout}"),
    "starts a program there": ("subprocess.run(['true'], cwd={checkout!r})", "subprocess.Popen in {checkout}"),
    "starts Ray": ("subprocess.run(['/bin/echo'], executable='{raylet}')", "starts Ray (raylet)"),
}


def run_pytest(checkout: Path, *arguments: str) -> str:
    """Run pytest in a folder, and return what it prints."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    env = clean_environment({"PYTHONPATH": str(checkout)})
    for name in [name for name in env if name.startswith("PYTEST_")]:
        del env[name]
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with our conftest.py, and with what `make quickstart` leaves."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(ROOT_CONFTEST, folder)
    markers = "".join(f"    {lane}: x\n" for lane in LANES)
    (folder / "pytest.ini").write_text(f"[pytest]\naddopts = --doctest-modules\nmarkers =\n{markers}")
    for name in ("data/arithmetic/train.parquet", "models/quickstart_seed0/config.json", "runs/a/x", "outputs/x"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
    return folder


def test_a_test_that_leaves_its_folder_for_the_checkout_fails(checkout, tmp_path):
    raylet = tmp_path / "raylet"
    shutil.copy("/bin/true", raylet)
    names = {
        "data": str(checkout / "data" / "arithmetic" / "train.parquet"),
        "folder": str(checkout / "models"),
        "new": str(checkout / "new.txt"),
        "checkout": str(checkout),
        "raylet": str(raylet),
    }
    source = "import os, subprocess\n"
    for number, (code, _message) in enumerate(TESTS.values()):
        source += f"def test_{number}():\n    {code.format(**names)}\n"
    (checkout / "test_it.py").write_text(source)
    printed = run_pytest(checkout, "test_it.py")
    for number, (_code, message) in enumerate(TESTS.values()):
        assert re.search(rf"^ERROR test_it.py::test_{number} - ", printed, re.MULTILINE), printed
        assert message.format(**names) in printed
    assert "the tests left these in" in printed
    assert "new.txt" in printed


def test_tests_and_doctests_and_fixtures_see_an_empty_folder(checkout):
    (checkout / "module.py").write_text('"""\n>>> import os\n>>> os.listdir()\n[]\n"""\n')
    (checkout / "test_it.py").write_text(
        "import os, pytest\n"
        "@pytest.fixture(scope='module')\ndef listed():\n    return os.listdir()\n"
        "def test_fixture(listed):\n    assert listed == []\n"
        "def test_folder(tmp_path):\n    assert os.getcwd() == str(tmp_path) and not os.path.exists('data')\n"
    )
    assert "3 passed" in run_pytest(checkout)


def test_unit_tests_come_first_and_the_slowest_last(checkout):
    lines = ["import pytest", "def test_unit(): pass"]
    lines[1:1] = [f"@pytest.mark.{lane}\ndef test_{lane}(): pass" for lane in reversed(LANES)]
    (checkout / "test_it.py").write_text("\n".join(lines))
    printed = run_pytest(checkout, "test_it.py", "--collect-only")
    assert re.findall(r"::test_(\w+)", printed) == ["unit", *LANES]


def test_the_tests_that_saw_the_checkout_pass_beside_what_quickstart_leaves(tmp_path):
    """Both composed the quickstart with relative paths, and found its data and its model."""
    for name in ("conftest.py", "pyproject.toml", "tests", "cfpo_verl", "data_prep", "hydra_configs", "hydra_plugins"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        options = {"symlinks": True, "ignore": shutil.ignore_patterns("__pycache__")} if copy is shutil.copytree else {}
        copy(PROJECT / name, tmp_path / name, **options)
    shutil.copytree(PROJECT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    from cfpo_verl.data_prep import arithmetic

    arithmetic.prepare(tmp_path / "data" / "arithmetic", operands=2, held_out=16, seed=0)
    model = tmp_path / "models" / "quickstart_seed0"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    for name in ("runs", "outputs"):
        (tmp_path / name).mkdir()
    printed = run_pytest(
        tmp_path,
        "tests/test_doctor.py::test_every_check_reports_in_its_place",
        "tests/test_plan.py::test_steps_come_from_the_data",
    )
    assert "2 passed" in printed, printed


def make_targets() -> set[str]:
    """Return the targets of the Makefile, from make itself."""
    command = ["make", "--print-data-base", "--question", "--no-builtin-rules", "-C", str(PROJECT), "help"]
    printed = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MAKEFLAGS": ""}).stdout
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", printed, re.MULTILINE))


def test_the_three_workflows_do_what_a_person_types():
    assert [path.stem for path in WORKFLOWS] == ["slurm", "stack", "unit"]
    commands = []
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            steps = [step["run"] for step in job["steps"] if "run" in step]
            assert [step for step in job["steps"] if "run" not in step] == [{"uses": "actions/checkout@v4"}]
            commands += steps
    assert all(re.fullmatch(r"make [\w-]+", command) for command in commands)
    targets = {command.removeprefix("make ") for command in commands}
    assert targets <= make_targets()
    # Together they are `make test`.
    assert targets == {"lint", "test-fast", *(f"test-{lane}" for lane in LANES)}


def test_make_test_runs_every_lane_the_fast_ones_first():
    command = ["make", "--dry-run", "--always-make", "-C", str(PROJECT), "test"]
    env = {**os.environ, "MAKEFLAGS": ""}
    printed = subprocess.run(command, capture_output=True, text=True, env=env).stdout
    lanes = re.findall(r"^pytest -m (\w+|\"[^\"]*\")", printed, re.MULTILINE)
    assert lanes == [f'"{" and ".join(f"not {lane}" for lane in LANES)}"', *LANES]
