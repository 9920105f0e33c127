"""cfpo_verl.config: what verl builds from YAML, and what it refuses to build."""

import math
from dataclasses import FrozenInstanceError

import pytest
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from cfpo_verl.config import (
    LOSS_CONFIGS,
    CfpoLossConfig,
    CfpoSequenceLossConfig,
    ClippingFreeLossConfig,
    DrpoLossConfig,
)

ACTOR = FSDPActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_high=0.28)


def build(name, **values):
    return omega_conf_to_dataclass({"_target_": f"cfpo_verl.config.{name}", **values})


def test_defaults_are_the_papers_loss():
    config = build("CfpoLossConfig")
    assert isinstance(config, PolicyLossConfig)
    assert config.loss_mode == "cfpo"
    assert config.options(ACTOR) == {"epsilon_low": 0.2, "epsilon_high": 0.2, "tail_start": None}


def test_defaults_of_the_other_losses():
    assert build("CfpoSequenceLossConfig").options(ACTOR)["epsilon_low"] < 0.01
    assert build("DrpoLossConfig").options(ACTOR) == {"delta": 12.5, "ppo_epsilon_low": 0.2, "ppo_epsilon_high": 0.28}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"epsilon": 0.1}, (0.1, 0.1, None)),
        ({"epsilon_low": 0.1}, (0.1, 0.2, None)),
        ({"epsilon_high": 3}, (0.2, 3, None)),
        ({"epsilon": 2, "epsilon_low": 0.5}, (0.5, 2, None)),
        ({"tail": "linear"}, (0.2, 0.2, 0.4)),
        ({"tail": "linear", "epsilon_high": 0.3}, (0.2, 0.3, 0.6)),
        ({"tail": "linear", "tail_start": 1}, (0.2, 0.2, 1)),
    ],
)
def test_options(values, expected):
    assert tuple(build("CfpoLossConfig", **values).options(ACTOR).values()) == expected


@pytest.mark.parametrize("loss", [CfpoLossConfig, CfpoSequenceLossConfig])
@pytest.mark.parametrize("epsilon", [0, -0.1, 1, 1.5, math.nan, math.inf])
def test_refuses_an_epsilon_outside_the_open_unit_interval(loss, epsilon):
    message = (
        rf"policy_loss\.epsilon must be greater than 0 and less than 1, got {epsilon}; .*Set it with .*{loss.epsilon}"
    )
    with pytest.raises(ValueError, match=message):
        loss(epsilon=epsilon)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epsilon_low": 1}, "epsilon_low must be greater than 0 and less than 1, got 1: tokens with a negative"),
        ({"epsilon_low": 0}, "epsilon_low must be greater than 0"),
        ({"epsilon_high": 0}, "epsilon_high must be positive and finite, got 0"),
        ({"epsilon_high": math.inf}, "epsilon_high must be positive and finite, got inf"),
        ({"epsilon": 0, "epsilon_low": 0.1, "epsilon_high": 0.1}, "epsilon must be greater than 0"),
        ({"epsilon": math.inf, "epsilon_low": 0.1}, "epsilon must be greater than 0"),
        ({"tail": "cubic"}, "tail must be quadratic or linear, got 'cubic'"),
        ({"tail": "linear", "tail_start": 0.2}, "tail_start must be finite and greater than epsilon_low=0.2"),
        ({"tail_start": 0.4}, r"tail_start=0.4 has no effect with tail=quadratic. Set .*policy_loss\.tail=linear too"),
    ],
)
def test_refuses_a_trust_region_without_meaning(values, message):
    with pytest.raises(ValueError, match=message):
        CfpoLossConfig(**values)


@pytest.mark.parametrize("delta", [0, -1, math.nan, math.inf])
def test_refuses_a_delta_without_meaning(delta):
    with pytest.raises(ValueError, match=rf"delta must be positive and finite, got {delta}. Set it with .*delta=12.5"):
        DrpoLossConfig(delta=delta)


@pytest.mark.parametrize("value", ["abc", "0.2", None, True, [0.2]])
@pytest.mark.parametrize(("loss", "option"), [(CfpoLossConfig, "epsilon"), (DrpoLossConfig, "delta")])
def test_refuses_what_is_not_a_number(loss, option, value):
    with pytest.raises(TypeError, match=rf"policy_loss\.{option} must be a number, got "):
        loss(**{option: value})


@pytest.mark.parametrize("option", ["epsilon_low", "epsilon_high", "tail_start"])
def test_refuses_optional_numbers_that_are_none(option):
    with pytest.raises(TypeError, match=rf"policy_loss\.{option} must be a number, got '0.3' \(str\)"):
        CfpoLossConfig(tail="linear", **{option: "0.3"})


@pytest.mark.parametrize("loss", LOSS_CONFIGS, ids=lambda loss: loss.NAME)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"non_finite": "ignore"},
            r"non_finite must be raise or skip, got 'ignore'. Set .*policy_loss\.non_finite=skip",
        ),
        (
            {"max_skipped": 0},
            r"max_skipped must be a whole number of at least 1, got 0\. To leave out none, set .*raise",
        ),
        ({"max_skipped": "many"}, "max_skipped must be a whole number of at least 1, got 'many'"),
        ({"max_skipped": math.nan}, "max_skipped must be a whole number of at least 1, got nan"),
        ({"max_skipped": 2.5}, "max_skipped must be a whole number of at least 1, got 2.5"),
        ({"max_skipped": True}, "max_skipped must be a whole number of at least 1, got True"),
    ],
)
def test_refuses_what_to_do_with_non_finite_tokens(loss, values, message):
    with pytest.raises((TypeError, ValueError), match=message):
        loss(**values)


@pytest.mark.parametrize("loss", LOSS_CONFIGS, ids=lambda loss: loss.NAME)
def test_refuses_unknown_options_and_foreign_names(loss):
    with pytest.raises(Exception, match="unexpected keyword argument 'epsilo'"):
        build(loss.__name__, epsilo=0.1)
    with pytest.raises(ValueError, match=f"loss_mode=bypass_mode does not go with the options of {loss.__name__}"):
        loss(loss_mode="bypass_mode")


def test_the_common_part_is_no_loss():
    """verl's configs are abstract base classes underneath; this notices if they cease to be."""
    with pytest.raises(TypeError, match=r"abstract method '?options'?"):
        ClippingFreeLossConfig(loss_mode="cfpo")


def test_cannot_be_changed_later():
    with pytest.raises(FrozenInstanceError):
        CfpoLossConfig().epsilon = 0.3
