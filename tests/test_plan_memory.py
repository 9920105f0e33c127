"""Memory by part and phase: worked by hand, and read from verl's own configs."""

import re
from copy import deepcopy
from functools import cache

import hydra
import pytest
from omegaconf import OmegaConf

from cfpo_verl import plan
from cfpo_verl.composing import verl_config_dir
from cfpo_verl.errors import UserError
from cfpo_verl.plan.advice import first_change, overshoot_gb
from cfpo_verl.plan.hardware import find_gpu
from cfpo_verl.plan.memory import Stage, kv_tokens, logit_bytes, micro_batches, phases, stages
from cfpo_verl.plan.read_config import read_run
from cfpo_verl.plan.run import Batch, Rollout, Run, Trainer
from cfpo_verl.plan.shapes import ModelShape, shape_of

H100 = find_gpu("H100-80GB")

# A vocabulary of 1,000 (so 8,000 parameters, twice), 2 layers: attention 8 * (2 * 8 + 2 * 4) = 192, MLP 3 * 8 * 16 =
# 384, norms 16: 592 each; a last norm of 8. 2 * 592 + 2 * 8000 + 8 = 17192.
SHAPE = ModelShape(8, 2, 2, 1, 4, 16, 1000, False)
BATCH = Batch(8, 2, 4, 1, 10, 20, 16, 48)

MODEL, ACTOR, ROLLOUT = (f"actor_rollout_ref.{part}" for part in ("model", "actor", "rollout"))
SEVEN_B = [
    "actor_rollout_ref.rollout.name=vllm",
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.model.path=Qwen/Qwen2.5-7B",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "data.max_prompt_length=1024",
    "data.max_response_length=7168",
]


@cache
def composed(model_engine):
    with hydra.initialize_config_dir(verl_config_dir(), version_base=None):
        return hydra.compose("ppo_trainer", overrides=[*SEVEN_B, model_engine])


def verl_config(*overrides):
    """Compose verl's config once for each engine, and set keys in a copy."""
    engines = [override for override in overrides if override.startswith("model_engine=")]
    config = deepcopy(composed(engines[0] if engines else "model_engine=dp"))
    values = OmegaConf.from_dotlist([override for override in overrides if override not in engines])
    return OmegaConf.merge(config, values)


def bytes_of(run, name):
    found = next(phase for phase in phases(run, H100) if phase.name == name)
    return {part: round(size * 1e9) for part, size in found.parts_gb.items()}


def test_fsdp_worked_by_hand():
    trainer = Trainer("fsdp2", gpus=4, gpus_per_node=4, shards=4, update_tokens=100, log_prob_tokens=50)
    run = Run(SHAPE, trainer, Rollout(4, 4, memory_share=0.5), BATCH)
    update = bytes_of(run, "update")
    assert update["weights"] == update["gradients"] == 17192
    assert update["optimizer"] == 2 * 17192
    # bf16 embeddings and two layers; the gradient of the embeddings, larger than a layer, in bf16 and fp32.
    assert update["gathered"] == 2 * (16000 + 2 * 592) + 6 * 16000
    # bf16: norms 2 * (4 * 8 + 4 * 8 + 4), attention 4 * (8 + 4) + 4 * 2, MLP 8 * 16: 320. The input of both layers is
    # kept, 2 * 16, and one layer computed again.
    assert update["activations"] == 100 * (2 * 16 + 320)
    assert update["logits"] == 100 * 1000 * 2
    log_prob = bytes_of(run, "log_prob")
    assert "gradients" not in log_prob
    assert log_prob["activations"] == 50 * 320
    # Half of 80 GB, less 3 of reserve and the weights in bf16.
    assert bytes_of(run, "rollout")["kv cache"] == 40e9 - 3e9 - 2 * 17192
    # Keys and values: 2 * 2 layers * 4 wide * 2 bytes.
    assert kv_tokens(run, H100) == pytest.approx((40e9 - 3e9 - 2 * 17192) / 32)


def test_megatron_worked_by_hand():
    trainer = Trainer(
        "megatron",
        gpus=8,
        gpus_per_node=8,
        tensor_parallel=2,
        pipeline_parallel=2,
        recompute=False,
        update_tokens=100,
        log_prob_tokens=100,
    )
    # One layer on each stage, halved: 296, and half of a table.
    assert stages(SHAPE, trainer) == [Stage(1, 4296, 0, False), Stage(1, 4296, 0, True)]
    run = Run(SHAPE, trainer, Rollout(8, 8), BATCH)
    update = bytes_of(run, "update")
    assert (update["weights"], update["gradients"]) == (2 * 4296, 4 * 4296)
    # 8 GPUs are 2 copies of 2 x 2.
    assert update["optimizer"] == 12 * 4296 // 2
    # Norms 8 * 8, attention 4 * (8 + 4) + 4 * 2, MLP 6 * 16: 216, halved. The last stage has one micro-batch under way
    # and the logits: bf16, fp32 and the gradient of half of the vocabulary.
    assert update["activations"] == 100 * 216 // 2
    assert update["logits"] == 100 * 500 * (2 + 4 + 2)


