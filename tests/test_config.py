"""cfpo_verl.config: what verl builds from YAML, and what it refuses to build."""

import math
from dataclasses import FrozenInstanceError

import pytest
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import PolicyLossConfig

from cfpo_verl.config import CfpoLossConfig


def build(**values):
    return omega_conf_to_dataclass({"_target_": "cfpo_verl.config.CfpoLossConfig", **values})


def test_defaults_are_the_papers_loss():
    config = build()
    assert isinstance(config, CfpoLossConfig)
    assert isinstance(config, PolicyLossConfig)
    assert (config.loss_mode, config.epsilon) == ("cfpo", 0.2)


@pytest.mark.parametrize("epsilon", [0, -0.1, 1, 1.5, math.nan, math.inf])
def test_refuses_numbers_outside_the_open_unit_interval(epsilon):
    with pytest.raises(ValueError, match=rf"greater than 0 and less than 1, got {epsilon}. Set it with"):
        CfpoLossConfig(epsilon=epsilon)


@pytest.mark.parametrize("epsilon", ["abc", "0.2", None, True, [0.2]])
def test_refuses_what_is_not_a_number(epsilon):
    with pytest.raises(TypeError, match=r"policy_loss\.epsilon must be a number, got "):
        CfpoLossConfig(epsilon=epsilon)


def test_refuses_unknown_options():
    with pytest.raises(Exception, match="unexpected keyword argument 'epsilo'"):
        build(epsilo=0.1)


def test_cannot_be_changed_later():
    with pytest.raises(FrozenInstanceError):
        CfpoLossConfig().epsilon = 0.3
