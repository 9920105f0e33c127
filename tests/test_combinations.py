"""What cannot go together is refused by name, with the reason and the way out."""

import pytest

from benchmarks.combinations import composing
from cfpo_verl.combinations import problems


@pytest.fixture(scope="module")
def compose():
    with composing() as compose:
        yield compose


@pytest.mark.parametrize(
    ("overrides", "named", "way_out"),
    [
        pytest.param(
            "experiment=math_8gpu model_engine=megatron",
            "model_engine=megatron does not go with actor_rollout_ref.actor.strategy=fsdp2",
            "Choose with backend=NAME",
            id="engine-typed-beside-backend",
        ),
        pytest.param(
            "experiment=math_8gpu_megatron model_engine=dp",
            "model_engine=dp does not go with actor_rollout_ref.actor.strategy=megatron",
            "Choose with backend=NAME",
            id="engine-dp-with-megatron",
        ),
        pytest.param(
            "experiment=math_8gpu actor_rollout_ref.actor.strategy=megatron",
            "model_engine=dp does not go with actor_rollout_ref.actor.strategy=megatron",
            "Choose with backend=NAME",
            id="strategy-typed",
        ),
        pytest.param(
            "experiment=math_8gpu actor_rollout_ref.ref.strategy=megatron",
            "model_engine=dp does not go with actor_rollout_ref.ref.strategy=megatron",
            "Choose with backend=NAME",
            id="strategy-of-the-reference-model",
        ),
        pytest.param(
            "experiment=cpu_quickstart topology=2x8",
            "backend=cpu with trainer.nnodes=2",
            "Choose topology=1x1",
            id="nodes-on-a-cpu",
        ),
        pytest.param(
            "experiment=cpu_quickstart policy_model=qwen3_30b_a3b",
            "backend=cpu with Qwen/Qwen3-30B-A3B",
            "Choose a policy_model such as",
            id="experts-on-a-cpu",
        ),
        pytest.param(
            "experiment=cpu_quickstart updates=one_step_off",
            "backend=cpu with trainer.v1.trainer_mode=separate_async",
            "Choose updates=x4",
            id="separate-on-a-cpu",
        ),
        pytest.param(
            "experiment=gsm8k_1gpu policy_model=qwen2.5_32b",
            "takes 4 GPUs",
            "Choose a larger topology",
            id="model-over-more-gpus-than-there-are",
        ),
        pytest.param(
            "experiment=math_8gpu_megatron topology=1x2",
            "backend=megatron cuts the model over 4 GPUs (tensor x pipeline x context parallel), and 1 x 2 GPUs",
            "Choose a larger topology",
            id="megatron-over-more-gpus-than-there-are",
        ),
        pytest.param(
            "experiment=math_8gpu_megatron policy_model=qwen3_30b_a3b topology=1x4",
            "backend=megatron cuts the model over 8 GPUs (expert x expert tensor x pipeline parallel)",
            "Choose a larger topology",
            id="experts-over-more-gpus-than-there-are",
        ),
        pytest.param(
            "experiment=gsm8k_1gpu algo=gspo actor_rollout_ref.actor.loss_agg_mode=token-mean",
            "policy_loss=gspo with actor_rollout_ref.actor.loss_agg_mode=token-mean",
            "Leave loss_agg_mode=seq-mean-token-mean",
            id="gspo-by-tokens",
        ),
        pytest.param(
            "experiment=gsm8k_1gpu algo=sapo actor_rollout_ref.actor.loss_agg_mode=token-mean",
            "policy_loss=sapo with actor_rollout_ref.actor.loss_agg_mode=token-mean",
            "Leave loss_agg_mode=seq-mean-token-mean",
            id="sapo-by-tokens",
        ),
        pytest.param(
            "experiment=gsm8k_1gpu algo=dapo trainer.use_v1=false",
            "algorithm.filter_groups.enable=true with trainer.use_v1=false",
            "Leave trainer.use_v1=true",
            id="dynamic-sampling-in-the-older-trainer",
        ),
        pytest.param(
            "experiment=cpu_quickstart algo=dapo "
            "trainer.v1.sampler.custom_sampler.path=pkg://cfpo_verl.cpu.replay_buffer "
            "trainer.v1.sampler.custom_sampler.name=FastPollingReplayBuffer",
            "FastPollingReplayBuffer would keep every group",
            "Set path=null and name=null",
            id="dynamic-sampling-with-a-sampler-that-does-not-filter",
        ),
        pytest.param(
            "experiment=gsm8k_1gpu algo=dapo actor_rollout_ref.rollout.n=1",
            "algorithm.filter_groups.enable=true with actor_rollout_ref.rollout.n=1",
            "Set actor_rollout_ref.rollout.n",
            id="dynamic-sampling-of-groups-of-one",
        ),
        pytest.param(
            "experiment=math_async_16gpu actor_rollout_ref.rollout.nnodes=0",
            "trainer.v1.trainer_mode=separate_async with actor_rollout_ref.rollout.nnodes=0",
            "Choose with updates=one_step_off",
            id="separate-without-nodes",
        ),
        pytest.param(
            "experiment=math_async_16gpu actor_rollout_ref.rollout.checkpoint_engine.backend=naive",
            "actor_rollout_ref.rollout.checkpoint_engine.backend=naive",
            "Set it to nccl",
            id="separate-without-a-way-for-weights",
        ),
        pytest.param(
            "experiment=math_async_16gpu actor_rollout_ref.actor.ppo_mini_batch_size=32",
            "takes 4 mini-batches of 32 prompts between two updates of the weights, which is not "
            "data.train_batch_size=256",
            "Set updates_per_rollout",
            id="separate-with-a-batch-that-does-not-fit",
        ),
        pytest.param(
            "experiment=gsm8k_1gpu algorithm.adv_estimator=gae",
            "algorithm.adv_estimator=gae needs a critic",
            "set critic.enable=true",
            id="gae-without-a-critic",
        ),
    ],
)
def test_is_refused_by_name(overrides, named, way_out, compose):
    [problem] = problems(compose(*overrides.split()))
    assert named in problem
    assert way_out in problem


@pytest.mark.parametrize(
    "overrides",
    [
        "experiment=math_8gpu actor_rollout_ref.actor.strategy=fsdp",
        "experiment=cpu_quickstart algo=dapo",
        "experiment=math_8gpu_megatron policy_model=qwen3_30b_a3b topology=2x8",
        "experiment=gsm8k_1gpu policy_loss=gspo",
        "experiment=math_async_16gpu updates_per_rollout=8",
    ],
)
def test_what_can_go_together_is_not_refused(overrides, compose):
    assert problems(compose(*overrides.split())) == []


def test_train_refuses_before_anything_is_started(run_cli, tmp_path, arithmetic_files):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    files = [f"data.train_files={arithmetic_files[0]}", f"data.val_files={arithmetic_files[1]}"]
    chosen = ["experiment=cpu_quickstart", "model_engine=megatron", f"actor_rollout_ref.model.path={model}"]
    result = run_cli("train", *chosen, *files)
    assert result.returncode == 2
    assert "model_engine=megatron does not go with actor_rollout_ref.actor.strategy=fsdp2" in result.stderr
    assert result.stderr.endswith("Nothing was started.\n")
