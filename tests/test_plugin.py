"""cfpo_verl.plugin and cfpo_verl.registration: fresh processes, and the adapter through verl's own types."""

import re
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from doctor_configs import gpu_config
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from cfpo_verl import registration
from cfpo_verl.config import LOSS_CONFIGS, CfpoLossConfig, CfpoSequenceLossConfig, DrpoLossConfig, TokenLossConfig
from cfpo_verl.losses import NonFiniteError, TokenLoss
from cfpo_verl.registration import register_group_estimator, register_token_loss, token_policy_loss


@dataclass
class SquareLossConfig(TokenLossConfig):
    """A loss of another form, with one statistic of its own."""

    NAME = "square"
    loss_mode: str = "square"
    weight: float = 2.0

    @staticmethod
    def score(log_prob, old_log_prob, advantages, response_mask, *, weight):
        log_ratio = (log_prob - old_log_prob).masked_fill(~response_mask, 0)
        values = weight * log_ratio**2 - advantages.masked_fill(~response_mask, 0) * log_ratio
        return TokenLoss(values, (log_ratio > 0.1).sum().view(1), ("square/above",))

    def options(self, actor):
        return {"weight": self.weight}


register_token_loss(SquareLossConfig)


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
        "log_prob": (old + torch.randn(shape) * 0.5).requires_grad_(),
        "advantages": torch.tensor([1.5, -0.7, 0.0, -2.0]).unsqueeze(1).repeat(1, 6),
        "response_mask": mask,
    }


def call(batch, config=None, loss_agg_mode="token-mean", **extra):
    config = config or actor_config()
    return get_policy_loss_fn(config.policy_loss.loss_mode)(
        **batch, loss_agg_mode=loss_agg_mode, config=config, rollout_is_weights=extra.get("weights")
    )


def plain_token_loss(batch, epsilon: float = 0.2) -> torch.Tensor:
    ratio, advantages = (batch["log_prob"] - batch["old_log_prob"]).exp(), batch["advantages"]
    return -advantages * ratio + advantages.abs() * (ratio - 1) ** 2 / (2 * epsilon)


def test_loss_is_the_masked_mean_of_the_token_losses():
    batch = make_batch()
    loss, _metrics = call(batch)
    torch.testing.assert_close(loss, plain_token_loss(batch)[batch["response_mask"]].mean())


def test_options_reach_the_loss():
    batch = make_batch()
    losses = {
        call(batch, actor_config(options))[0].item()
        for options in (
            CfpoLossConfig(),
            CfpoLossConfig(epsilon=0.1),
            CfpoLossConfig(epsilon_low=0.1),
            CfpoLossConfig(epsilon_high=0.1),
            CfpoLossConfig(tail="linear"),
            CfpoLossConfig(tail="linear", tail_start=0.3),
            CfpoSequenceLossConfig(),
            CfpoSequenceLossConfig(epsilon=0.1),
            DrpoLossConfig(),
            DrpoLossConfig(delta=0.1),
        )
    }
    assert len(losses) == 10
    same = actor_config(CfpoLossConfig(epsilon=0.7, epsilon_low=0.2, epsilon_high=0.2))
    assert call(batch, same)[0] == call(batch)[0]
    assert (
        call(batch, actor_config(CfpoLossConfig(tail="linear")))[0]
        == call(batch, actor_config(CfpoLossConfig(tail="linear", tail_start=0.4)))[0]
    )


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
        "actor/pg_clipfrac_lower": pytest.approx((past & (advantages < 0)).float().mean().item()),
        "actor/ppo_kl": pytest.approx(-log_ratio.mean().item(), abs=1e-6),
        "cfpo/ratio_deviation": pytest.approx((ratio - 1).abs().mean().item()),
        "cfpo/noise_floor_min": pytest.approx((ratio - 1).abs().mean().item()),
        "cfpo/noise_floor_p99_min": pytest.approx((ratio - 1).abs().max().item()),  # of 17 tokens
        "cfpo/tv_distance": pytest.approx((ratio - 1).abs().mean().item() / 2),
        "cfpo/penalty": pytest.approx((advantages.abs() * (ratio - 1) ** 2 / 0.2).mean().item()),
        "cfpo/corrective_frac": pytest.approx(past.float().mean().item()),
        "cfpo/rescued_frac": pytest.approx(past.float().mean().item()),
        "cfpo/outlier_frac": pytest.approx((ratio > 2).float().mean().item()),
        "cfpo/zero_advantage_frac": pytest.approx((advantages == 0).float().mean().item()),
    }
    assert 0 < metrics["actor/pg_clipfrac_lower"] < metrics["actor/pg_clipfrac"]
    assert metrics["cfpo/outlier_frac"] > 0
    assert metrics["cfpo/zero_advantage_frac"] > 0


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
    weights = torch.rand(4, 6) * 3
    assert weights.max() > 2
    weights[~batch["response_mask"]] = float("nan")
    loss, _metrics = call(batch, weights=weights)
    torch.testing.assert_close(loss, (plain_token_loss(batch) * weights)[batch["response_mask"]].mean())
    loss.backward()
    assert batch["log_prob"].grad.isfinite().all()


