"""cfpo_verl.doctor.environment: versions, packages, and the plugin as a fresh process finds it."""

import re
import sys

import pytest
from conftest import clean_environment
from doctor_configs import failed, gpu_config, ok, quickstart, warnings
from omegaconf import open_dict
from packaging.version import Version

from cfpo_verl.config_groups import platform_env
from cfpo_verl.doctor import environment


@pytest.fixture
def versions(monkeypatch):
    """Fake versions, at the edge of what this machine has."""
    real, faked = environment.installed, {}

    def installed(name):
        return faked[name] if name in faked else real(name)

    monkeypatch.setattr(environment, "installed", installed)
    return faked


def test_the_stack_of_the_requirements_is_right():
    [line] = ok(environment.check_versions(quickstart()))
    assert failed(environment.check_versions(quickstart())) == []
    assert line.startswith(f"Python {sys.version_info[0]}.{sys.version_info[1]}.")
    # With +cpu where another test of this process has selected the CPU platform.
    assert re.search(r", verl 0\.9\.1, vLLM 0\.28\.0(\+cpu)?, torch 2\.13\.0", line)


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("verl", Version("0.10.0"), "verl is 0.10.0, and cfpo_verl needs verl <0.10,>=0.9.1"),
        ("verl", None, "verl is not installed"),
        ("vllm", Version("0.17.1"), "vLLM is 0.17.1, and verl needs >=0.18.0"),
        ("ray", Version("2.30.0"), "ray is 2.30.0, and verl asks for >=2.41.0. pip install 'ray>=2.41.0'"),
        ("transformers", Version("5.12.0"), "transformers is 5.12.0, and verl asks for !=5.6.0,<5.11,>=5.5.3"),
        ("TransferQueue", Version("0.1.5"), "TransferQueue is 0.1.5, and verl asks for >=0.1.10 (verl's default"),
    ],
)
def test_wrong_versions(versions, name, version, message):
    versions[name] = version
    problems = failed(environment.check_versions(quickstart()))
    assert any(problem.startswith(message) for problem in problems), problems


def test_transfer_queue_is_not_needed_by_the_older_trainer(versions):
    versions["TransferQueue"] = Version("0.1.5")
    config = quickstart("trainer.use_v1=false")
    assert failed(environment.check_versions(config)) == []


def test_a_rollout_engine_that_verl_does_not_test(versions):
    versions["vllm"] = Version("0.26.0")
    versions["torch"] = Version("2.11.0")
    found = warnings(environment.check_versions(gpu_config()))
    assert any(line.startswith("vllm is 0.26.0, and verl asks for ==0.24.0 with vllm") for line in found)
    assert not any(line.startswith("torch") for line in found)
    assert warnings(environment.check_versions(quickstart())) == []  # on a CPU the set is ours


def test_python_outside_the_range(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 1))
    [problem] = failed(environment.check_versions(quickstart()))
    assert problem.startswith("Python is 3.13.1, and verl with cfpo-verl needs >=3.11,<3.13")


def test_an_antlr_that_hydra_cannot_use(monkeypatch):
    monkeypatch.setattr("cfpo_verl.compat.version", lambda name: "4.13.2")
    [problem] = failed(environment.check_versions(quickstart()))
    assert problem.startswith("antlr4-python3-runtime is 4.13.2, and Hydra's parser needs ==4.9.*. pip install")


@pytest.mark.parametrize("missing", ["vllm", "transfer_queue"])
def test_missing_packages(monkeypatch, missing):
    config = quickstart()
    assert list(environment.check_packages(config)) == []
    real = environment.find_spec
    monkeypatch.setattr(environment, "find_spec", lambda name: None if name == missing else real(name))
    [problem] = failed(environment.check_packages(config))
    assert "pip install" in problem


def test_packages_of_the_engines(monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    overrides = ["model_engine=megatron", "actor_rollout_ref.rollout.name=sglang", "trainer.use_v1=false"]
    problems = failed(environment.check_packages(gpu_config(*overrides)))
    assert [problem.partition(", which")[0].partition(", but")[0] for problem in problems] == [
        "actor_rollout_ref.rollout.name=sglang",
        "actor_rollout_ref.actor.strategy=megatron needs megatron-core, transformer-engine, megatron-bridge",
    ]
    assert "pip install 'verl[megatron,sglang]<0.10,>=0.9.1'" in problems[-1]
    vanilla = "actor_rollout_ref.actor.megatron.vanilla_mbridge=true"
    assert (
        "transformer-engine, mbridge, which are not installed. pip install 'megatron-core"
        in (failed(environment.check_packages(gpu_config(*overrides, vanilla)))[-1])
    )


def test_flash_attention_is_verls_default(monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None if name == "flash_attn" else object())
    config = gpu_config()
    [warning] = warnings(environment.check_packages(config))
    assert "flash-attn is not installed" in warning
    with open_dict(config):
        config.actor_rollout_ref.model.override_config.attn_implementation = "sdpa"
    assert warnings(environment.check_packages(config)) == []


def test_registry_accepts_what_verl_has():
    env = clean_environment(platform_env("cpu"))
    assert list(environment.check_registries("cfpo", "grpo", env)) == []


def test_registry_names_what_verl_has():
    probed = (["cfpo", "vanilla"], ["grpo", "rloo"], {})
    estimator, loss = failed(environment.judge_registries("cpfo", "gropo", probed, {}))
    assert loss == (
        "policy_loss.loss_mode=cpfo is not in verl's registry in a fresh process. Choose one of: cfpo, vanilla"
    )
    assert estimator == "algorithm.adv_estimator=gropo is not in verl's registry. Choose one of: grpo, rloo"


def test_a_registration_that_fails_is_named_with_its_reason(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['cfpo_verl.advantages'] = None")
    env = clean_environment(platform_env("cpu"))
    env["PYTHONPATH"] = f"{tmp_path}:{env.get('PYTHONPATH', '')}"
    [problem] = failed(environment.check_registries("cfpo", "grpo", env))
    assert (
        "policy_loss.loss_mode=cfpo is not in verl's registry in a fresh process, and a plugin is not loaded" in problem
    )
    assert "cfpo (ModuleNotFoundError: import of cfpo_verl.advantages halted" in problem


def test_a_verl_that_cannot_be_imported_is_named(tmp_path):
    (tmp_path / "verl.py").write_text("raise ImportError('torn install')")
    env = clean_environment({"PYTHONPATH": str(tmp_path)})
    [problem] = failed(environment.check_registries("cfpo", "grpo", env))
    assert problem.startswith("verl cannot be imported in a fresh process: ImportError: torn install")


def test_an_unsupported_verl_names_the_range(tmp_path):
    # A fake at the edge of what this machine has: only the version that the metadata reports.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nreal = m.version\n"
        "m.version = lambda name: '0.10.0' if name == 'verl' else real(name)\n"
    )
    env = clean_environment({"PYTHONPATH": str(tmp_path)})
    [problem] = failed(environment.check_registries("cfpo", "grpo", env))
    assert "UnsupportedVerlError: verl 0.10.0 is not supported: cfpo_verl needs verl <0.10,>=0.9.1" in problem
