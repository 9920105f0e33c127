"""Our losses through verl's own path: its ppo_loss on nested tensors, its FSDP2 engine on one and two ranks, Megatron.

The reference is always the whole mini-batch in one piece on one rank. Losses and gradients must not depend on how it
is cut, to 1e-5.
"""

from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run_ranks
from torch.overrides import TorchFunctionMode
from verl.utils import tensordict_utils as tu
from verl.workers.utils.losses import ppo_loss
from verl_batches import (
    AGGREGATIONS,
    LOSSES,
    PROMPT_LENGTHS,
    RESPONSE_LENGTHS,
    loss_function,
    make_batch,
    nested,
    part_of,
)

from cfpo_verl import warmup

TOLERANCE = 1e-5


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def model_log_probs() -> list[torch.Tensor]:
    """Log-probabilities of prompt and response tokens, one leaf per response, of about the size of the old ones."""
    generator = torch.Generator().manual_seed(1)
    lengths = [sum(pair) for pair in zip(PROMPT_LENGTHS, RESPONSE_LENGTHS, strict=True)]
    return [(torch.randn(length, generator=generator) / 4 - 5.5).requires_grad_() for length in lengths]


def through_verl(
    policy_loss: str, loss_agg_mode: str, micro_batches: int, finish, last_advantages: float | None = None
) -> tuple[float, torch.Tensor]:
    """Add up what `finish` makes of each micro-batch, as an engine would; return loss and gradient.

    With `last_advantages`, those of the last quarter of the responses are replaced, and NaN is left out.
    """
    batch, leaves = make_batch(), model_log_probs()
    others = []
    if last_advantages is not None:
        others = ["actor_rollout_ref.actor.policy_loss.non_finite=skip"]
        rows = [row.clone() for row in batch["advantages"].unbind()]
        for row in rows[-2:]:
            row.fill_(last_advantages)
        batch["advantages"] = nested(rows)
    rows_each = len(leaves) // micro_batches
    total = 0.0
    for part in range(micro_batches):
        data = part_of(batch, micro_batches, part)
        tu.assign_non_tensor(
            data,
            dp_size=1,
            batch_num_tokens=sum(RESPONSE_LENGTHS),
            global_batch_size=len(leaves),
            num_micro_batch=micro_batches,
        )
        log_probs = nested(leaves[part * rows_each : (part + 1) * rows_each])
        loss = finish(loss_function(policy_loss, loss_agg_mode, *others), log_probs, data)
        loss.backward()
        total += loss.item()
    return total, torch.cat([leaf.grad for leaf in leaves])


def plainly(loss_function, log_probs, data):
    return loss_function(model_output={"log_probs": log_probs}, data=data)[0]


@pytest.mark.parametrize("loss_agg_mode", AGGREGATIONS)
@pytest.mark.parametrize("policy_loss", LOSSES)
def test_micro_batches_change_neither_loss_nor_gradient(policy_loss, loss_agg_mode):
    expected_loss, expected = through_verl(policy_loss, loss_agg_mode, 1, plainly)
    assert expected.any()
    for micro_batches in (2, 4):
        loss, gradient = through_verl(policy_loss, loss_agg_mode, micro_batches, plainly)
        assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
        assert distance(gradient, expected) < TOLERANCE


def test_aggregations_differ():
    """Otherwise the tests here would compare one aggregation five times."""
    losses = {round(through_verl("cfpo", loss_agg_mode, 1, plainly)[0], 6) for loss_agg_mode in AGGREGATIONS}
    assert len(losses) == len(AGGREGATIONS)


def test_verl_would_let_the_cut_decide_without_a_scale(monkeypatch):
    """Why seq-mean-token-sum-norm is refused without one; notices when verl no longer needs it."""
    from cfpo_verl import registration

    monkeypatch.setattr(registration, "check_aggregation", lambda _actor: None)

    def unscaled(function, log_probs, data):
        actor = deepcopy(function.args[0])
        object.__setattr__(actor, "loss_scale_factor", None)
        return plainly(partial(ppo_loss, actor), log_probs, data)

    losses = [through_verl("cfpo", "seq-mean-token-sum-norm", micro_batches, unscaled)[0] for micro_batches in (1, 4)]
    assert abs(losses[0] / losses[1] - 1) > 0.05


@pytest.fixture(scope="module")
def fsdp_gradients(tmp_path_factory) -> dict[int, dict]:
    """What verl's FSDP2 engine computes on one rank and on two, {ranks: {(loss, aggregation, micro-batches): ...}}."""
    folder = tmp_path_factory.mktemp("fsdp")
    torch.manual_seed(0)
    tokenizer = warmup.train_tokenizer(["1+1=2"], 300)
    config = warmup.WarmupConfig(hidden_size=32, layers=1, heads=2)
    model = warmup.build_model(tokenizer, config)
    warmup.save(folder / "model", model, tokenizer, [], {})
    script = Path(__file__).with_name("fsdp_rank.py")
    found = {}
    for ranks, micro_batches in ((1, ["1", "2", "4"]), (2, ["1", "2", "4"])):
        out = folder / f"{ranks}.pt"
        run_ranks(ranks, script, folder / "model", out, *micro_batches)
        found[ranks] = torch.load(out)
    return found