def test_micro_batches_add_up_to_the_mini_batch():
    config = actor_config()
    batch = make_batch()
    config.global_batch_info.update(batch_num_tokens=int(batch["response_mask"].sum()), global_batch_size=4, dp_size=1)
    whole, _metrics = call(batch, config)
    parts = [call({name: tensor[rows] for name, tensor in batch.items()}, config)[0] for rows in ([0, 1], [2], [3])]
    torch.testing.assert_close(sum(parts), whole)


def test_a_micro_batch_without_response_tokens_adds_nothing():
    config = actor_config()
    config.global_batch_info.update(batch_num_tokens=17, global_batch_size=4, dp_size=1)
    batch = make_batch()
    batch["response_mask"] = torch.zeros(4, 6)
    loss, metrics = call(batch, config)
    loss.backward()
    assert loss == 0
    assert set(metrics.values()) == {0}
    assert not batch["log_prob"].grad.any()


def test_computes_in_float32_whatever_comes_in():
    batch = make_batch()
    half = {name: t.detach().bfloat16() if t.is_floating_point() else t for name, t in batch.items()}
    loss, _metrics = call(half)
    assert loss.dtype == torch.float32
    exact, _metrics = call({name: t.float() if t.is_floating_point() else t for name, t in half.items()})
    assert loss == exact


@pytest.mark.parametrize("options", [loss() for loss in LOSS_CONFIGS], ids=lambda options: options.loss_mode)
def test_one_host_synchronisation(monkeypatch, options):
    calls = []
    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, original=original, name=name: (calls.append(name), original(self, *a))[1],
        )
    call(make_batch(), actor_config(options), weights=torch.ones(4, 6))
    assert calls == ["tolist"]


