"""cfpo_verl.report.grouping and statistics: seeds go together, everything else is told apart."""

import numpy as np
import pytest
from report_runs import config

from cfpo_verl.report.grouping import differences, flatten, group_runs, is_relevant
from cfpo_verl.report.statistics import MOST_UNSMOOTHED, band, final_value, mean_interval, smooth


def grouped(configs):
    flat = {name: None if it is None else flatten(it) for name, it in configs.items()}
    return [(it.label, it.runs) for it in group_runs(flat, dict.fromkeys(configs, 20))]


def test_runs_that_differ_in_seed_and_places_are_one_group():
    configs = {"a": config("cfpo", 0), "b": config("vanilla", 0), "c": config("cfpo", 1)}
    assert grouped(configs) == [("cfpo", ("a", "c")), ("vanilla", ("b",))]


def test_places_within_the_run_folder_do_not_matter():
    configs = {
        name: {"run_dir": f"/runs/{name}", "actor": {"cache": f"/runs/{name}/cache"}} for name in ("first", "second")
    }
    assert grouped(configs) == [("vanilla", ("first", "second"))]


def test_another_value_makes_another_group_and_is_in_its_label():
    other = config("cfpo", 1)
    other["actor_rollout_ref"]["actor"]["policy_loss"]["epsilon"] = 0.1
    configs = {"a": config("cfpo", 0), "b": other, "c": config("vanilla", 0)}
    assert grouped(configs) == [("cfpo, epsilon=0.2", ("a",)), ("cfpo, epsilon=0.1", ("b",)), ("vanilla", ("c",))]


def test_a_label_names_three_keys_at_most():
    configs = {"a": config("cfpo", a=1, b=1, c=1, d=1), "b": config("cfpo", a=2, b=2, c=2, d=2)}
    assert [label for label, _runs in grouped(configs)] == ["cfpo, a=1, b=1, c=1, ...", "cfpo, a=2, b=2, c=2, ..."]


def test_runs_without_config_go_by_their_names():
    assert grouped({"gsm8k_seed0": None, "gsm8k_seed1": None, "math-seed-2": None, "cfpo_seed0": config()}) == [
        ("gsm8k", ("gsm8k_seed0", "gsm8k_seed1")),
        ("math", ("math-seed-2",)),
        ("cfpo", ("cfpo_seed0",)),
    ]


def test_a_run_that_is_behind_does_not_count():
    flat = {name: flatten(config(seed=seed)) for seed, name in enumerate("abc")}
    [found] = group_runs(flat, {"a": 20, "b": 18, "c": 17})
    assert (found.runs, found.counted) == (("a", "b", "c"), ("a", "b"))


@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "data.seed",
        "actor.data_loader_seed",
        "trainer.experiment_name",
        "run_dir",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    ],
)
def test_seeds_names_and_places_do_not_matter(key):
    assert not is_relevant(key)


@pytest.mark.parametrize(
    "key", ["algorithm.adv_estimator", "actor.ppo_mini_batch_size", "data.seed_prompts", "trainer.total_training_steps"]
)
def test_other_keys_do(key):
    assert is_relevant(key)


def test_differences_put_what_is_trained_first():
    flat = {"a": flatten(config("cfpo", 0)), "b": flatten(config("vanilla", 1))}
    found = differences(flat)
    assert next(iter(found)) == "actor_rollout_ref.actor.policy_loss.loss_mode"
    assert found["seed"] == {"a": "0", "b": "1"}
    assert "actor_rollout_ref.actor.policy_loss.epsilon" not in found
    assert differences({"a": {"x": "1"}, "b": {}}) == {"x": {"a": "1", "b": None}}


@pytest.mark.parametrize("key", ["WANDB_API_KEY", "HF_TOKEN", "token", "password", "hub_secret", "apikey"])
def test_secrets_are_left_out(key):
    assert flatten({"env_vars": {key: "abc"}}) == {f"env_vars.{key}": "(left out)"}


@pytest.mark.parametrize("key", ["max_tokens", "tokenizer", "use_token_mean", "secretary"])
def test_what_only_sounds_like_a_secret_is_shown(key):
    assert flatten({key: "abc"}) == {key: "abc"}


def test_band_takes_the_steps_that_all_have():
    found = band([[(1, 1.0), (2, 2.0), (4, 4.0)], [(1, 3.0), (2, 2.0), (3, 9.0)]])
    assert found.steps.tolist() == [1, 2]
    assert found.mean.tolist() == [2.0, 2.0]
    assert (found.low.tolist(), found.high.tolist()) == ([1.0, 2.0], [3.0, 2.0])
    assert band([[(1, 1.0)], [(2, 1.0)]]).steps.tolist() == []


def test_only_long_curves_are_smoothed():
    short, long = np.arange(MOST_UNSMOOTHED) % 2, np.arange(800) % 2
    assert smooth(short).tolist() == short.tolist()
    assert smooth(long)[400] == pytest.approx(0.5, abs=0.03)
    broken = long.astype(float)
    broken[300] = np.nan
    assert np.isfinite(smooth(broken)).all()


def test_smoothing_is_centred():
    assert smooth(np.arange(800.0))[400] == pytest.approx(400)


def test_interval_is_students():
    # Three values with standard deviation 0.1: t(0.975, 2) = 4.302653, so 4.302653 * 0.1 / sqrt(3) = 0.248414.
    found = mean_interval([0.7, 0.8, 0.9])
    assert (found.mean, found.low, found.high) == pytest.approx((0.8, 0.8 - 0.248414, 0.8 + 0.248414), abs=1e-6)
    alone = mean_interval([0.7])
    assert (alone.mean, alone.count) == (0.7, 1)
    assert np.isnan([alone.low, alone.high]).all()


def test_final_value_is_of_the_last_tenth_and_at_least_one():
    points = [(step, float(step)) for step in range(1, 31)]
    assert final_value(points) == 29.0
    assert final_value(points[:3]) == 3.0
    assert final_value(points, 0) == 30.0
