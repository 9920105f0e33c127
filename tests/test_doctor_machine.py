"""cfpo_verl.doctor.machine: folders, checkpoints, disk, Ray, CPUs, GPUs, ports and limits of one machine."""

import os
import resource
import shutil
import socket
from pathlib import Path

import pytest
import torch
import verl
from doctor_configs import failed, gpu_config, ok, quickstart, warnings
from omegaconf import open_dict
from test_checkpoints import save
from test_doctor_model import write_weights

from cfpo_verl import demands
from cfpo_verl.config_groups import platform_env
from cfpo_verl.doctor import machine


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, tmp_path):
    """A machine on which no Ray cluster has been started."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(machine, "_LONGEST_SOCKET", 1000)


@pytest.fixture
def config(tmp_path):
    return quickstart(f"run_dir={tmp_path}/run")


@pytest.fixture
def saving(tmp_path):
    """A config for GPUs that saves every 10 of 100 steps a model of 1000 parameters."""
    config = gpu_config(f"trainer.default_local_dir={tmp_path}/checkpoints", "trainer.total_training_steps=100")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    write_weights(tmp_path / "model", weight=[10, 100])
    config.actor_rollout_ref.model.path = str(tmp_path / "model")
    return config


def test_run_dir_rules(config, tmp_path):
    config.run_dir = f"{tmp_path}/new/folder"
    assert list(machine.check_run_dir(config)) == []
    (tmp_path / "file").touch()
    config.run_dir = f"{tmp_path}/file/run"
    [problem] = failed(machine.check_run_dir(config))
    assert problem == f"run_dir: {tmp_path}/file is a file, not a folder. Choose another one with run_dir=PATH"
    config.run_dir = None
    assert failed(machine.check_run_dir(config)) == ["run_dir is not set. Choose a folder with run_dir=PATH"]


def test_a_run_dir_that_may_not_be_looked_at(config, monkeypatch):
    # A fake at the edge: root, who may run the tests, may look everywhere.
    def deny(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    config.run_dir = "/secret/run"
    monkeypatch.setattr("os.stat", deny)
    monkeypatch.setattr("os.lstat", deny)
    monkeypatch.setattr(machine, "TemporaryFile", deny)
    assert failed(machine.check_run_dir(config)) == [
        "run_dir: / is not writable (Permission denied). Choose another one with run_dir=PATH"
    ]


def test_nothing_is_saved_in_the_background(saving):
    assert failed(machine.check_checkpoints(saving)) == []
    saving.actor_rollout_ref.actor.checkpoint.async_save = True
    [problem] = failed(machine.check_checkpoints(saving))
    assert "async_save=true: only Megatron saves in the background, and verl 0.9 never completes" in problem


def test_nothing_in_verl_completes_what_megatron_saves_in_the_background():
    """The older trainer asks a method of the workers that no worker has; the default one does not even ask."""
    sources = {path: path.read_text() for path in Path(verl.__file__).parent.rglob("*.py")}
    assert any("add_finalize_fn" in text for text in sources.values())
    assert not any("maybe_finalize_async_calls" in text for text in sources.values())
    assert not any("def async_calls_finalize_fn_exec" in text for text in sources.values())


def test_warns_of_keeping_a_single_checkpoint(saving):
    assert warnings(machine.check_checkpoints(saving)) == []
    saving.trainer.max_actor_ckpt_to_keep = 1
    [warning] = warnings(machine.check_checkpoints(saving))
    assert "max_actor_ckpt_to_keep=1: verl removes the only checkpoint before the next one is complete" in warning
    saving.trainer.max_actor_ckpt_to_keep = 2
    assert warnings(machine.check_checkpoints(saving)) == []


def test_warns_of_a_run_that_saves_nothing(saving, config):
    assert warnings(machine.check_checkpoints(config)) == []  # the quickstart is a demonstration
    saving.trainer.save_freq = -1
    [warning] = warnings(machine.check_checkpoints(saving))
    assert "trainer.save_freq=-1: no checkpoint is written" in warning


def test_the_checkpoint_callback(saving):
    saving.trainer.checkpoint_callback_class = "cfpo_verl.stop_request.NoSuchClass"
    [problem] = failed(machine.check_checkpoints(saving))
    assert "checkpoint_callback_class=cfpo_verl.stop_request.NoSuchClass: Class 'NoSuchClass' not found" in problem
    saving.trainer.checkpoint_callback_class = "cfpo_verl.stop_request.StopOnRequest"
    assert failed(machine.check_checkpoints(saving)) == []
    saving.trainer.use_v1 = False
    [warning] = warnings(machine.check_checkpoints(saving))
    assert "the run cannot be stopped on request" in warning


def test_where_a_run_goes_on(saving, tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 20, world_size=8)
    assert ok(machine.check_checkpoints(saving)) == [f"resumes from step 20, {folder}/global_step_20"]
    (folder / "latest_checkpointed_iteration.txt").write_text("")
    (save(folder, 30, world_size=8) / "data.pt").unlink()
    [found] = ok(machine.check_checkpoints(saving))
    assert "resumes from step 20" in found
    assert "skips incomplete checkpoints: global_step_30 (unfinished: data.pt is missing)" in found
    saving.trainer.total_training_steps = 20
    [warning] = warnings(machine.check_checkpoints(saving))
    assert "resume from step 20, and trainer.total_training_steps=20: nothing is left to train" in warning
    (folder / "global_step_20" / "data.pt").unlink()
    [warning] = warnings(machine.check_checkpoints(saving))
    assert "starts at step 1, because no save was finished" in warning
    (folder / "global_step_20" / "actor" / "model_world_size_8_rank_3.pt").write_text("")
    torch.save({}, folder / "global_step_20" / "data.pt")
    [problem] = failed(machine.check_checkpoints(saving))
    assert "no checkpoint is complete, and these were, but have been damaged since" in problem
    assert f"{folder}/global_step_20 (actor/model_world_size_8_rank_3.pt is empty)" in problem
    saving.trainer.resume_mode = "disable"
    [warning] = warnings(machine.check_checkpoints(saving))
    assert "resume_mode=disable: the run will write over global_step_20, global_step_30 when it gets there" in warning
    saving.trainer.default_local_dir = str(tmp_path / "other")
    assert list(machine.check_checkpoints(saving)) == []


def test_a_checkpoint_of_other_ranks(saving, tmp_path):
    save(tmp_path / "checkpoints", 20, world_size=4)
    [problem] = failed(machine.check_checkpoints(saving))
    assert "was saved by 4 ranks, and FSDP can load it only on the same number: this run has 8" in problem
    assert "Run on 4 GPUs" in problem


def test_a_checkpoint_to_resume_from(saving, tmp_path):
    saving.trainer.resume_mode = "resume_path"
    saving.trainer.resume_from_path = f"{tmp_path}/global_step_5/"
    [problem] = failed(machine.check_checkpoints(saving))
    assert "global_step_5/ is not a folder global_step_<N>" in problem
    checkpoint = save(tmp_path, 5, world_size=8)
    assert failed(machine.check_checkpoints(saving)) == []
    (checkpoint / "actor" / "optim_world_size_8_rank_7.pt").unlink()
    [problem] = failed(machine.check_checkpoints(saving))
    assert "is incomplete (damaged: actor/optim_world_size_8_rank_7.pt is missing)" in problem
    shutil.rmtree(checkpoint)
    save(tmp_path, 5, world_size=2)
    [problem] = failed(machine.check_checkpoints(saving))
    assert "was saved by 2 ranks" in problem
    saving.trainer.resume_mode = "always"
    assert "resume_mode=always is not known" in failed(machine.check_checkpoints(saving))[0]


def test_an_engine_whose_checkpoints_are_not_known(saving):
    saving.actor_rollout_ref.actor.strategy = "torchtitan"
    [warning] = warnings(machine.check_checkpoints(saving))
    assert "strategy=torchtitan: we do not know its checkpoint format, so verl takes the one named" in warning


def test_size_of_a_checkpoint(saving):
    # 4 bytes of weights and 8 of moments; with Megatron 2 and 12; 2 of the Hugging Face copy.
    assert machine.checkpoint_gb(saving, 10**9) == 12
    saving.actor_rollout_ref.actor.checkpoint.save_contents = ["model", "hf_model"]
    assert machine.checkpoint_gb(saving, 10**9) == 6
    assert machine.checkpoint_gb(gpu_config("model_engine=megatron"), 10**9) == 14
    assert machine.checkpoint_gb(gpu_config("actor_rollout_ref.model.lora_rank=8"), 10**9) == 4


def test_room_for_checkpoints(saving, monkeypatch):
    # 1000 parameters: 12,000 bytes, 10 checkpoints of them 120,000.
    free = [119_999]
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 0, free[0]))
    [problem] = failed(machine.check_disk(saving))
    assert problem.startswith("a checkpoint takes about 0.0 GB, 0.0 GB are free")
    assert "and 10 are kept" in problem
    saving.trainer.max_actor_ckpt_to_keep = 1  # and one more while the next is written
    assert "2 are kept" in ok(machine.check_disk(saving))[0]
    free[0] = 23_999
    assert len(failed(machine.check_disk(saving))) == 1
    saving.trainer.max_actor_ckpt_to_keep = saving.trainer.total_training_steps = None
    assert "all are kept" in warnings(machine.check_disk(saving))[0]


def test_a_cluster_that_is_meant_and_one_that_is_not(config, monkeypatch, tmp_path):
    assert ok(machine.check_ray(config)) == ["Ray will be started on this machine"]
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    [problem] = failed(machine.check_ray(config))
    assert (
        "the run would join the Ray cluster at 10.0.0.1:6379, and ray_kwargs.ray_init sets num_cpus and num_gpus"
        in problem
    )
    config.ray_kwargs.ray_init.num_cpus = config.ray_kwargs.ray_init.num_gpus = None
    [warning] = warnings(machine.check_ray(config))
    assert "a Ray cluster is running on this machine (10.0.0.1:6379), and the run will join it" in warning
    with open_dict(config):
        config.ray_kwargs.ray_init.address = "local"
    assert ok(machine.check_ray(config)) == ["Ray will be started on this machine"]
    config.ray_kwargs.ray_init.address = None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert ok(machine.check_ray(config))[0].startswith("the run joins the Ray cluster at head:6379")


def test_a_temporary_folder_that_is_too_long_for_rays_sockets(config, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + "x" * 31)
    monkeypatch.setattr(machine, "_LONGEST_SOCKET", 107)
    [problem] = failed(machine.check_ray(config))
    # 40 of the folder, and 68 of /ray/session_<date>_<time>_<microseconds>_<pid>/sockets/plasma_store.
    assert problem.startswith(f"RAY_TMPDIR=/scratch/{'x' * 31}: Ray's sockets would have paths of 108 characters")
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + "x" * 30)
    assert failed(machine.check_ray(config)) == []


def test_several_nodes_without_a_cluster():
    [problem] = failed(machine.check_ray(gpu_config("trainer.nnodes=2")))
    assert "trainer.nnodes=2, but there is no Ray cluster to join" in problem


def test_logical_cpus(config):
    # TransferQueue's controller and 1 storage unit, 3 for the GPU, 1 to place the others.
    assert demands.cpus_needed(config) == 6
    assert ok(machine.check_cpus(config)) == ["6 logical CPUs needed, 64 available"]
    config.ray_kwargs.ray_init.num_cpus = 5
    [problem] = failed(machine.check_cpus(config))
    assert "need 6 logical CPUs (TransferQueue 1 + 1 storage units, 3 for each GPU" in problem
    assert "Ray will have 5: the run would hang" in problem
    assert "Set ray_kwargs.ray_init.num_cpus=6" in problem


@pytest.mark.parametrize(
    ("overrides", "cpus", "gpus"),
    [
        # 1 controller + 8 storage units + 3 x 8 GPUs + 1.
        ([], 34, 8),
        (["trainer.use_v1=false"], 25, 8),
        (["trainer.nnodes=2"], 58, 16),
        # A reward model on 4 GPUs of its own.
        (
            [
                "reward.reward_model.enable=true",
                "reward.reward_model.enable_resource_pool=true",
                "reward.reward_model.nnodes=1",
                "reward.reward_model.n_gpus_per_node=4",
            ],
            46,
            12,
        ),
        # 4 GPUs that only generate, with 2 CPUs each.
        (
            [
                "trainer.v1.trainer_mode=separate_async",
                "actor_rollout_ref.rollout.nnodes=1",
                "actor_rollout_ref.rollout.n_gpus_per_node=4",
            ],
            42,
            12,
        ),
    ],
)
def test_what_a_run_takes(overrides, cpus, gpus):
    config = gpu_config(*overrides)
    assert (demands.cpus_needed(config), demands.gpus_needed(config)) == (cpus, gpus)


def test_too_few_cores_for_verls_defaults(monkeypatch):
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda: 16)
    [problem] = failed(machine.check_cpus(gpu_config()))
    assert "need 34 logical CPUs (TransferQueue 1 + 8 storage units" in problem
    assert "Ray will have 16" in problem


@pytest.mark.stack
def test_verl_and_transfer_queue_hold_as_many_cpus(run_python):
    """In a real Ray: what is left of 64 CPUs once TransferQueue with 3 units and a pool of 2 GPUs are there."""
    code = """
