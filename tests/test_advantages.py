"""cfpo_verl.advantages: equal to verl's on ordinary groups, different on purpose elsewhere, all as verl calls them."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage

from cfpo_verl import registration
from cfpo_verl.advantages import (
    GroupError,
    RewardError,
    check_one_output_each,
    check_rewards,
    dr_grpo_advantages,
    grpo_advantages,
    has_response,
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
@pytest.mark.parametrize("reward", [0.0, 3.0, float("nan")])
def test_rows_without_a_response_token_are_in_no_group(estimator, reward):
    """Whatever their reward and label: of a group of their own, of a real one, or of one of their own each."""
    rewards, uids, lengths = [1.0, 0.0, 0.25, 2.0, 0.0], ["a", "b", "a", "b", "a"], [3, 2, 1, 4, 2]
    alone = advantages_of(estimator, make_data(rewards, uids, lengths))
    assert alone[:, 0].all()
    for labels in (["pad"] * 6, ["a"] * 6, list("uvwxyz")):
        data = make_data(rewards + [reward] * 6, uids + labels, lengths + [1] * 6)
        data.batch["response_mask"][5:] = 0
        together = advantages_of(estimator, data)
        assert together[:5].equal(alone)
        assert not together[5:].any()


@pytest.mark.parametrize("estimator", OURS)
def test_a_batch_of_nothing_but_padding(estimator):
    data = make_data([0.0, 0.0], ["pad", "pad"])
    data.batch["response_mask"][:] = 0
    assert advantages_of(estimator, data).equal(torch.zeros(2, 3))


def test_a_row_has_a_response_if_any_of_its_tokens_is_one():
    mask = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1]])
    for as_type in (torch.int64, torch.bool, torch.float32):
        assert has_response(mask.to(as_type)).tolist() == [True, True, False, True]
    assert has_response(torch.zeros(2, 0)).tolist() == [False, False]


class OneBatch:
    """Stands in for TransferQueue's storage, which needs Ray: the real functions around it are verl's."""

    def __init__(self, rows: int) -> None:
        length = torch.ones(3, dtype=torch.int64)
        self.rows = [
            {"prompts": length, "responses": length, "position_ids": torch.arange(6), "uid": "real"}
            for _ in range(rows)
        ]

    def kv_batch_get(self, keys, partition_id):
        return self.rows[: len(keys)]

    def kv_batch_put(self, keys, partition_id, fields, tags):
        self.rows += [fields[index] for index in range(len(keys))]


# The two cases of the issue: 10 prompts of 8 with mini-batches of 4 on 8 ranks, and 5 of 32 sessions lost.
@pytest.mark.parametrize(
    ("prompts", "per_prompt", "lost", "mini", "ranks", "padded"), [(10, 8, 0, 4, 8, 96), (8, 4, 5, 4, 1, 32)]
)
@pytest.mark.parametrize(("ours", "verls", "with_std"), PEERS)
def test_verls_own_padding_ends_no_run(
    monkeypatch, ours, verls, with_std, prompts, per_prompt, lost, mini, ranks, padded
):
    """verl's functions fill the batch up and compute; our estimators give what verl's give, and padding nothing."""
    from verl.trainer.ppo import padding_utils
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    keys = [f"prompt{prompt}_{session}_0" for prompt in range(prompts) for session in range(per_prompt)][lost:]
    storage = OneBatch(len(keys))
    monkeypatch.setattr(padding_utils, "tq", storage)
    batch = padding_utils.KVBatchMeta(
        keys=keys, tags=[{} for _ in keys], partition_id="train", fields=None, extra_info={}
    )
    batch = padding_utils.upsample_batch_to_divisible_size(batch, math.lcm(ranks, mini * per_prompt), eos_token_id=0)
    assert len(batch.keys) == padded

    filled = padded - len(keys)
    assert filled > per_prompt
    masks = [row["response_mask"] for row in storage.rows[len(keys) :]]
    assert len(masks) == filled
    assert not torch.stack(masks).any()
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(len(keys), generator=generator).tolist() + [0.0] * filled
    data = make_data(rewards, [key.split("_")[0] for key in batch.keys], [3] * len(keys) + [1] * filled)
    data.batch["response_mask"][len(keys) :] = 0
    call = {"batch_keys": batch.keys, "config": verl_config(per_prompt), "norm_adv_by_std_in_grpo": with_std}
    actual = compute_advantage_for_multi_trajectories(deepcopy(data), adv_estimator=ours, **call).batch["advantages"]
    expected = compute_advantage_for_multi_trajectories(deepcopy(data), adv_estimator=verls, **call).batch["advantages"]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert not actual[len(keys) :].any()


SEVERAL = ["a", "a_0_0", "a_0_1", "a_0_2", "a_1_0"]


def test_outputs_of_one_conversation_are_told_by_verls_keys():
    check_one_output_each(["a", "a", "a", "a"], ["a", "a_0_0", "a_1_0", "a_2_0", "a_3_0", "b_0_0", "b_0_1"])
    with pytest.raises(
        GroupError, match=r"conversation 1 of group b has 2 outputs \(1 of 3 conversations have several"
    ):
        check_one_output_each(["a", "b", "b"], ["a_0_0", "b_0_0", "b_1_0", "b_1_1", "c_0_0", "c_0_1"])


def test_verl_hands_other_estimators_than_grpo_every_output_and_no_conversation():
    """The real V1 code. Once verl tells which rows belong together, this fails, and they can be supported."""
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    seen = {}

    def spy(**arguments):
        seen.update(arguments)
        return arguments["response_mask"], arguments["response_mask"]

    data = make_data([1.0, 1.0, 1.0, 0.0], ["a"] * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ADV_ESTIMATOR_REGISTRY, "spy", spy)
        compute_advantage_for_multi_trajectories(data, SEVERAL[1:], adv_estimator="spy", config=verl_config())
    assert len(seen["response_mask"]) == 4
    assert set(seen) == {"token_level_rewards", "response_mask", "config", "index"}
    advantages = compute_advantage_for_multi_trajectories(data, SEVERAL[1:], "grpo", config=verl_config()).batch
    assert advantages["advantages"][:, 0].tolist() == pytest.approx([0.5**0.5] * 3 + [-(0.5**0.5)], abs=1e-5)


@pytest.mark.parametrize("estimator", OURS)
def test_outputs_of_one_conversation_are_not_taken_for_responses(monkeypatch, estimator):
    import transfer_queue

    monkeypatch.setattr(transfer_queue, "kv_list", lambda partition: {partition: {key: {} for key in SEVERAL}})
    config = OmegaConf.create({"algorithm": {}, "trainer": {"use_v1": True}}).algorithm
    with pytest.raises(GroupError, match=r"conversation 0 of group a has 3 outputs .* Set algorithm\.adv_est"):
        advantages_of(estimator, make_data([1.0, 1.0, 1.0, 0.0], ["a"] * 4), config=config)
    advantages_of(estimator, make_data([1.0, 0.0], ["b"] * 2), config=config)


def test_groups_are_where_the_rewards_are(monkeypatch):
    """A stand-in for a GPU, where rewards and groups on two devices would be an error."""
    asked = []

    class OnTheCpu:
        def to(self, device):
            asked.append(device)
            return torch.tensor([0, 0])

    monkeypatch.setattr(registration, "number_groups", lambda _labels: OnTheCpu())
    data = make_data([1.0, 0.0], ["a", "a"])
    advantages_of("cfpo_grpo", data)
    assert asked == [data.batch["token_level_rewards"].device]


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
