"""Every shipped experiment composes on both entry points, and no group of ours hides one of verl's."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import hydra
import pytest
from conftest import clean_environment
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import PolicyLossConfig

from cfpo_verl import train  # registers the resolver that the primary config uses
from cfpo_verl.config import LOSS_CONFIGS, CfpoLossConfig
from cfpo_verl.config_groups import names, platform_env

EXPERIMENTS = names("experiment")
POLICY_LOSSES = names("policy_loss")
VERL_CONFIG_DIR = Path(train._verl_config_dir())
OUR_CONFIG_DIR = Path(__file__).parents[1] / "hydra_configs"


def compose(*overrides):
    with hydra.initialize_config_module("cfpo_verl.hydra_configs", version_base=None):
        return hydra.compose("train", overrides=list(overrides))


def compose_as_verl(*overrides):
    """Compose as verl's own entry point does: its config folder is the primary one."""
    with hydra.initialize_config_dir(str(VERL_CONFIG_DIR), version_base=None):
        return hydra.compose("ppo_trainer", overrides=list(overrides))


def without(config, *dotted_keys):
    """Return a config as plain resolved data, less some keys."""
    data = OmegaConf.to_container(config, resolve=True)
    for dotted in dotted_keys:
        *parents, key = dotted.split(".")
        node = data
        for parent in parents:
            node = node[parent]
        node.pop(key, None)
    return data


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("policy_loss", POLICY_LOSSES)
def test_both_entry_points_compose_the_same_config(experiment, policy_loss):
    ours = compose(f"experiment={experiment}", f"policy_loss={policy_loss}")
    verls = compose_as_verl(f"+experiment={experiment}", f"policy_loss={policy_loss}")
    assert ours.actor_rollout_ref.actor.policy_loss.loss_mode == policy_loss
    folders = ("run_dir", "trainer.default_local_dir")
    assert without(ours, *folders) == without(verls, *folders)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_take_several_steps_per_rollout(experiment):
    config = compose(f"experiment={experiment}")
    actor = config.actor_rollout_ref.actor
    assert config.data.train_batch_size // actor.ppo_mini_batch_size * actor.ppo_epochs >= 4


def test_vanilla_is_exactly_verls_default():
    ours = compose("experiment=cpu_quickstart", "policy_loss=vanilla").actor_rollout_ref.actor.policy_loss
    assert ours == compose_as_verl().actor_rollout_ref.actor.policy_loss


def test_verls_own_config_takes_the_loss_alone():
    config = compose_as_verl("+policy_loss=cfpo", "actor_rollout_ref.actor.policy_loss.epsilon=0.1")
    policy_loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss)
    assert policy_loss == CfpoLossConfig(epsilon=0.1)
    loss = "actor_rollout_ref.actor.policy_loss"
    assert without(config, loss) == without(compose_as_verl(), loss)


@pytest.mark.parametrize("loss", LOSS_CONFIGS, ids=lambda loss: loss.NAME)
def test_the_files_of_our_losses_have_every_option_with_its_default(loss):
    chosen = compose("experiment=cpu_quickstart", f"policy_loss={loss.NAME}").actor_rollout_ref.actor.policy_loss
    assert omega_conf_to_dataclass(chosen) == loss()
    verls = {field.name for field in fields(PolicyLossConfig)} - {"loss_mode"}
    assert set(chosen) - verls - {"_target_"} == {field.name for field in fields(loss)} - verls


def test_the_loss_of_whole_responses_brings_its_aggregation():
    for name, mode in [("cfpo_sequence", "seq-mean-token-mean"), ("cfpo", "token-mean")]:
        assert compose_as_verl(f"+policy_loss={name}").actor_rollout_ref.actor.loss_agg_mode == mode
        assert compose("experiment=cpu_quickstart", f"policy_loss={name}").actor_rollout_ref.actor.loss_agg_mode == mode


@pytest.mark.parametrize("loss_mode", ["cfpo", "drpo"])
def test_changing_the_loss_changes_nothing_but_the_loss(loss_mode):
    cfpo, vanilla = (compose("experiment=cpu_quickstart", f"policy_loss={name}") for name in (loss_mode, "vanilla"))
    named_after_it = ("trainer.experiment_name", "trainer.default_local_dir", "run_dir")
    traced = "actor_rollout_ref.rollout.trace"
    loss = "actor_rollout_ref.actor.policy_loss"
    assert without(cfpo, loss, traced, *named_after_it) == without(vanilla, loss, traced, *named_after_it)


def test_composing_does_not_import_verl(run_python):
    code = (
        "import sys, hydra, cfpo_verl.train\n"
        "with hydra.initialize_config_module('cfpo_verl.hydra_configs', version_base=None):\n"
        "    hydra.compose('train', overrides=['experiment=cpu_quickstart'])\n"
        "print('verl' in sys.modules, 'torch' in sys.modules)"
    )
    result = run_python(code)
    assert result.stdout.split() == ["False", "False"], result.stderr


def test_our_groups_do_not_hide_verls():
    ours = {path.name for path in OUR_CONFIG_DIR.iterdir() if path.is_dir() and path.name != "__pycache__"}
    verls = {path.name for path in VERL_CONFIG_DIR.iterdir() if path.is_dir()}
    assert ours == {"experiment", "platform", "policy_loss"}
    assert not ours & verls


def test_platform_group_and_command_give_the_same_environment(run_cli):
    printed = run_cli("env", "cpu").stdout.split()
    composed = compose("experiment=cpu_quickstart").ray_kwargs.ray_init.runtime_env.env_vars
    assert printed == [f"{name}={value}" for name, value in composed.items()]
    assert platform_env("cpu")["VERL_PLATFORM"] == "cpu"


def test_verls_own_entry_point_finds_our_groups(tmp_path):
    overrides = ["+experiment=cpu_quickstart", "policy_loss=cfpo", "--cfg", "job"]
    # Elsewhere: in the checkout, python -m would find hydra_plugins without any installation.
    result = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *overrides],
        cwd=tmp_path,
        env=clean_environment(platform_env("cpu")),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    config = OmegaConf.create(result.stdout[result.stdout.index("actor_rollout_ref:") :])
    assert config.actor_rollout_ref.actor.policy_loss._target_ == "cfpo_verl.config.CfpoLossConfig"
    assert config.trainer.device == "cpu"


@pytest.mark.parametrize("file", sorted(OUR_CONFIG_DIR.rglob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_follows_verls_format(file):
    """verl's rule: comments stand above a field, never behind it."""
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        assert line.lstrip().startswith("#") or " #" not in line, f"{file.name}, line {number}: {line}"
