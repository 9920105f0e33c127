"""Memory formulas against tensors that torch really holds."""

from dataclasses import replace

import pytest
import torch
from test_plan_shapes import TINY, hf_config
from transformers import AutoModelForCausalLM

from cfpo_verl.plan.hardware import find_gpu
from cfpo_verl.plan.memory import layer_activation_bytes, phases
from cfpo_verl.plan.run import Batch, Rollout, Run, Trainer
from cfpo_verl.plan.shapes import ModelShape, shape_of


def storages(tensors) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def run_of(shape: ModelShape, **trainer) -> Run:
    batch = Batch(8, 1, 8, 1, 8, 8, 8, 8)
    return Run(shape, Trainer("fsdp2", gpus=1, gpus_per_node=1, **trainer), Rollout(1, 1, kv_cache_gb=1.0), batch)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("quickstart_seed0", torch.float32), ("quickstart_seed0", torch.bfloat16), ("SmolLM2-135M", torch.bfloat16)],
)
def test_weights_gradients_and_optimizer_after_a_step(name, dtype):
    shape = shape_of(name)
    # Without the random values, which take longest.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config(shape), dtype=dtype)
    model.to_empty(device="cpu")
    model.tie_weights()
    for parameter in model.parameters():
        parameter.data.zero_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.float().sum().backward()
    optimizer.step()
    parameters = list(model.parameters())
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    held = {
        "weights": storages(parameters),
        "gradients": storages(parameter.grad for parameter in parameters),
        "optimizer": storages(moments),
    }
    update = phases(run_of(shape, weight_bytes=dtype.itemsize), find_gpu("H100-80GB"))[0]
    assert {part: update.parts_gb[part] * 1e9 for part in held} == pytest.approx(held, rel=1e-12)


def saved_bytes(shape: ModelShape, layers: int, dtype: torch.dtype, tokens: int, recompute: bool = False) -> int:
    """Return what autograd keeps of a forward pass, weights left out."""
    config = hf_config(replace(shape, layers=layers))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").train()
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        model(input_ids=torch.randint(0, shape.vocabulary, (2, tokens // 2)), use_cache=False)
    return storages(kept.values())


def measured_per_layer(shape: ModelShape, dtype: torch.dtype, **kwargs) -> float:
    """Return the bytes of one token in one layer: embeddings, rotations and logits drop out of the difference."""
    tokens = 128
    return (
        (saved_bytes(shape, 4, dtype, tokens, **kwargs) - saved_bytes(shape, 2, dtype, tokens, **kwargs)) / 2 / tokens
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_activations_of_a_layer_are_exact(family, dtype):
    shape = TINY[family]
    assert measured_per_layer(shape, dtype) == layer_activation_bytes(shape, dtype.itemsize)


def test_activations_of_experts_are_near():
    """Which tensors are kept depends on how the experts are multiplied: 1 to 2 % more than estimated here."""
    shape = TINY["qwen3_moe"]
    estimated = layer_activation_bytes(shape, 4)
    assert measured_per_layer(shape, torch.float32) == pytest.approx(estimated, rel=0.03)


def test_recomputation_keeps_the_input_of_a_layer():
    shape = TINY["qwen2"]
    assert measured_per_layer(shape, torch.float32, recompute=True) == 4 * shape.hidden
