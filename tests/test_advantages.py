"""cfpo_verl.advantages: equal to verl's on ordinary groups, different on purpose elsewhere, all as verl calls them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage

from cfpo_verl.advantages import (
    GroupError,
    RewardError,
    check_group_sizes,
    check_rewards,
    dr_grpo_advantages,
    grpo_advantages,
    number_groups,
    rloo_advantages,
    spread,
)

OURS = ["cfpo_grpo", "cfpo_dr_grpo", "cfpo_rloo"]
PEERS = [("cfpo_grpo", "grpo", True), ("cfpo_dr_grpo", "grpo", False), ("cfpo_rloo", "rloo", True)]


def make_data(rewards: list[float], uids: list[str], lengths: list[int] | None = None) -> DataProto:
    """One row per response, as verl's trainers hold them: the reward sits on the last token."""
    lengths = lengths or [3] * len(rewards)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    token_rewards = torch.zeros(mask.shape)
    token_rewards[torch.arange(len(rewards)), torch.tensor(lengths) - 1] = torch.tensor(rewards)
    return DataProto.from_dict(
        {"token_level_rewards": token_rewards, "response_mask": mask.long()},
        non_tensors={"uid": np.array(uids, dtype=object)},
    )


def advantages_of(estimator: str, data: DataProto, **options) -> torch.Tensor:
    return compute_advantage(data, estimator, **options).batch["advantages"]


def verl_config(responses_per_prompt: int = 8, **algorithm):
    """The node that verl's trainers hand to estimators: a child of the whole config."""
    config = {"algorithm": algorithm, "actor_rollout_ref": {"rollout": {"n": responses_per_prompt}}}
    return OmegaConf.create(config).algorithm


# Rewards 1, 0, 0 have mean 1/3 and unbiased variance 1/3; 2, 4 have mean 3 and unbiased variance 2.
@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (grpo_advantages, [2 / 3**0.5, -1 / 2**0.5, -1 / 3**0.5, 1 / 2**0.5, -1 / 3**0.5]),
        (dr_grpo_advantages, [2 / 3, -1.0, -1 / 3, 1.0, -1 / 3]),
        (rloo_advantages, [1.0, -2.0, -0.5, 2.0, -0.5]),
    ],
)
def test_matches_hand_worked_values(estimate, expected):
    rewards, groups = torch.tensor([1.0, 2, 0, 4, 0]), torch.tensor([0, 1, 0, 1, 0])
    torch.testing.assert_close(estimate(rewards, groups), torch.tensor(expected), rtol=0, atol=5e-6)


@pytest.mark.parametrize(("ours", "verls", "with_std"), PEERS)
@given(data=st.data())
def test_equals_verl_on_ordinary_groups(ours, verls, with_std, data):
    """Groups of 2 to 6 responses that differ, rows in any order, responses of any length."""
    sizes = data.draw(st.lists(st.integers(2, 6), min_size=1, max_size=5))
    rows = [(f"prompt-{group}", member) for group, size in enumerate(sizes) for member in range(size)]
    rows = data.draw(st.permutations(rows))
    # The first two members of each group differ by at least 0.1, so that its standard deviation is not noise.
    rewards = [data.draw(st.integers(0, 20)) / 10 + (member == 0) * 2.5 for _uid, member in rows]
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=len(rows), max_size=len(rows)))
    uids = [uid for uid, _member in rows]
    expected = advantages_of(verls, make_data(rewards, uids, lengths), norm_adv_by_std_in_grpo=with_std)
    actual = advantages_of(ours, make_data(rewards, uids, lengths))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimator", OURS)
@pytest.mark.parametrize("reward", [0.95, 0.1, 1 / 3, -7.7, 1e30])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 64, 1000])
def test_equal_rewards_give_exactly_nothing(estimator, reward, size):
    advantages = advantages_of(estimator, make_data([reward] * size, ["a"] * size))
    assert advantages.equal(torch.zeros(size, 3))


def test_verl_still_gives_float_noise_for_equal_rewards():
    """What the test above is about; without it our estimators would have one reason less."""
    assert advantages_of("grpo", make_data([0.95] * 8, ["a"] * 8)).abs().max() > 0.05


@pytest.mark.parametrize("estimator", OURS)
def test_a_group_of_one_gets_nothing_and_the_others_their_share(estimator):
    alone = advantages_of(estimator, make_data([1.0, 5.0, 0.0], ["a", "b", "a"]))
    together = advantages_of(estimator, make_data([1.0, 0.0], ["a", "a"]))
    assert alone.equal(torch.stack([together[0], torch.zeros(3), together[1]]))


@pytest.mark.parametrize("estimator", OURS)
@given(shift=st.floats(-100, 100))
def test_a_constant_added_to_the_rewards_changes_nothing(estimator, shift):
    rewards = [1.0, 0.0, 0.25, 1.0]
    plain = advantages_of(estimator, make_data(rewards, ["a"] * 4))
    shifted = advantages_of(estimator, make_data([reward + shift for reward in rewards], ["a"] * 4))
    torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("estimator", OURS)
