"""The groups `algo` and `policy_loss`: what exchanging one changes, and that presets mean what their papers say."""

import asyncio
import itertools

import numpy as np
import pytest
import torch
from conftest import PROJECT
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from benchmarks import differences as benchmark
from benchmarks.combinations import composing
from benchmarks.differences import NAMES, differences
from cfpo_verl.config_groups import names
from cfpo_verl.doctor import algorithm as doctor
from cfpo_verl.report.grouping import flatten

ALGOS, LOSSES = names("algo"), names("policy_loss")
ACTOR = "actor_rollout_ref.actor"
# What verl's actor holds of losses, outside the node policy_loss.
LOSS_KEYS = {f"{ACTOR}.{key}" for key in ("clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "tau_pos", "tau_neg")}


@pytest.fixture(scope="module")
def compose():
    with composing() as compose:
        yield compose


@pytest.fixture(scope="module")
def pairs(compose):
    """The config of every algorithm with every loss."""
    return {
        (algo, loss): compose("experiment=gsm8k_1gpu", f"algo={algo}", f"policy_loss={loss}")
        for algo, loss in itertools.product(ALGOS, LOSSES)
    }


def is_of_the_loss(key):
    return key.startswith(f"{ACTOR}.policy_loss.") or key in LOSS_KEYS


@pytest.mark.parametrize("algo", ALGOS)
def test_exchanging_the_loss_exchanges_the_loss_alone(algo, pairs, compose):
    preset = compose("experiment=gsm8k_1gpu", f"algo={algo}")
    for loss in LOSSES:
        changed = differences(preset, pairs[algo, loss])
        assert [key for key in changed if not is_of_the_loss(key)] == [], loss


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_the_same_in_every_algorithm(loss, pairs):
    for algo in ALGOS:
        changed = differences(pairs["cfpo", loss], pairs[algo, loss])
        assert [key for key in changed if is_of_the_loss(key)] == [], algo


def test_the_matched_pair_differs_in_these_keys_alone(compose):
    cfpo, vanilla = (compose("experiment=gsm8k_1gpu", f"policy_loss={name}") for name in ("cfpo", "vanilla"))
    assert differences(cfpo, vanilla) == {
        f"{ACTOR}.policy_loss._target_": ("cfpo_verl.config.CfpoLossConfig", "verl.workers.config.PolicyLossConfig"),
        f"{ACTOR}.policy_loss.loss_mode": ("cfpo", "vanilla"),
        f"{ACTOR}.policy_loss.epsilon": ("0.2", None),
        f"{ACTOR}.policy_loss.epsilon_low": ("null", None),
        f"{ACTOR}.policy_loss.epsilon_high": ("null", None),
        f"{ACTOR}.policy_loss.tail": ("quadratic", None),
        f"{ACTOR}.policy_loss.tail_start": ("null", None),
        f"{ACTOR}.policy_loss.non_finite": ("raise", None),
        f"{ACTOR}.policy_loss.max_skipped": ("10", None),
        # cfpo does not read it.
        f"{ACTOR}.clip_ratio_c": ("3.0", "10000.0"),
    }
    actor = vanilla.actor_rollout_ref.actor
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.2)
    assert not actor.use_kl_loss
    assert not vanilla.algorithm.use_kl_in_reward


def set_by(group, name):
    """Return the keys that a file and those of its group that it builds on set, with their full names."""
    file = PROJECT / "hydra_configs" / group / f"{name}.yaml"
    package = file.read_text().splitlines()[0].removeprefix("# @package ").replace("_global_", "")
    config = OmegaConf.load(file)
    bases = [base for base in config.pop("defaults", ()) if base in names(group)]
    keys = {f"{package}.{key}".removeprefix(".") for key in flatten(OmegaConf.to_container(config))}
    return keys.union(*(set_by(group, base) for base in bases))


# What verl's losses read of the actor, checked below against the losses themselves.
READ = {
    "vanilla": {"clip_ratio_low", "clip_ratio_high", "clip_ratio_c"},
    "clip_higher": {"clip_ratio_low", "clip_ratio_high", "clip_ratio_c"},
    "gspo": {"clip_ratio_low", "clip_ratio_high"},
    "cispo": {"clip_ratio_low", "clip_ratio_high"},
    "sapo": {"tau_pos", "tau_neg"},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_file_of_a_loss_sets_what_the_loss_reads_and_nothing_else(loss):
    outside = {key for key in set_by("policy_loss", loss) if not key.startswith(f"{ACTOR}.policy_loss.")}
    assert outside - NAMES == {f"{ACTOR}.{key}" for key in READ.get(loss, ())}


@pytest.mark.parametrize("loss", READ)
def test_verls_losses_read_nothing_else_of_the_actor(loss, pairs, monkeypatch):
    actor = omega_conf_to_dataclass(pairs["cfpo", loss].actor_rollout_ref.actor)
    read = set()

    def spy(self, name):
        read.add(name)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(type(actor), "__getattribute__", spy, raising=False)
    loss_of(actor)
    assert read & {key.removeprefix(f"{ACTOR}.") for key in LOSS_KEYS} == READ[loss]


@pytest.mark.parametrize("algo", ALGOS)
def test_the_file_of_an_algorithm_pins_the_rest_and_nothing_of_a_loss(algo):
    keys = set_by("algo", algo)
    assert {"algorithm.adv_estimator", f"{ACTOR}.loss_agg_mode", f"{ACTOR}.use_kl_loss"} <= keys
    assert [key for key in keys if is_of_the_loss(key)] == []


def test_runs_that_differ_have_names_that_differ(pairs):
    # The aggregation of cfpo_token_mean counts as an option of cfpo, as epsilon does.
    named = {pair: config.run_dir for pair, config in pairs.items() if pair[0] != "cfpo_token_mean"}
    assert len(set(named.values())) == len(named)
    assert pairs["cfpo", "cfpo"].run_label == pairs["cfpo_token_mean", "cfpo"].run_label == "cfpo"
    assert pairs["cfpo", "vanilla"].run_label == "cfpo_vanilla"
    assert pairs["dapo", "clip_higher"].run_label == "dapo_clip_higher"
    assert pairs["gspo", "gspo"].run_label == "gspo"


def test_the_page_shows_how_the_algorithms_differ(compose):
    """Written by python -m benchmarks.differences."""
    page = benchmark.PAGE.read_text()
    shown = page.partition(benchmark.BEGIN)[2].partition(benchmark.END)[0]
    assert shown.strip() == benchmark.table(compose)


def test_no_baseline_has_dual_clipping(pairs, compose):
    for (algo, _loss), config in pairs.items():
        actor = config.actor_rollout_ref.actor
        if actor.policy_loss.loss_mode == "vanilla":
            assert actor.clip_ratio_c == 10000.0, algo
    # Two of the nine tokens have negative advantages and ratios of 5 and 10.
    for overrides, clipped in (([], 0), ([f"{ACTOR}.clip_ratio_c=3.0"], 2 / 9)):
        actor = compose("experiment=gsm8k_1gpu", "algo=grpo", *overrides).actor_rollout_ref.actor
        assert loss_of(omega_conf_to_dataclass(actor))[1]["actor/pg_clipfrac_lower"] == pytest.approx(clipped)


def loss_of(actor, loss_agg_mode="token-mean", loss_mode=None):
    """Compute one of verl's losses on three responses of 4, 2 and 3 tokens, with ratios from 0.2 to 20."""
    old = torch.log(torch.tensor([[0.5, 0.04, 0.3, 0.2], [0.1, 0.6, 1, 1], [0.05, 0.9, 0.4, 1]]))
    new = torch.log(torch.tensor([[0.1, 0.8, 0.3, 0.3], [0.5, 0.5, 1, 1], [0.5, 0.7, 0.2, 1]]))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    advantages = torch.tensor([[1.0], [-2.0], [-0.5]]).expand(3, 4)
    return get_policy_loss_fn(loss_mode or actor.policy_loss.loss_mode)(
        old_log_prob=old,
        log_prob=new,
        advantages=advantages,
        response_mask=mask,
        loss_agg_mode=loss_agg_mode,
        config=actor,
        rollout_is_weights=None,
    )


def test_verls_losses_that_ignore_the_aggregation_are_those_that_the_doctor_knows():
    """A new one in verl must be looked at."""
    actor = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=PolicyLossConfig(dro_beta=1.0)
    )
    # bypass_mode hands the aggregation to vanilla.
    of_verl = {name for name, function in POLICY_LOSS_REGISTRY.items() if function.__module__.startswith("verl.")}
    of_verl -= {"bypass_mode"}
    assert of_verl >= {"vanilla", "gspo", "cispo", "sapo", "geo_mean", "dppo_tv", "gpg"}
    torch.manual_seed(0)  # clip_cov samples tokens
    ignoring = {
        name
        for name in of_verl
        if torch.equal(loss_of(actor, "token-mean", name)[0], loss_of(actor, "seq-mean-token-sum", name)[0])
    }
    assert ignoring == doctor._OWN_AGGREGATION


class Words:
    """Each token is a word of a response whose first word is the answer."""

    def decode(self, ids, **_options):
        return f"#### {int(ids[0])}"


def scored(config, answer, length):
    """Return the reward of verl's own manager for a response of a number of tokens; the gold answer is 7."""
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.dapo import DAPORewardManager

    from cfpo_verl.rewards import compute_score_async

    longest = config.data.max_response_length
    row = DataProto(
        batch=TensorDict(
            {
                "responses": torch.full((1, longest), answer),
                "attention_mask": (torch.arange(1 + longest) < 1 + length).long().unsqueeze(0),
            },
            batch_size=1,
        ),
        non_tensor_batch={
            "data_source": np.array(["openai/gsm8k"], dtype=object),
            "reward_model": np.array([{"ground_truth": "7"}], dtype=object),
        },
    )

    async def run():
        return await DAPORewardManager(config, Words(), compute_score_async).run_single(row)

    return float(asyncio.run(run())["reward_score"])


@pytest.mark.parametrize("algo", ["dapo", "cispo"])
def test_the_length_penalty_is_half_of_the_rewards_range(algo, compose):
    """As in DAPO, whose rewards are -1 and 1 and whose penalty is 1 at most."""
    config = compose("experiment=gsm8k_1gpu", f"algo={algo}")
    right, wrong, longest = 7, 8, 1024
    assert scored(config, right, 100) == 1
    assert scored(config, right, longest) == 0.5
    assert scored(config, wrong, 100) == 0
    assert scored(config, wrong, longest) == -0.5
    # The last fifth: 204 tokens, in the middle of which half of the penalty is due.
    assert scored(config, right, longest - 204) == 1
    assert scored(config, right, longest - 102) == 0.75


def test_one_override_gives_the_penalty_of_another_reward(compose):
    config = compose("experiment=gsm8k_1gpu", "algo=dapo", "reward_range=[-1,1]")
    assert config.reward.reward_kwargs.overlong_buffer_cfg.penalty_factor == 1
