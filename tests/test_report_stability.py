"""cfpo_verl.report.stability: each rule says the step where it begins to be broken, and leaves noise alone."""

from pathlib import Path

import numpy as np
import pytest

from cfpo_verl.report.stability import (
    RULES,
    collapse_step,
    entropy_step,
    gradient_step,
    half_width,
    judge,
    kl_step,
    not_finite_step,
)

STEPS = list(range(1, 41))


def test_collapse_begins_where_the_smoothed_reward_falls_below_half_of_its_best():
    rewards = [0.6] * 20 + [0.0] * 20
    # The best mean is 0.6. The mean of 5 at step 20 + k is 0.6 (5 - k) / 5: 0.36 at k = 2, 0.24 < 0.3 at k = 3.
    assert collapse_step(STEPS, rewards) == 23


def test_a_reward_that_comes_back_has_not_collapsed():
    rewards = [0.6] * 20 + [0.0] * 10 + [0.5] * 10
    assert collapse_step(STEPS, rewards) is None


def test_a_collapse_counts_from_the_last_fall():
    rewards = [0.6] * 10 + [0.0] * 8 + [0.6] * 10 + [0.0] * 12
    # As above, 3 steps after the second fall at step 28.
    assert collapse_step(STEPS, rewards) == 31


def test_a_fall_in_the_last_steps_is_not_a_collapse_yet():
    rewards = [0.6] * 34 + [0.0] * 6
    # Low from step 37 on: four steps.
    assert collapse_step(STEPS, rewards) is None
    assert collapse_step([*STEPS, 41], [*rewards, 0.0]) == 37


def test_a_late_rise_is_no_collapse():
    assert collapse_step(STEPS, [0.1] * 20 + [0.9] * 20) is None


def test_heights_of_negative_rewards_are_measured_from_the_smallest():
    # From -1 on, 0.6 is a height of 1.6 and -0.1 one of 0.9: more than half. -0.9 is 0.1.
    assert collapse_step(STEPS, [-1.0] * 5 + [0.6] * 15 + [-0.1] * 20) is None
    assert collapse_step(STEPS, [-1.0] * 5 + [0.6] * 15 + [-0.9] * 20) == 23


def test_noise_of_a_reward_that_was_never_there_is_no_collapse():
    assert collapse_step(STEPS, [0.03] * 10 + [0.0] * 30) is None


def test_a_single_lucky_step_is_no_best():
    # The mean of five rises to 0.28 at most, and 0.2 is more than half of it.
    assert collapse_step(STEPS, [0.2] * 5 + [0.6] + [0.2] * 34) is None


def test_a_lucky_first_step_is_no_best():
    assert collapse_step(STEPS, [0.5] + [0.2] * 39) is None


def test_a_run_that_collapsed_at_once():
    # Rewards of the quickstart with lr=2e-3 and 16 optimiser steps for each rollout, as it ran.
    rewards = [0.21875] + [0.0] * 10 + [0.00390625] * 2 + [0.0] * 7
    # The best mean is that of the first two, 0.109; the mean of five at step 5 is 0.044, of four at step 4 just half.
    assert collapse_step(range(1, 21), rewards) == 5


def test_entropy_counts_only_if_it_stays_low():
    # The mean of 5 at step 20 + k is 0.5 (5 - k) / 5, and below 0.02 at k = 5.
    assert entropy_step(STEPS, [0.5] * 20 + [0.0] * 20) == 25
    assert entropy_step(STEPS, [0.5] * 20 + [0.0] * 10 + [0.5] * 10) is None
    assert entropy_step(STEPS, [0.021] * 40) is None


def test_kl_lets_single_spikes_pass():
    values = [0.01] * 40
    values[10] = values[11] = values[20] = 5.0
    assert kl_step(STEPS, values) is None
    values[12] = 0.2
    # The third of five successive values.
    assert kl_step(STEPS, values) == 13


def test_kl_at_its_bound_is_within_it():
    assert kl_step(STEPS, [0.1] * 40) is None


def test_gradient_is_measured_against_the_beginning():
    assert gradient_step(STEPS, [50.0] * 40) is None
    assert gradient_step(STEPS, [0.0] * 5 + [2.0] * 15 + [21.0] * 20) == 23
    assert gradient_step(STEPS, [0.0] * 5 + [2.0] * 15 + [19.0] * 20) is None
    assert gradient_step(STEPS, [0.0] * 40) is None
    assert gradient_step(STEPS, [1e-9] * 20 + [1e-7] * 20) is None