@pytest.mark.parametrize("name", ["log_prob", "old_log_prob", "advantages", "rollout_is_weights"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("options", [loss() for loss in LOSS_CONFIGS], ids=lambda options: options.loss_mode)
def test_what_is_not_finite_is_an_error_with_its_place(options, name, value):
    batch, weights = make_batch(), torch.ones(4, 6)
    with torch.no_grad():
        {**batch, "rollout_is_weights": weights}[name][3, 4] = value
    message = rf"1 of 17 values of {name} are NaN or infinite \(row 3 position 4\)"
    with pytest.raises(NonFiniteError, match=message):
        call(batch, actor_config(options), weights=weights)


SKIP = {"non_finite": "skip", "max_skipped": 2}


@pytest.fixture
def nothing_left_out(monkeypatch):
    monkeypatch.setattr(registration, "_left_out", Counter())


@pytest.mark.usefixtures("nothing_left_out")
@pytest.mark.parametrize("name", ["log_prob", "old_log_prob", "advantages", "rollout_is_weights"])
@pytest.mark.parametrize("loss", [*LOSS_CONFIGS, SquareLossConfig], ids=lambda loss: loss.NAME)
def test_a_micro_batch_that_is_not_finite_can_be_left_out(caplog, loss, name):
    batch, weights = make_batch(), torch.ones(4, 6)
    with torch.no_grad():
        {**batch, "rollout_is_weights": weights}[name][3, 4] = float("nan")
    value, metrics = call(batch, actor_config(loss(**SKIP)), weights=weights)
    value.backward()
    assert value == 0
    assert batch["log_prob"].grad.equal(torch.zeros(4, 6))
    assert metrics.pop("cfpo/skipped_frac") == 1
    assert set(metrics.values()) == {0}
    assert f"left out of the loss, number 1 of at most 2: 1 of 17 values of {name} are NaN" in caplog.text


@pytest.mark.usefixtures("nothing_left_out")
def test_a_finite_micro_batch_is_the_same_with_skip():
    plain, metrics = call(make_batch())
    loss, others = call(make_batch(), actor_config(CfpoLossConfig(**SKIP)))
    assert loss == plain
    assert others == {**metrics, "cfpo/skipped_frac": 0}


@pytest.mark.usefixtures("nothing_left_out")
@pytest.mark.parametrize(("name", "ends"), [("log_prob", True), ("old_log_prob", False), ("advantages", False)])
def test_with_megatron_a_model_that_is_not_finite_always_ends_the_run(name, ends):
    batch = make_batch()
    with torch.no_grad():
        batch[name][3, 4] = float("nan")
    config = actor_config(CfpoLossConfig(**SKIP))
    object.__setattr__(config, "strategy", "megatron")
    if not ends:
        assert call(batch, config)[0] == 0
        return
    with pytest.raises(NonFiniteError, match=r"1 of 17 values of log_prob .* does not cover log_prob with Megatron"):
        call(batch, config)


@pytest.mark.usefixtures("nothing_left_out")
def test_too_many_left_out_end_the_run():
    broken, config = make_batch(), actor_config(CfpoLossConfig(**SKIP))
    broken["advantages"][0, 0] = float("nan")
    for batch in (broken, make_batch(), broken):
        call(batch, config)
    with pytest.raises(
        NonFiniteError, match=r"1 of 17 .* this process has left out 2 micro-batches before \(policy_lo"
    ):
        call(broken, config)


def test_sums_that_overflow_are_no_error():
    batch = make_batch()
    batch["advantages"] *= 1e38
    _loss, metrics = call(batch)
    assert metrics["cfpo/penalty"] == float("inf")


def test_aggregation_without_a_scale_is_refused():
    config = actor_config(loss_agg_mode="seq-mean-token-sum-norm")
    with pytest.raises(ValueError, match=r"needs actor\.loss_scale_factor: without it the loss depends on"):
        call(make_batch(), config, "seq-mean-token-sum-norm")
    call(make_batch(), actor_config(loss_agg_mode="seq-mean-token-sum-norm", loss_scale_factor=6))


def test_drpo_compares_with_the_clipping_of_the_actor():
    fractions = [
        call(make_batch(), actor_config(DrpoLossConfig(), clip_ratio_low=low, clip_ratio_high=high))[1]
        for low, high in [(0.2, 0.2), (0.01, 0.2), (0.2, 0.01)]
    ]
    rescued = [metrics["cfpo/rescued_frac"] for metrics in fractions]
    assert rescued[0] < min(rescued[1:])
    assert [metrics["actor/pg_clipfrac"] for metrics in fractions] == [0, 0, 0]


def call_square(batch, config=None, **arguments):
    config = config or actor_config(SquareLossConfig())
    return token_policy_loss(**batch, config=config, **arguments)


def test_another_loss_reports_the_means_of_its_own_statistics_alone():
    batch = make_batch()
    weights = torch.rand(4, 6)
    _loss, metrics = call_square(batch, rollout_is_weights=weights)
    log_ratio = (batch["log_prob"] - batch["old_log_prob"])[batch["response_mask"]]
    assert metrics == {"square/above": pytest.approx((log_ratio > 0.1).float().mean().item())}
    assert 0 < metrics["square/above"] < 1


def test_another_loss_is_weighed_and_aggregated_as_ours():
    batch, mask = make_batch(), make_batch()["response_mask"]
    weights = torch.rand(4, 6)
    loss, _metrics = call_square(batch, rollout_is_weights=weights, loss_agg_mode="seq-mean-token-mean")
    log_ratio = batch["log_prob"] - batch["old_log_prob"]
    values = (2 * log_ratio**2 - batch["advantages"] * log_ratio) * weights
    torch.testing.assert_close(loss, (torch.where(mask, values, 0).sum(-1) / mask.sum(-1)).mean())


def test_another_loss_without_response_tokens():
    batch = make_batch()
    batch["response_mask"] = torch.zeros(4, 6)
    config = actor_config(SquareLossConfig())
    config.global_batch_info.update(batch_num_tokens=17, global_batch_size=4, dp_size=1)
    assert call_square(batch, config) == (0, {"square/above": 0})


@pytest.mark.parametrize("name", ["log_prob", "old_log_prob", "advantages"])
def test_what_is_not_finite_is_seen_in_the_loss_where_no_statistic_tells(name):
    batch = make_batch()
    with torch.no_grad():
        batch[name][3, 4] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"1 of 17 values of {name} are NaN or infinite \(row 3 position 4\)"):
        call_square(batch)


@pytest.mark.parametrize(
    ("values", "statistics", "message"),
    [
        ((), (1,), r"the loss square returned values of shape \(\), but verl needs one for each token, \(4, 6\)"),
        ((4, 1), (1,), r"returned values of shape \(4, 1\)"),
        ((4, 6), (4, 6), r"returned statistics of shape \(4, 6\) for 1 names\. .* for each of: square/above"),
        ((4, 6), (), r"returned statistics of shape \(\) for 1 names"),
        ((4, 6), (2,), r"returned statistics of shape \(2,\) for 1 names"),
    ],
)
def test_shapes_that_would_be_averaged_to_something_else_are_refused(monkeypatch, values, statistics, message):
    returned = TokenLoss(torch.zeros(values), torch.zeros(statistics), ("square/above",))
    monkeypatch.setattr(SquareLossConfig, "score", staticmethod(lambda *_tensors, **_options: returned))
    with pytest.raises(ValueError, match=message):
        call_square(make_batch())


def test_a_name_that_verl_has_is_refused(monkeypatch):
    monkeypatch.setattr(SquareLossConfig, "NAME", "vanilla")
    vanilla = get_policy_loss_fn("vanilla")
    with pytest.raises(RuntimeError, match=r"already has a policy loss called vanilla\. Choose another name"):
        register_token_loss(SquareLossConfig)
    assert get_policy_loss_fn("vanilla") is vanilla
    with pytest.raises(RuntimeError, match="already has an advantage estimator called rloo"):
        register_group_estimator("rloo", lambda rewards, _groups: rewards)


THEIRS = """
import verl
from verl.trainer.ppo import core_algos
core_algos.POLICY_LOSS_REGISTRY["drpo"] = print  # as a verl that ships one would have it
{then}
from verl.utils.config import omega_conf_to_dataclass
for name in ("CfpoLossConfig", "DrpoLossConfig"):
    print("built", omega_conf_to_dataclass({{"_target_": f"cfpo_verl.config.{{name}}"}}).loss_mode)
"""


@pytest.mark.parametrize(
    ("then", "env"),
    [
        pytest.param("", {}, id="after-ours"),
        pytest.param("import cfpo_verl.registration", {"VERL_USE_EXTERNAL_PLUGINS": "none"}, id="before-ours"),
    ],
)
def test_a_loss_of_that_name_in_verl_is_not_replaced_and_does_not_run_unnoticed(run_forked, then, env):
    result = run_forked(THEIRS.format(then=then) + "\nassert 0, 'built'", **env)
    assert result.stdout.splitlines()[-1:] == ["built cfpo"], result.stderr
    assert "has a loss drpo of its own, which would run without the options of DrpoLossConfig" in result.stderr


@pytest.mark.parametrize("loss", LOSS_CONFIGS, ids=lambda loss: loss.NAME)
@pytest.mark.parametrize(("plugins", "built"), [("auto", True), ("none", False)])
def test_building_the_typed_config_proves_that_the_loss_is_registered(run_forked, loss, plugins, built):
    """As verl's own entry point builds it, before a worker loads its model."""
    code = f"""
from verl.utils.config import omega_conf_to_dataclass
config = omega_conf_to_dataclass({{"_target_": "cfpo_verl.config.{loss.__name__}"}})
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
print(get_policy_loss_fn(config.loss_mode).__module__, get_adv_estimator_fn("cfpo_grpo").__module__)
"""
    result = run_forked(code, VERL_USE_EXTERNAL_PLUGINS=plugins)
    if built:
        assert result.stdout.split() == ["cfpo_verl.registration"] * 2, result.stderr
    else:
        assert f"the loss {loss.NAME} is not in verl's registry in this process: no plugin" in result.stderr
        assert "VERL_USE_EXTERNAL_MODULES to the module that registers it, for our losses cfpo_verl.plugin" in (
            result.stderr
        )


def test_verls_own_entry_point_validates_the_registration_before_it_builds_anything(run_forked, tmp_path):
    """verl's main_ppo calls validate_config first, in the process that will compute the advantages."""
    OmegaConf.save(gpu_config(), tmp_path / "config.yaml")
    code = (
        "import verl; from omegaconf import OmegaConf; from verl.utils.config import validate_config; "
        "validate_config(OmegaConf.load('config.yaml'), False, False)"
    )
    assert run_forked(code).returncode == 0
    refused = run_forked(f"import cfpo_verl.resolvers; {code}", VERL_USE_EXTERNAL_PLUGINS="none")
    assert refused.returncode != 0
    assert "the loss cfpo is not in verl's registry in this process" in refused.stderr


def test_a_failed_registration_leaves_verl_alone_and_is_seen_where_our_loss_is_chosen(run_forked):
    code = """
import sys
import verl
sys.modules["cfpo_verl.advantages"] = None  # its import fails
from verl.trainer.ppo.core_algos import get_policy_loss_fn
print(get_policy_loss_fn("vanilla").__module__)
from cfpo_verl.config import CfpoLossConfig
CfpoLossConfig()
"""
    result = run_forked(code)
    assert result.stdout.strip() == "verl.trainer.ppo.core_algos", result.stderr
    assert "the losses and advantages of cfpo_verl cannot be registered" in result.stderr
    assert "import of cfpo_verl.advantages halted" in result.stderr
    assert "no plugin has registered CfpoLossConfig, or it failed (see the log)" in result.stderr.splitlines()[-1]


def test_options_of_a_loss_that_nothing_registered_are_refused():
    @dataclass
    class Unregistered(SquareLossConfig):
        NAME = "unregistered"
        loss_mode: str = "unregistered"

    with pytest.raises(ValueError, match=r"unregistered is not in verl's registry .* has registered Unregistered,"):
        Unregistered()


def test_processes_that_compute_no_loss_load_nothing_of_it(run_python):
    code = """
import sys, verl, verl.workers.config
assert "cfpo_verl.plugin" in sys.modules
print(sorted(name for name in sys.modules if name == "pandas" or name.startswith("cfpo_verl.")))
import verl.workers.utils.losses
print("cfpo_verl.registration" in sys.modules)
"""
    lines = run_python(code).stdout.splitlines()
    assert "registration" not in lines[0]
    assert "losses" not in lines[0]
    assert "pandas" not in lines[0]
    assert lines[1] == "True"


def test_verls_own_loss_is_the_same_to_the_bit_with_and_without_the_plugin(run_forked):
    code = """
import sys, torch, verl
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.workers.config import FSDPActorConfig
torch.manual_seed(0)
old = -torch.rand(64, 128)
new = (old + torch.randn(64, 128) / 3).requires_grad_()
config = FSDPActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1)
mask = torch.rand(64, 128) < 0.8
loss, metrics = get_policy_loss_fn("vanilla")(old, new, torch.randn(64, 128), mask, config=config)
loss.backward()
print("cfpo" in POLICY_LOSS_REGISTRY, loss.item().hex(), new.grad.double().sum().item().hex(), metrics)
"""
    outputs = [run_forked(code, **env).stdout.split(" ", 1) for env in ({}, {"VERL_USE_EXTERNAL_PLUGINS": "none"})]
    assert [output[0] for output in outputs] == ["True", "False"]
    assert outputs[0][1] == outputs[1][1]
    assert "0x" in outputs[0][1]


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
def test_registers_in_a_fresh_process(run_forked, env, expected):
    result = run_forked(PRINT_REGISTRY, **env)
    assert result.returncode == 0, result.stderr
    assert [f"'{loss.NAME}'" in result.stdout for loss in LOSS_CONFIGS] == [expected] * 3


def test_logs_one_line_at_info_however_often_it_is_imported(run_forked):
    code = (
        "import logging; logging.getLogger('cfpo_verl').setLevel('INFO'); import verl, cfpo_verl.plugin; "
        "from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY as r; import cfpo_verl.registration as p; "
        "assert r['cfpo'] is p.token_policy_loss"
    )
    result = run_forked(code, VERL_USE_EXTERNAL_MODULES="cfpo_verl.plugin")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if "registered with verl" in line]
    assert len(lines) == 1
    assert re.search(r"cfpo_verl \d+\.\d+\.\d+ registered with verl 0\.9\.\d+", lines[0])
