"""What cannot go together is refused by exactly one check, with the reason and one way out."""

import pytest

from benchmarks.combinations import composing
from cfpo_verl import doctor


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
            "experiment=cpu_quickstart trainer.nnodes=2 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32",
            "trainer.nnodes=2, but ray_kwargs.ray_init sets num_cpus and num_gpus (as backend=cpu does)",
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
            "4 GPUs share the model (tensor 4 x pipeline 1 x context 1), and 1 x 2 GPUs cannot be divided",
            "Choose a larger topology",
            id="megatron-over-more-gpus-than-there-are",
        ),
        pytest.param(
            "experiment=math_8gpu_megatron policy_model=qwen3_30b_a3b topology=1x4",
            "8 GPUs share the model (expert 8 x expert tensor 1 x pipeline 1), and 1 x 4 GPUs cannot be divided",
            "Choose a larger topology",
            id="experts-over-more-gpus-than-there-are",
        ),
        pytest.param(
            "experiment=math_8gpu_megatron algo=grpo actor_rollout_ref.actor.megatron.tensor_model_parallel_size=3",
            "actor_rollout_ref.actor: 3 GPUs share the model (tensor 3 x pipeline 1 x context 1), and 1 x 8 GPUs",
            "Choose a larger topology, or smaller parallel sizes",
            id="megatron-tensor-3-on-8-with-a-reference-of-the-same-sizes",
        ),
        pytest.param(
            "experiment=math_8gpu actor_rollout_ref.rollout.tensor_model_parallel_size=3",
            "one copy of the model for generation takes 3 GPUs",
            "Choose a larger topology, or a smaller actor_rollout_ref.rollout.tensor_model_parallel_size",
            id="rollout-tensor-3-on-8",
        ),
        pytest.param(
            "experiment=math_async_16gpu algorithm.rollout_correction.rollout_is=token",
            "with bypass_mode=true only verl's own loss bypass_mode applies rollout_is=token, and cfpo would run",
            "Set bypass_mode=false, or rollout_is=null",
            id="two-corrections-of-stale-data",
        ),
        pytest.param(
            "experiment=math_async_16gpu actor_rollout_ref.rollout.calculate_log_probs=false",
            "algorithm.rollout_correction: bypass_mode needs the log-probabilities of the rollout engine",
            "Set actor_rollout_ref.rollout.calculate_log_probs=true",
            id="stale-data-without-the-probabilities-of-its-policy",
        ),
        pytest.param(
            "experiment=gsm8k_1gpu algo=dapo reward_range=[1,0]",
            "cannot be computed: [1, 0] is not the range of a reward",
            "Set reward_range to the lowest and the highest reward",
            id="a-range-that-is-none",
        ),
        pytest.param(
            "experiment=gsm8k_1gpu algo=dapo trainer.use_v1=false",
            "algorithm.filter_groups.enable=true with trainer.use_v1=false",
            "Set trainer.use_v1=true, or choose an algo without dynamic sampling",
            id="dynamic-sampling-in-the-older-trainer",
        ),
        pytest.param(
            "experiment=cpu_quickstart algo=dapo "
            "trainer.v1.sampler.custom_sampler.path=pkg://cfpo_verl.cpu.replay_buffer "
            "trainer.v1.sampler.custom_sampler.name=FastPollingReplayBuffer",
            "custom_sampler.name=FastPollingReplayBuffer: verl leaves the filtering to that class",
            "Set trainer.v1.sampler.custom_sampler.path=null and name=null",
            id="dynamic-sampling-with-a-sampler-that-does-not-filter",
        ),
        pytest.param(
            "experiment=gsm8k_1gpu algo=dapo actor_rollout_ref.rollout.n=1",
            "algorithm.adv_estimator=grpo compares the responses to a prompt, and actor_rollout_ref.rollout.n=1",
            "Set actor_rollout_ref.rollout.n",
            id="dynamic-sampling-of-groups-of-one",
        ),
        pytest.param(
            "experiment=gsm8k_1gpu algo=dapo actor_rollout_ref.rollout.n=1 algorithm.adv_estimator=reinforce_plus_plus",
            "algorithm.filter_groups.enable=true with actor_rollout_ref.rollout.n=1",
            "Set actor_rollout_ref.rollout.n",
            id="dynamic-sampling-of-groups-of-one-that-no-estimator-compares",
        ),
        pytest.param(
            "experiment=math_async_16gpu actor_rollout_ref.rollout.nnodes=0",
            "generates on nodes of its own, and actor_rollout_ref.rollout.nnodes=0",
            "Choose updates=one_step_off",
            id="separate-without-nodes",
        ),
        pytest.param(
            "experiment=math_async_16gpu actor_rollout_ref.rollout.checkpoint_engine.backend=naive",
            "actor_rollout_ref.rollout.checkpoint_engine.backend=naive: new weights would never reach",
            "Set it to nccl",
            id="separate-without-a-way-for-weights",
        ),
        pytest.param(
            "experiment=math_async_16gpu actor_rollout_ref.actor.ppo_mini_batch_size=32",
            "takes 4 mini-batches (parameter_sync_step) of 32 prompts (actor.ppo_mini_batch_size) between two weight "
            "updates, which is not data.train_batch_size=256",
            "Set data.train_batch_size=128, or updates_per_rollout",
            id="separate-with-a-batch-that-does-not-fit",
        ),
        pytest.param(
            "experiment=gsm8k_1gpu algorithm.adv_estimator=gae",
            "algorithm.adv_estimator=gae needs a critic",
            "or set critic.enable=true and critic.model.path=MODEL",
            id="gae-without-a-critic",
        ),
        pytest.param(
            "experiment=math_8gpu data.train_batch_size=999",
            "ppo_mini_batch_size=${cfpo.divide:${data.train_batch_size},${updates_per_rollout}} "
            "cannot be computed: 999 cannot be divided into 4 equal parts",
            "Choose integers that divide evenly, for example with data.train_batch_size and updates",
            id="a-batch-that-updates-do-not-divide",
        ),
        pytest.param(
            "experiment=math_8gpu data.train_batch_size=abc",
            "cannot be computed: abc cannot be divided into 4 equal parts",
            "Choose integers",
            id="a-batch-that-is-no-number",
        ),
        pytest.param(
            "experiment=math_8gpu run_dir=${no.such.key}",
            "trainer.default_local_dir=${run_dir}/checkpoints cannot be computed: Interpolation key 'no.such.key' not",
            "Correct it or a key that it refers to",
            id="a-reference-to-a-key-that-does-not-exist",
        ),
    ],
)
def test_is_refused_once(overrides, named, way_out, compose):
    [finding] = doctor.failures(doctor.examine_config(compose(*overrides.split())))
    assert named in finding.found
    assert way_out in finding.way_out