def test_not_finite():
    assert not_finite_step([5, 6, 7], [1.0, np.inf, np.nan]) == 6
    assert not_finite_step([5, 6], [1.0, 0.0]) is None


def run(rewards, **others):
    return {step: {"critic/score/mean": reward, **others} for step, reward in enumerate(rewards, start=1)}


def test_verdict_names_every_broken_rule_with_its_step():
    metrics = run([0.6] * 20 + [0.0] * 20)
    for step in range(31, 41):
        metrics[step]["actor/ppo_kl"] = 1.0
        metrics[step]["actor/entropy"] = 0.001
    verdict = judge(metrics)
    assert (verdict.level, verdict.summary) == (
        "failed",
        "collapse at step 23, entropy near zero at step 31, KL past its bound at step 35",
    )
    assert [broken.rule.curve for broken in verdict.broken] == ["reward", "entropy", "kl"]


@pytest.mark.parametrize(
    ("metrics", "level", "summary"),
    [
        (run([0.5] * 8), "stable", "stable"),
        (run([0.5] * 7), "unknown", "too short to judge (7 of 8 steps)"),
        ({}, "unknown", "too short to judge (0 of 8 steps)"),
        ({0: {"val-core/a/acc/mean@1": 0.5}}, "unknown", "too short to judge (0 of 8 steps)"),
        (run([0.5, float("nan"), 0.5]), "failed", "not a number at step 2"),
        (run([0.5] * 8, **{"actor/grad_norm": float("inf")}), "failed", "not a number at step 1"),
        (run([0.5] * 8, **{"actor/entropy": 0.01}), "warning", "entropy near zero at step 1"),
        (run([0.5] * 7, **{"actor/entropy": 0.01}), "unknown", "too short to judge (7 of 8 steps)"),
        (
            {1: {"actor/grad_norm": 1.0}, 3: {"actor/grad_norm": float("nan")}}
            | {5: {"critic/score/mean": float("nan")}},
            "failed",
            "not a number at step 3",
        ),
    ],
)
def test_verdict_of_short_broken_and_quiet_runs(metrics, level, summary):
    verdict = judge(metrics)
    assert (verdict.level, verdict.summary) == (level, summary)


LOSS = "actor_rollout_ref.actor.policy_loss."
CFPO = {f"{LOSS}epsilon": "0.2", f"{LOSS}epsilon_low": "null", f"{LOSS}epsilon_high": "null"}


@pytest.mark.parametrize(
    ("config", "width"),
    [
        (CFPO, 0.2),
        ({**CFPO, f"{LOSS}epsilon_low": "0.1"}, 0.1),
        ({**CFPO, f"{LOSS}epsilon_high": "3"}, 0.2),
        ({**CFPO, f"{LOSS}epsilon": "2", f"{LOSS}epsilon_low": "0.5"}, 0.5),
        ({**CFPO, f"{LOSS}epsilon_low": "0.4", f"{LOSS}epsilon_high": "0.3"}, 0.3),
        ({f"{LOSS}delta": "12.5"}, None),
        ({}, None),
    ],
)
def test_the_half_width_is_the_smaller_one_that_the_loss_uses(config, width):
    assert half_width(config) == width


def test_an_epsilon_below_the_noise_floor_is_worth_a_look():
    metrics = run([0.5] * 12, **{"actor/cfpo/noise_floor_min": 9e-4, "actor/cfpo/noise_floor_p99_min": 0.5})
    tight = {**CFPO, f"{LOSS}epsilon": "0.0004"}
    verdict = judge(metrics, tight)
    assert (verdict.level, verdict.summary) == ("warning", "epsilon below the noise floor at step 5")
    assert verdict.broken[0].rule.curve == "noise_floor"
    metrics[3]["actor/cfpo/noise_floor_min"] = 1.0
    for config in (CFPO, {**CFPO, f"{LOSS}epsilon": "0.001"}, {f"{LOSS}delta": "1e-9"}, {}, None):
        assert judge(metrics, config).summary == "stable"


def test_the_rules_in_words_have_the_bounds_of_the_code():
    page = " ".join((Path(__file__).parents[1] / "docs" / "report.md").read_text().split())
    for rule in RULES:
        assert rule.name in page
        assert rule.statement in page