def test_the_sum_over_a_group_is_zero_and_padding_gets_nothing(estimator):
    lengths = [1, 3, 2, 4]
    advantages = advantages_of(estimator, make_data([1.0, 0.0, 0.0, 0.5], ["a"] * 4, lengths))
    assert advantages[:, 0].sum().item() == pytest.approx(0, abs=1e-6)
    for row, length in zip(advantages, lengths, strict=True):
        assert row[:length].unique().numel() == 1
        assert not row[length:].any()


@pytest.mark.parametrize("estimator", OURS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_reward_that_is_no_number_names_its_group(estimator, value):
    data = make_data([1.0, 0.0, float(value), float(value)], ["a", "a", "bad-group", "bad-group"])
    with pytest.raises(
        RewardError, match=f"2 of 4 rewards are NaN or infinite, the first is {value} in row 2, group bad-g"
    ):
        advantages_of(estimator, data)


def test_large_finite_rewards_are_rewards():
    check_rewards(torch.full((2,), 3e38), ["a", "a"])


@pytest.mark.parametrize("estimator", OURS)
def test_outputs_of_one_conversation_are_not_taken_for_responses(estimator):
    data = make_data([1.0, 1.0, 0.0], ["a", "a", "a"])
    with pytest.raises(
        GroupError, match="group a has 3 rows, but only 2 responses were sampled for a prompt: an agent"
    ):
        advantages_of(estimator, data, config=verl_config(responses_per_prompt=2))
    advantages_of(estimator, data, config=verl_config(responses_per_prompt=3))


def test_verl_hands_the_whole_config_to_estimators_through_the_trainer_of_multi_output_loops():
    """The real V1 code: for other estimators than grpo it passes every row on, two of them of one conversation."""
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    data = make_data([1.0, 1.0, 0.0], ["a", "a", "a"])
    call = {"batch_keys": ["a_0_0", "a_0_1", "a_1_0"], "config": verl_config(responses_per_prompt=2)}
    with pytest.raises(GroupError, match="several outputs for one conversation"):
        compute_advantage_for_multi_trajectories(data, adv_estimator="cfpo_grpo", **call)
    assert compute_advantage_for_multi_trajectories(data, adv_estimator="grpo", **call).batch["advantages"].any()


@pytest.mark.parametrize("config", [None, AlgoConfig(), verl_config(), {"algorithm": {}}])
def test_takes_whatever_config_and_keywords_verl_passes(config):
    data = make_data([1.0, 0.0], ["a", "a"])
    estimator = get_adv_estimator_fn("cfpo_grpo")
    advantages, returns = estimator(
        token_level_rewards=data.batch["token_level_rewards"],
        response_mask=data.batch["response_mask"],
        index=data.non_tensor_batch["uid"],
        config=config,
        reward_baselines=None,
        new_in_the_next_release=1,
    )
    assert advantages is returns
    assert advantages[0, 0].item() == pytest.approx(0.5**0.5, abs=1e-5)


def test_verls_switch_for_the_standard_deviation_is_read_from_the_config():
    data = make_data([1.0, 0.0], ["a", "a"])
    without = advantages_of("cfpo_grpo", data, config=verl_config(norm_adv_by_std_in_grpo=False))
    assert without[:, 0].tolist() == [0.5, -0.5]
    unaffected = advantages_of("cfpo_rloo", data, config=verl_config(norm_adv_by_std_in_grpo=False))
    assert unaffected[:, 0].tolist() == [1.0, -1.0]


@pytest.mark.parametrize(("ours", "verls", "_with_std"), PEERS)
def test_a_reward_on_a_token_that_was_rejected_counts_as_in_verl(ours, verls, _with_std):
    """Rollout correction takes tokens out of the mask, the last one, which has the reward, among them."""
    data = make_data([1.0, 0.0, 0.0], ["a", "a", "a"])
    data.batch["response_mask"][0, -1] = 0
    expected = advantages_of(verls, data, norm_adv_by_std_in_grpo=_with_std)
    torch.testing.assert_close(advantages_of(ours, data), expected, rtol=0, atol=1e-5)
    assert expected[0, 0] > 0


def test_groups_are_numbered_by_appearance_whatever_their_labels():
    for labels in (["b", "a", "b"], np.array(["b", "a", "b"], dtype=object), np.array([7, 3, 7]), ["b", None, "b"]):
        assert number_groups(labels).tolist() == [0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64])
def test_spreads_in_any_dtype(dtype, mask_dtype):
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=mask_dtype)
    tokens = spread(torch.tensor([0.5, -2.0], dtype=dtype), mask)
    assert tokens.dtype == dtype
    assert tokens.tolist() == [[0.5, 0.5, 0.0], [-2.0, 0.0, 0.0]]


def test_group_sizes_up_to_the_number_asked_for_are_fine():
    check_group_sizes(torch.tensor([0, 0, 1]), ["a", "a", "b"], 2)