def test_the_first_stage_holds_a_micro_batch_for_each_stage():
    trainer = Trainer("megatron", gpus=4, gpus_per_node=4, pipeline_parallel=2, recompute=False, update_tokens=100)
    # A vocabulary so small that the last stage, with its logits, is not the fuller one.
    run = Run(ModelShape(8, 2, 2, 1, 4, 16, 10, False), trainer, Rollout(4, 4), BATCH)
    assert micro_batches(run) == 2
    update = bytes_of(run, "update")
    assert update["activations"] == 2 * 100 * 216
    assert "logits" not in update


def test_experts_are_shared_apart():
    shape = shape_of("Qwen/Qwen3-30B-A3B")
    trainer = Trainer("megatron", gpus=32, gpus_per_node=8, tensor_parallel=2, expert_parallel=8)
    [stage] = stages(shape, trainer)
    assert stage.experts == 48 * 128 * 3 * 2048 * 768 / 8
    assert stage.dense == pytest.approx((shape.parameters - 48 * 128 * 3 * 2048 * 768) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "update", "log_prob"),
    [
        ({}, 2, 2),
        ({"scales_logits": True}, 4, 4),
        ({"entropy_in_update": True}, 10, 2),
        ({"entropy_in_update": True, "entropy_chunk_tokens": 2048}, 6, 2),
        ({"compiled_entropy": False}, 2, 6),
        ({"fused_kernels": True, "entropy_in_update": True}, 0, 0),
    ],
)
def test_bytes_of_a_logit(changes, update, log_prob):
    trainer = Trainer("fsdp", gpus=1, gpus_per_node=1, **changes)
    assert (logit_bytes(trainer, True), logit_bytes(trainer, False)) == (update, log_prob)


def test_seven_billion_parameters_on_eight_gpus_with_fsdp():
    found = plan.memory_per_gpu_gb(verl_config())
    share = 7_615_616_512 * 4 / 8 / 1e9
    assert found["update/weights"] == found["update/gradients"] == pytest.approx(share)
    assert found["update/optimizer"] == pytest.approx(2 * share)
    # 16384 tokens, bf16, of 152,064 words.
    assert found["update/logits"] == pytest.approx(16384 * 152064 * 2 / 1e9)
    for phase in ("update", "log_prob", "rollout"):
        parts = [size for key, size in found.items() if key.startswith(f"{phase}/") and not key.endswith("/total")]
        assert found[f"{phase}/total"] == pytest.approx(sum(parts))
    assert plan.first_advice(verl_config()) is None


def test_seven_billion_parameters_on_eight_gpus_with_megatron():
    """As verl composes it, whole on each GPU; with what plan advises in turn it fits."""
    config = verl_config("model_engine=megatron")
    found = plan.memory_per_gpu_gb(config)
    assert found["update/weights"] == pytest.approx(7_615_616_512 * 2 / 1e9, rel=1e-6)
    assert found["update/optimizer"] == pytest.approx(7_615_616_512 * 12 / 8 / 1e9, rel=1e-6)
    overrides = ["model_engine=megatron"]
    for _ in range(4):
        advice = plan.first_advice(verl_config(*overrides))
        if advice is None:
            break
        overrides.append(f"{advice.key}={advice.value}")
    assert len(overrides) > 1
    assert plan.first_advice(verl_config(*overrides)) is None


@pytest.mark.parametrize(
    ("overrides", "phase", "part", "wanted"),
    [
        # verl brings weights and optimiser back for training, so only the engine gains.
        (["actor_rollout_ref.actor.fsdp_config.optimizer_offload=true"], "update", "optimizer", True),
        (["actor_rollout_ref.actor.fsdp_config.optimizer_offload=true"], "rollout", "optimizer", False),
        (["actor_rollout_ref.actor.fsdp_config.param_offload=true"], "rollout", "weights", False),
        (
            [
                "actor_rollout_ref.actor.strategy=fsdp2",
                "actor_rollout_ref.actor.fsdp_config.offload_policy=true",
            ],
            "update",
            "optimizer",
            False,
        ),
        (["actor_rollout_ref.rollout.free_cache_engine=false"], "update", "kv cache", True),
        # FSDP keeps the reference in the machine's memory, Megatron on the GPU.
        (["actor_rollout_ref.actor.use_kl_loss=true"], "log_prob", "reference", False),
        (["model_engine=megatron", "actor_rollout_ref.actor.use_kl_loss=true"], "log_prob", "reference", True),
        (
            [
                "model_engine=megatron",
                "actor_rollout_ref.actor.use_kl_loss=true",
                "actor_rollout_ref.ref.megatron.param_offload=true",
            ],
            "rollout",
            "reference",
            False,
        ),
    ],
)
def test_settings_move_parts(overrides, phase, part, wanted):
    assert (f"{phase}/{part}" in plan.memory_per_gpu_gb(verl_config(*overrides))) == wanted