import time, ray
ray.init(address="local", num_cpus=64, num_gpus=2, include_dashboard=False, log_to_driver=False)
import transfer_queue as tq
from omegaconf import OmegaConf
from verl.single_controller.ray import ResourcePoolManager
storage = {"storage_backend": "SimpleStorage", "SimpleStorage": {"num_data_storage_units": 3}}
tq.init(OmegaConf.create({"backend": storage}))
pools = ResourcePoolManager(resource_pool_spec={"global_pool": [2]}, mapping={})
pools.create_resource_pool()
pools.resource_pool_dict["global_pool"].get_placement_groups(device_name="cpu")
time.sleep(2)
print("left", ray.available_resources()["CPU"])
tq.close()
ray.shutdown()
"""
    result = run_python(code, **platform_env("cpu"), RAY_TMPDIR="/tmp")
    # 64 - (1 controller + 3 storage units) - 2 GPUs x 3.
    assert "left 54.0" in result.stdout, result.stderr[-3000:]


def test_gpus(config, monkeypatch):
    assert ok(machine.check_gpus(config)) == ["1 GPUs needed, 1 available"]
    config.ray_kwargs.ray_init.num_gpus = 0
    assert "the run takes 1 GPUs, and Ray is given 0" in failed(machine.check_gpus(config))[0]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    [problem] = failed(machine.check_gpus(gpu_config()))
    assert "the run takes 8 GPUs, and this machine has 4" in problem
    assert failed(machine.check_gpus(gpu_config("trainer.n_gpus_per_node=4"))) == []


def test_a_cluster_decides_about_cpus_and_gpus(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert failed([*machine.check_cpus(gpu_config()), *machine.check_gpus(gpu_config())]) == []


def test_a_port_of_ray_in_use(config, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(machine, "RAY_PORTS", {port: "a test, --port"})
        [line] = ok(machine.check_ports(config))
        [warning] = warnings(machine.check_ports(gpu_config("trainer.nnodes=2")))
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
        assert list(machine.check_ports(config)) == []
    assert line.startswith(f"port {port} (a test) is in use by ")
    assert f"(pid {os.getpid()})" in line
    assert warning.endswith("`ray start --head` needs another one, see --port")


def test_open_files(config, monkeypatch):
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: limits[-1])
    [warning] = warnings(machine.check_limits(config))
    assert warning.startswith("ulimit -Hn is 4096: Ray needs at least 8192 open files")
    limits.append((1024, resource.RLIM_INFINITY))  # Ray raises the soft limit by itself
    assert warnings(machine.check_limits(config)) == []


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "1"}, "HIP_VISIBLE_DEVICES=1 and CUDA_VISIBLE_DEVICES=0"),
        (
            {"CUDA_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "0"},
            "ROCR_VISIBLE_DEVICES=0 is set together with CUDA_",
        ),
        ({"HIP_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "0"}, "ROCR_VISIBLE_DEVICES=0 is set together with HIP_"),
    ],
)
def test_variables_that_disagree_about_the_devices(env, message):
    [problem] = failed(machine.judge_visible_devices(env))
    assert problem.startswith(message)


def test_verls_workers_refuse_the_same_variables(monkeypatch):
    from verl.single_controller.base.worker import Worker

    def refused(**env):
        for name in ("CUDA", "HIP", "ROCR"):
            monkeypatch.delenv(f"{name}_VISIBLE_DEVICES", raising=False)
        for name, value in env.items():
            monkeypatch.setenv(f"{name}_VISIBLE_DEVICES", value)
        ours = failed(machine.judge_visible_devices(os.environ))
        try:
            Worker._setup_env_cuda_visible_devices(object.__new__(Worker))
        except (AssertionError, ValueError):
            return True, bool(ours)
        return False, bool(ours)

    assert refused(CUDA="0,1") == (False, False)
    assert refused(CUDA="0", HIP="0") == (False, False)
    assert refused(ROCR="0") == (False, False)
    assert refused(CUDA="0", HIP="1") == (True, True)
    assert refused(CUDA="0", ROCR="0") == (True, True)
    assert refused(HIP="0", ROCR="0") == (True, True)


def test_the_workers_environment_counts(config, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with open_dict(config):
        config.ray_kwargs.ray_init.runtime_env.env_vars.ROCR_VISIBLE_DEVICES = "0"
    assert len(failed(machine.check_visible_devices(config))) == 1
