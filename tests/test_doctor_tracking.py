"""cfpo_verl.doctor.tracking: loggers that verl could not create."""

import pytest
from doctor_configs import failed, quickstart

from cfpo_verl.doctor import tracking


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """A user without any login."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC", "SWANLAB_API_KEY", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def config(*loggers):
    return quickstart(f"trainer.logger=[{','.join(loggers)}]")


def test_loggers_that_need_nothing():
    assert failed(tracking.check_loggers(config("console", "file", "tensorboard"))) == []
    assert failed(tracking.check_loggers(quickstart("trainer.logger=console"))) == []


def test_wandb_without_login(nobody, monkeypatch):
    [problem] = failed(tracking.check_loggers(config("wandb")))
    assert problem.startswith("trainer.logger: wandb is not logged in, and a worker has no terminal to ask for a key")
    (nobody / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert failed(tracking.check_loggers(config("wandb"))) == []
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080/")
    assert len(failed(tracking.check_loggers(config("wandb")))) == 1


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "offline"), ("WANDB_API_KEY", "key")])
def test_wandb_that_needs_no_login(name, value):
    env = f"+ray_kwargs.ray_init.runtime_env.env_vars.{name}={value}"
    assert failed(tracking.check_loggers(quickstart("trainer.logger=[wandb]", env))) == []


def test_loggers_that_are_not_there(monkeypatch):
    problems = failed(tracking.check_loggers(config("wanbd", "clearml")))
    assert problems[0].startswith(
        "trainer.logger: verl has no logger 'wanbd'. Choose among: console, file, wandb, mlflow"
    )
    assert problems[1].startswith("trainer.logger: clearml needs clearml, which is not installed")


def test_swanlab_without_login(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    assert failed(tracking.check_loggers(config("swanlab"))) == [
        "trainer.logger: swanlab is not logged in. Set SWANLAB_API_KEY or SWANLAB_MODE=local, or run `swanlab login`"
    ]
    monkeypatch.setenv("SWANLAB_MODE", "local")
    assert failed(tracking.check_loggers(config("swanlab"))) == []


def test_the_loggers_are_verls(run_forked):
    code = "from verl.utils.tracking import Tracking; print('\\n' + ' '.join(Tracking.supported_backend))"
    assert set(run_forked(code).stdout.splitlines()[-1].split()) == set(tracking.LOGGERS)
