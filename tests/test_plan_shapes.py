"""Shapes against transformers itself: parameters, operations, keys and values."""

import json

import pytest
import torch
from model_shapes import hf_config
from transformers import AutoModelForCausalLM, DynamicCache
from verl.utils import flops_counter

from cfpo_verl.plan.errors import PlanError
from cfpo_verl.plan.shapes import ModelShape, shape_of, table


def on_meta(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


TINY = {
    "llama": ModelShape(64, 2, 4, 2, 16, 160, 300, True),
    "qwen2": ModelShape(64, 2, 4, 2, 16, 160, 300, False, qkv_bias=True),
    "qwen3": ModelShape(64, 2, 4, 2, 32, 160, 300, True, qk_norm=True),
    "qwen3_moe": ModelShape(64, 2, 4, 2, 32, 48, 300, False, qk_norm=True, experts=8, experts_per_token=2),
}


# Names of one shape come one after the other.
ONCE = {shape: name for name, shape in reversed(table())}


@pytest.mark.parametrize("shape", ONCE, ids=ONCE.values())
def test_parameters_are_those_that_transformers_builds(shape):
    assert shape.parameters == on_meta(hf_config(shape)).num_parameters()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As the hub shows them beside the weights.
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-14B", 14_770_033_664),
        ("Qwen/Qwen2.5-32B", 32_763_876_352),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
    ],
)
def test_published_models_have_their_published_size(name, parameters):
    assert shape_of(name).parameters == parameters


@pytest.mark.parametrize("shape", TINY.values(), ids=TINY)
def test_a_saved_config_is_read_back(shape, tmp_path):
    hf_config(shape).save_pretrained(tmp_path)
    assert shape_of(str(tmp_path)) == shape


@pytest.mark.parametrize("shape", TINY.values(), ids=TINY)
def test_operations_are_verls_but_for_the_embedding(shape, monkeypatch):
    """verl counts looking up the embedding as a multiplication by it: 6 * vocabulary * hidden a token too many."""
    # The only thing that it asks of a GPU.
    monkeypatch.setattr(flops_counter, "get_device_flops", lambda: float("nan"))
    lengths = [5, 17, 64]
    tera_per_second, _promised = flops_counter.FlopsCounter(hf_config(shape)).estimate_flops(lengths, 1.0)
    ours = 3 * shape.forward_flops(sum(lengths), sum(length**2 for length in lengths))
    lookup = 6 * shape.embedding_parameters * sum(lengths)
    assert ours + lookup == pytest.approx(tera_per_second * 1e12, rel=1e-12)


def test_operations_worked_by_hand():
    # Matrices: attention 8 * (2 * 8 + 2 * 4) = 192, MLP 3 * 8 * 16 = 384, output 10 * 8 = 80, in two layers 2 * 576.
    # Two operations each and token, and 2 * layers * q_width * length**2 = 2 * 2 * 8 * 9 of attention.
    shape = ModelShape(8, 2, 2, 1, 4, 16, 10, False)
    assert shape.forward_flops(3, 9) == 2 * (2 * 576 + 80) * 3 + 288


@pytest.mark.parametrize("shape", TINY.values(), ids=TINY)
def test_keys_and_values_are_those_of_a_cache(shape):
    model, cache = AutoModelForCausalLM.from_config(hf_config(shape)), DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 5, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 5 * shape.kv_bytes_per_token(bytes_per_value=4)


def test_keys_and_values_are_those_of_vllm(run_forked):
    result = run_forked(
        "import torch; from vllm.v1.kv_cache_interface import FullAttentionSpec\n"
        "spec = FullAttentionSpec(block_size=16, num_kv_heads=4, head_size=128, dtype=torch.bfloat16)\n"
        "print('page', spec.page_size_bytes)"
    )
    # The pages of 16 tokens of one layer of Qwen2.5-7B, of which it has 28.
    page = int(result.stdout.split("page ")[-1])
    assert 28 * page == 16 * shape_of("Qwen/Qwen2.5-7B").kv_bytes_per_token()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported by plan, only: llama, qwen2"),
        ({"model_type": ["qwen2"]}, r"model_type \['qwen2'\] is not supported by plan"),
        ({"model_type": "qwen2"}, "config.json: num_attention_heads must be an integer of at least 1, got None"),
        (
            {"model_type": "qwen2", "num_attention_heads": 0},
            "num_attention_heads must be .*, got 0",
        ),
        ({"model_type": "qwen2", "num_attention_heads": "2"}, "num_attention_heads must be .*, got '2'"),
        (["qwen2"], "config.json: not the config of a language model, but a list"),
        ({"model_type": "qwen3_moe", "num_experts": 8, "mlp_only_layers": [0]}, "experts in some layers only"),
    ],
)
def test_an_unknown_architecture_is_named(config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match=message):
        shape_of(str(tmp_path))


def test_an_unknown_model_is_named_with_the_known_ones():
    with pytest.raises(PlanError, match=r"model.path=org/nothing: no folder .* Qwen2.5-7B"):
        shape_of("org/nothing")
