"""cfpo_verl.plugin: registration in fresh processes, and the adapter through verl's own types."""

import re

import pytest
import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from cfpo_verl.config import CfpoLossConfig
from cfpo_verl.losses import cfpo_token_loss

PRINT_REGISTRY = "import verl; from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY as r; print(sorted(r))"


def actor_config(policy_loss: PolicyLossConfig | None = None, **values) -> FSDPActorConfig:
    return FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=policy_loss or CfpoLossConfig(),
        **values,
    )


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Four responses of lengths 6, 4, 2 and 5, with ratios on both sides of the trust region."""
    torch.manual_seed(seed)
    shape = (4, 6)
    old = -torch.rand(shape) * 3
    mask = torch.arange(6) < torch.tensor([6, 4, 2, 5]).unsqueeze(1)
    return {
        "old_log_prob": old,
        "log_prob": (old + torch.randn(shape) * 0.3).requires_grad_(),
        "advantages": torch.randn(4, 1).expand(shape).clone(),
        "response_mask": mask,
    }


def call(batch, config=None, loss_agg_mode="token-mean", **extra):
    return get_policy_loss_fn("cfpo")(
        **batch, loss_agg_mode=loss_agg_mode, config=config or actor_config(), rollout_is_weights=extra.get("weights")
    )


def test_loss_is_the_masked_mean_of_the_token_losses():
    batch = make_batch()
    loss, _metrics = call(batch)
    token_loss = cfpo_token_loss(batch["log_prob"] - batch["old_log_prob"], batch["advantages"], 0.2)
    torch.testing.assert_close(loss, token_loss[batch["response_mask"]].mean())


def test_metrics_have_their_stated_formulas():
    batch = make_batch()
    _loss, metrics = call(batch, actor_config(CfpoLossConfig(epsilon=0.1)))
    mask = batch["response_mask"]
    log_ratio = (batch["log_prob"] - batch["old_log_prob"]).detach()[mask]
    ratio, advantages = log_ratio.exp(), batch["advantages"][mask]
    past = ((advantages > 0) & (ratio > 1.1)) | ((advantages < 0) & (ratio < 0.9))
    assert past.any()
    assert not past.all()
    assert metrics == {
        "actor/pg_clipfrac": pytest.approx(past.float().mean().item()),
        "actor/ppo_kl": pytest.approx(-log_ratio.mean().item(), abs=1e-6),
        "cfpo/ratio_deviation": pytest.approx((ratio - 1).abs().mean().item()),
        "cfpo/penalty": pytest.approx((advantages.abs() * (ratio - 1) ** 2 / 0.2).mean().item()),
    }


def test_clip_fraction_counts_the_tokens_that_verls_vanilla_loss_clips():
    batch = make_batch()
    _loss, cfpo = call(batch)
    vanilla_config = actor_config(PolicyLossConfig(), clip_ratio_c=1e4)
    _loss, vanilla = get_policy_loss_fn("vanilla")(
        **batch, loss_agg_mode="token-mean", config=vanilla_config, rollout_is_weights=None
    )
    assert cfpo["actor/pg_clipfrac"] == pytest.approx(vanilla["actor/pg_clipfrac"]) != 0
    assert cfpo["actor/ppo_kl"] == pytest.approx(vanilla["actor/ppo_kl"])


def test_clip_ratio_of_the_actor_has_no_say():
    batch = make_batch()
    plain = call(batch)
    overridden = call(batch, actor_config(clip_ratio=0.01, clip_ratio_low=0.02, clip_ratio_high=0.03))
    assert plain[0] == overridden[0]
    assert plain[1] == overridden[1]


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_padding_matters_neither_in_value_nor_in_gradient(garbage):
    batch, dirty = make_batch(), make_batch()
    padding = ~batch["response_mask"]
    for name in ("old_log_prob", "advantages"):
        dirty[name][padding] = garbage
    with torch.no_grad():
        dirty["log_prob"][padding] = garbage
    (loss, metrics), (dirty_loss, dirty_metrics) = call(batch), call(dirty)
    loss.backward()
    dirty_loss.backward()
    assert loss == dirty_loss
    assert metrics == dirty_metrics
    torch.testing.assert_close(batch["log_prob"].grad, dirty["log_prob"].grad)
    assert not dirty["log_prob"].grad[padding].any()


def test_rollout_weights_multiply_surrogate_and_penalty():
    batch = make_batch()
    weights = torch.rand(4, 6)
    weights[~batch["response_mask"]] = float("nan")
    loss, _metrics = call(batch, weights=weights)
    token_loss = cfpo_token_loss(batch["log_prob"] - batch["old_log_prob"], batch["advantages"], 0.2)
    torch.testing.assert_close(loss, (token_loss * weights)[batch["response_mask"]].mean())


def test_micro_batches_add_up_to_the_mini_batch():
    config = actor_config()
    batch = make_batch()
    config.global_batch_info.update(batch_num_tokens=int(batch["response_mask"].sum()), global_batch_size=4, dp_size=1)
    whole, _metrics = call(batch, config)
    parts = [call({name: tensor[rows] for name, tensor in batch.items()}, config)[0] for rows in ([0, 1], [2], [3])]
    torch.testing.assert_close(sum(parts), whole)


def test_computes_in_float32_whatever_comes_in():
    batch = make_batch()
    half = {name: t.detach().bfloat16() if t.is_floating_point() else t for name, t in batch.items()}
    loss, _metrics = call(half)
    assert loss.dtype == torch.float32
    exact, _metrics = call({name: t.float() if t.is_floating_point() else t for name, t in half.items()})
    assert loss == exact


def test_one_host_synchronisation(monkeypatch):
    calls = []
    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, original=original, name=name: (calls.append(name), original(self, *a))[1],
        )
    call(make_batch())
    assert calls == ["tolist"]


def test_loss_mode_alone_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"got PolicyLossConfig\. Select the config group policy_loss=cfpo"):
        call(make_batch(), actor_config(PolicyLossConfig(loss_mode="cfpo")))


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param({}, True, id="entry-point"),
        pytest.param(
            {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": "cfpo_verl.plugin"}, True, id="module"
        ),
        pytest.param({"VERL_USE_EXTERNAL_MODULES": "cfpo_verl.plugin"}, True, id="both"),
        pytest.param({"VERL_USE_EXTERNAL_PLUGINS": "none"}, False, id="disabled"),
    ],
)
def test_registers_in_a_fresh_process(run_python, env, expected):
    result = run_python(PRINT_REGISTRY, **env)
    assert result.returncode == 0, result.stderr
    assert ("'cfpo'" in result.stdout) == expected


def test_logs_one_line_at_info_however_often_it_is_imported(run_python):
    code = (
        "import logging; logging.getLogger('cfpo_verl').setLevel('INFO'); import verl, cfpo_verl.plugin as p; "
        "from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY as r; assert r['cfpo'] is p.cfpo_policy_loss"
    )
    result = run_python(code, VERL_USE_EXTERNAL_MODULES="cfpo_verl.plugin")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if "registered with verl" in line]
    assert len(lines) == 1
    assert re.search(r"cfpo_verl \d+\.\d+\.\d+ registered with verl 0\.9\.\d+", lines[0])