def test_the_longest_sequence_is_the_least_micro_batch():
    run = read_run(verl_config("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1000"))
    assert run.trainer.update_tokens == 8192
    shared = read_run(
        verl_config(
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1000",
            "actor_rollout_ref.actor.ulysses_sequence_parallel_size=4",
        )
    )
    assert shared.trainer.update_tokens == 2048


@pytest.mark.parametrize(("fsdp_size", "shards"), [(-1, 8), (16, 8), (4, 4)])
def test_shards_are_as_many_as_verl_makes(fsdp_size, shards):
    assert read_run(verl_config(f"{ACTOR}.fsdp_config.fsdp_size={fsdp_size}")).trainer.shards == shards


def test_fixed_micro_batches_count_sequences():
    overrides = (
        "actor_rollout_ref.actor.use_dynamic_bsz=false",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    )
    run = read_run(verl_config(*overrides, "actor_rollout_ref.rollout.n=8"))
    assert (run.trainer.update_tokens, run.trainer.log_prob_tokens) == (4 * 8192, 8 * 8192)
    # 256 prompts of 8 responses on 8 GPUs, 4 at a time.
    assert micro_batches(run) == 256 * 8 / 8 / 4


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([f"{ACTOR}.ppo_max_token_len_per_gpu=81920"], f"{ACTOR}.ppo_max_token_len_per_gpu"),
        ([f"{ROLLOUT}.gpu_memory_utilization=0.9"], f"{ROLLOUT}.gpu_memory_utilization"),
        ([f"{MODEL}.path=Qwen/Qwen2.5-32B"], "trainer.nnodes"),
        (
            [f"{MODEL}.path=Qwen/Qwen2.5-32B", "trainer.nnodes=4", f"{ROLLOUT}.gpu_memory_utilization=0.4"],
            f"{ROLLOUT}.gpu_memory_utilization",
        ),
        ([f"{MODEL}.enable_gradient_checkpointing=false"], f"{MODEL}.enable_gradient_checkpointing"),
        (
            [
                "model_engine=megatron",
                f"{ACTOR}.megatron.tensor_model_parallel_size=2",
                f"{ACTOR}.megatron.param_offload=true",
            ],
            f"{ACTOR}.megatron.override_transformer_config",
        ),
    ],
)
def test_the_first_change_is_named_and_enough(overrides, key):
    advice = plan.first_advice(verl_config(*overrides))
    assert (advice.key, advice.is_enough) == (key, True)
    assert plan.first_advice(verl_config(*overrides, f"{advice.key}={advice.value}")) is None


def test_a_change_that_is_not_enough_says_so():
    run = read_run(verl_config("actor_rollout_ref.model.path=Qwen/Qwen2.5-32B", "trainer.n_gpus_per_node=2"))
    advice = first_change(run, H100)
    assert str(advice).endswith("(not enough alone)")
    assert overshoot_gb(advice.run, H100) < overshoot_gb(run, H100)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.adv_estimator=gae"], "algorithm.adv_estimator=gae trains a critic"),
        (["actor_rollout_ref.model.lora_rank=8"], "LoRA is not supported by plan"),
        (["actor_rollout_ref.actor.strategy=veomni"], "strategy=veomni is not supported by plan"),
        (
            ["actor_rollout_ref.rollout.tensor_model_parallel_size=3"],
            "not a multiple of the 3 of one inference",
        ),
        (["actor_rollout_ref.actor.ulysses_sequence_parallel_size=3"], "8 GPUs are not a multiple of 3"),
        (["actor_rollout_ref.actor.fsdp_config.fsdp_size=3"], "fsdp_size=3 does not divide 8 GPUs"),
        (["actor_rollout_ref.actor.use_dynamic_bsz=false"], "neither a token budget nor a micro-batch size"),
        (["actor_rollout_ref.rollout.dtype=fp8"], "rollout.dtype=fp8 is not supported by plan. Choose one of: fp32"),
        (["data.train_batch_size=0"], "data.train_batch_size=0: must be an integer of at least 1"),
        (["actor_rollout_ref.rollout.max_num_seqs=abc"], "max_num_seqs='abc': must be an integer of at least 1"),
        (["trainer.nnodes=abc"], "trainer.nnodes='abc': give a whole number above 0"),
        (["trainer.n_gpus_per_node=0"], "trainer.n_gpus_per_node=0: give a whole number above 0"),
        (["trainer.n_gpus_per_node=${nothing}"], "trainer.n_gpus_per_node: Interpolation key 'nothing' not found"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        plan.memory_per_gpu_gb(verl_config(*overrides))


def test_separate_engines_leave_the_trainers_gpus_alone():
    separate = ["trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.rollout.nnodes=1"]
    run = read_run(verl_config(*separate, "actor_rollout_ref.rollout.n_gpus_per_node=4"))
    assert (run.gpus, run.rollout.gpus) == (12, 4)
    assert set(bytes_of(run, "rollout")) == {"engine weights", "kv cache", "engine reserve", "reserve"}