@pytest.mark.parametrize("overrides", ["topology=2x8", "trainer.nnodes=2"])
@pytest.mark.parametrize("address", [None, "head:6379"])
def test_nodes_that_cannot_be_used_are_refused_once_on_any_machine(overrides, address, compose, monkeypatch, tmp_path):
    """With a cluster to join or without: the checks of this machine do not repeat it."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("cfpo_verl.doctor.machine._LONGEST_SOCKET", 1000)
    config = compose("experiment=cpu_quickstart", overrides)
    checks = [check for check in doctor.CHECKS if check.name in ("one machine", "ray", "cpus", "gpus")]
    found = [finding for check in checks for finding in doctor._make(check, config)]
    [finding] = doctor.failures(found)
    assert finding.check == "one machine"


@pytest.mark.parametrize(
    "overrides",
    [
        "experiment=math_8gpu actor_rollout_ref.actor.strategy=fsdp",
        "experiment=cpu_quickstart algo=dapo",
        "experiment=math_8gpu_megatron policy_model=qwen3_30b_a3b topology=2x8",
        "experiment=cpu_quickstart policy_loss=gspo",
        "experiment=cpu_quickstart policy_loss=sapo",
        "experiment=math_async_16gpu algo=dapo policy_loss=cfpo",
        "experiment=math_async_16gpu updates_per_rollout=8",
    ],
)
def test_what_can_go_together_is_not_refused(overrides, compose):
    assert doctor.failures(doctor.examine_config(compose(*overrides.split()))) == []


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