@pytest.mark.parametrize("loss_agg_mode", AGGREGATIONS)
@pytest.mark.parametrize("policy_loss", LOSSES)
def test_fsdp_ranks_and_micro_batches_change_neither_loss_nor_gradient(fsdp_gradients, policy_loss, loss_agg_mode):
    expected_loss, expected = fsdp_gradients[1][policy_loss, loss_agg_mode, 1]
    assert expected.norm() > 1e-3
    for ranks, micro_batches in ((1, 2), (1, 4), (2, 1), (2, 2), (2, 4)):
        loss, gradient = fsdp_gradients[ranks][policy_loss, loss_agg_mode, micro_batches]
        assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
        assert distance(gradient, expected) < TOLERANCE


def test_fsdp_gradients_of_the_losses_differ(fsdp_gradients):
    gradients = [fsdp_gradients[1][policy_loss, "token-mean", 1][1] for policy_loss in [*LOSSES, "vanilla"]]
    for index, gradient in enumerate(gradients):
        assert all(distance(gradient, other) > 0.01 for other in gradients[:index])


@pytest.mark.parametrize("ranks", [1, 2])
def test_fsdp_takes_the_step_without_the_micro_batch_whose_data_is_not_finite(fsdp_gradients, ranks):
    left_out = fsdp_gradients[ranks]["left out"]
    assert left_out["expected"].norm() > 1e-3
    assert distance(left_out["data"], left_out["expected"]) < TOLERANCE
    assert distance(left_out["data"], fsdp_gradients[1]["cfpo", "token-mean", 1][1]) > 0.01
    assert (left_out["moved"][0], left_out["nan"][0]) == (True, 0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_fsdp_takes_no_step_where_the_model_is_not_finite(fsdp_gradients, ranks):
    """The one weight that was made NaN stays alone, and once it is mended the next step is taken."""
    left_out = fsdp_gradients[ranks]["left out"]
    assert (left_out["moved"][1:], left_out["nan"][1:]) == ([False, True], [1, 0])


class WithoutCuda(TorchFunctionMode):
    """A fake at the edge: Megatron's optimiser keeps its flags on "cuda"."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


def test_megatron_would_write_nan_gradients_to_the_weights():
    """Why policy_loss.non_finite=skip does not cover log_prob there; notices when Megatron skips such a step."""
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.optimizer.optimizer import FP32Optimizer

    model = torch.nn.Linear(4, 2)
    for parameter in model.parameters():
        parameter.main_grad = torch.full_like(parameter, float("nan"))
    with WithoutCuda():
        config = OptimizerConfig(optimizer="adam", lr=0.1, clip_grad=0.0)
        optimizer = FP32Optimizer(torch.optim.AdamW(model.parameters()), config, lambda *_arguments: None)
        succeeded, _grad_norm, _zeros = optimizer.step()
    assert succeeded
    assert model.weight.isnan().all()


def through_megatron(micro_batches: int):
    """Return what finishes a micro-batch: the real end of verl's Megatron engine, and Megatron's scaling.

    A fake at the edge: the engine itself needs GPUs, so its method gets an object with only the settings it reads.
    """
    from megatron.core import ModelParallelConfig
    from megatron.core.pipeline_parallel.schedules import forward_step_calc_loss
    from verl.workers.engine.megatron.transformer_impl import MegatronEngineWithLMHead

    engine = SimpleNamespace(
        prepare_model_outputs=lambda output, data: MegatronEngineWithLMHead.prepare_model_outputs(None, output, data),
        get_data_parallel_group=lambda: None,
        engine_config=SimpleNamespace(dynamic_context_parallel=False),
        tf_config=None,
    )

    def finish(function, log_probs, data):
        def end_of_forward_step(output):
            return MegatronEngineWithLMHead.postprocess_micro_batch_func(
                engine, output, data, forward_only=False, loss_function=function
            )

        store = []
        loss, _tokens = forward_step_calc_loss(
            model=None,
            output_tensor={"log_probs": log_probs},
            loss_func=end_of_forward_step,
            config=ModelParallelConfig(),
            vp_stage=None,
            collect_non_loss_data=False,
            num_microbatches=micro_batches,
            forward_data_store=store,
            cp_group_size=1,
            is_last_stage=True,
        )
        assert "cfpo/penalty" in store[0]["metrics"]
        return loss

    return finish


@pytest.mark.parametrize("loss_agg_mode", AGGREGATIONS)
@pytest.mark.parametrize("policy_loss", LOSSES)
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_megatron_gives_the_gradient_of_fsdp(policy_loss, loss_agg_mode, micro_batches):
    expected_loss, expected = through_verl(policy_loss, loss_agg_mode, 1, plainly)
    loss, gradient = through_verl(policy_loss, loss_agg_mode, micro_batches, through_megatron(micro_batches))
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert distance(gradient, expected) < TOLERANCE


@pytest.mark.parametrize("policy_loss", LOSSES)
def test_megatron_takes_the_gradient_without_the_micro_batch_whose_data_is_not_finite(policy_loss):
    # Without advantages a response has neither surrogate nor penalty.
    expected_loss, expected = through_verl(policy_loss, "token-mean", 4, plainly, last_advantages=0.0)
    loss, gradient = through_verl(policy_loss, "token-mean", 4, through_megatron(4), last_advantages=float("nan"))
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert distance(gradient, expected) < TOLERANCE
