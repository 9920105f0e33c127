"""Configs that version 0.1.0 froze, which must train with every later version; tests/test_stack.py does so with one."""

from collections.abc import Iterator

import pytest
from conftest import PROJECT
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig
from verl.utils.config import omega_conf_to_dataclass

from cfpo_verl import doctor
from cfpo_verl.composing import read_config
from cfpo_verl.config import CfpoLossConfig

FROZEN = sorted((PROJECT / "tests" / "frozen_configs").glob("*.yaml"))


def nodes(config: object) -> Iterator[DictConfig]:
    """Yield every node of a config."""
    if isinstance(config, DictConfig):
        yield config
    if isinstance(config, DictConfig | ListConfig):
        for name in config if isinstance(config, DictConfig) else range(len(config)):
            yield from nodes(config._get_node(name))


@pytest.mark.parametrize("file", FROZEN, ids=lambda file: file.stem)
def test_every_class_that_it_names_is_there(file):
    targets = {node._target_ for node in nodes(read_config(file, [])) if node.get("_target_")}
    assert "cfpo_verl.config.CfpoLossConfig" in targets
    for target in targets:
        assert callable(get_object(target))


@pytest.mark.parametrize("file", FROZEN, ids=lambda file: file.stem)
def test_its_loss_has_the_options_that_it_had(file):
    config = read_config(file, ["actor_rollout_ref.actor.policy_loss.epsilon=0.15"])
    loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss)
    assert isinstance(loss, CfpoLossConfig)
    assert (loss.loss_mode, loss.epsilon) == ("cfpo", 0.15)


@pytest.mark.parametrize("file", FROZEN, ids=lambda file: file.stem)
def test_it_lacks_only_files_and_packages(file, monkeypatch):
    # The plugin's check starts a fresh process and reads nothing else of the config than its loss and its estimator.
    monkeypatch.setattr(doctor, "CHECKS", tuple(check for check in doctor.CHECKS if check.name != "plugin"))
    found = doctor.examine(read_config(file, []), elsewhere=True)
    assert {finding.check for finding in doctor.failures(found)} <= {"data", "model", "hub", "packages"}
    assert {"values", "verl's rules", "loss options", "batches", "layout"} <= {
        it.check for it in found if it.status == "ok"
    }
