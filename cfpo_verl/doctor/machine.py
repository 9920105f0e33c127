"""Checks of folders, checkpoints, disk, CPUs, GPUs, ports and limits, and of the Ray cluster a run would join."""

import os
import resource
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile

import psutil
from omegaconf import DictConfig, OmegaConf

from cfpo_verl.demands import CPUS_PER_GPU, cpus_needed, gpus_needed, has_lora, ray_counts, worker_env
from cfpo_verl.doctor.finding import Finding, failed, ok, warning
from cfpo_verl.doctor.model import count_parameters, local_folder, model_path
from cfpo_verl.files import nearest_folder
from cfpo_verl.mismatch import ResumeError
from cfpo_verl.resume import chosen_checkpoint, describe, find_checkpoint, in_the_way

# Ports that `ray start --head` listens on by default.
RAY_PORTS = {6379: "GCS, --port", 8265: "dashboard, --dashboard-port", 10001: "client server, --ray-client-server-port"}
# Ray warns of connection errors below it, and raises the soft limit to the hard one by itself.
LEAST_OPEN_FILES = 8192
# Ray puts sockets in its temporary folder, and refuses to start if their paths are longer than Linux allows.
_LONGEST_SOCKET = 107
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


def check_run_dir(config: DictConfig) -> Iterator[Finding]:
    """Check that the run folder, or the nearest folder above it that exists, can be written to."""
    if not config.run_dir:
        yield failed("run_dir is not set", "Choose a folder with run_dir=PATH")
        return
    nearest = nearest_folder(config.run_dir)
    if os.path.isfile(nearest):
        yield failed(f"run_dir: {nearest} is a file, not a folder", "Choose another one with run_dir=PATH")
        return
    try:
        # By trying: permissions say nothing about read-only file systems, and root has all of them.
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        yield failed(f"run_dir: {nearest} is not writable ({error.strerror})", "Choose another one with run_dir=PATH")


def check_checkpoints(config: DictConfig) -> Iterator[Finding]:
    """Check that checkpoints are written, and report the step that a run would resume from."""
    trainer, actor = config.trainer, config.actor_rollout_ref.actor
    if actor.checkpoint.async_save:
        yield failed(
            "actor_rollout_ref.actor.checkpoint.async_save=true: only Megatron saves in the background, and verl 0.9 "
            "never completes what it saved there, so that no checkpoint would be usable",
            "Set actor_rollout_ref.actor.checkpoint.async_save=false",
        )
    if trainer.save_freq <= 0 and trainer.device != "cpu":
        yield warning(
            f"trainer.save_freq={trainer.save_freq}: no checkpoint is written, so a run that is stopped starts again "
            "from step 1, and one that ends leaves no model",
            "Set trainer.save_freq to a number of steps",
        )
    for key in ("max_actor_ckpt_to_keep", "max_critic_ckpt_to_keep"):
        if trainer[key] == 1 or trainer.get("remove_previous_ckpt_in_save"):
            yield warning(
                f"trainer.{key}=1: verl removes the only checkpoint before the next one is complete, and a run that is "
                "stopped in between has none",
                f"Set trainer.{key}=2",
            )
    yield from _check_callback(config)
    yield from _check_resume(config)


def _check_callback(config: DictConfig) -> Iterator[Finding]:
    """Check that a run can be stopped on request, and that the user's own checkpoint callback can be loaded."""
    from verl.utils.import_utils import load_class_from_fqn

    name = config.trainer.get("checkpoint_callback_class")
    if not config.trainer.use_v1:
        yield warning(
            "trainer.use_v1=false: the older trainer has no checkpoint callback, so the run cannot be stopped on "
            "request",
            "Set trainer.use_v1=true",
        )
    elif name:
        try:
            load_class_from_fqn(name)
        except (ValueError, ImportError, AttributeError) as error:
            yield failed(f"trainer.checkpoint_callback_class={name}: {error}", "Name a class as package.module.Class")


def _check_resume(config: DictConfig) -> Iterator[Finding]:
    """Check the checkpoint that a run would resume from, and report it."""
    trainer, step = config.trainer, 0
    if trainer.resume_mode not in ("auto", "disable", "resume_path"):
        yield failed(
            f"trainer.resume_mode={trainer.resume_mode} is not known to verl, which would start without loading a "
            "checkpoint",
            "Choose one of: auto, disable, resume_path",
        )
    try:
        found = chosen_checkpoint(config) or find_checkpoint(config)
    except ResumeError as error:
        yield failed(error.found, error.way_out)
        return
    if found is None and trainer.resume_mode == "auto":
        yield warning(
            f"strategy={config.actor_rollout_ref.actor.strategy}: we do not know its checkpoint format, so "
            "verl takes the one named in latest_checkpointed_iteration.txt, complete or not",
            "Use FSDP or Megatron, or name a checkpoint with trainer.resume_mode=resume_path",
        )
    elif found is not None and found.path:
        step = found.step
        yield ok(describe(found))
    elif found is not None and found.skipped:
        yield warning(describe(found), "If there should be a complete one, correct run_dir")
    if trainer.resume_mode in ("disable", "resume_path") and (newer := in_the_way(config, step)):
        names = ", ".join(path.name for path in newer)
        yield warning(
            f"trainer.resume_mode={trainer.resume_mode}: the run will write over {names} when it gets there, and an "
            "interrupted save leaves a mixture of both that looks complete",
            "Choose another run_dir, or rename them first",
        )
    if trainer.total_training_steps is not None and step >= trainer.total_training_steps:
        yield warning(
            f"the run would resume from step {step}, and trainer.total_training_steps={trainer.total_training_steps}: "
            "nothing is left to train",
            "Raise trainer.total_training_steps, or choose another run_dir",
        )


def checkpoint_gb(config: DictConfig, parameters: int) -> float:
    """Estimate the size of one checkpoint of the actor, in GB (10^9 bytes).

    Our estimate: weights in the engine's dtype, Adam's two float32 moments of each trained parameter (with Megatron,
    which trains in mixed precision, float32 weights too), and 2 bytes per parameter of the Hugging Face copy.

    Args:
        config: The whole config.
        parameters: Number of parameters of the model.
    """
    actor = config.actor_rollout_ref.actor
    contents = actor.checkpoint.save_contents
    is_megatron = actor.strategy == "megatron"
    weights = 2 if is_megatron or (actor.get("fsdp_config") or {}).get("model_dtype") != "fp32" else 4
    bytes_per_parameter = 0
    if "model" in contents:
        bytes_per_parameter += weights
    if "optimizer" in contents and not has_lora(config):
        bytes_per_parameter += 12 if is_megatron else 8
    if "hf_model" in contents:
        bytes_per_parameter += 2
    return parameters * bytes_per_parameter / 1e9


def check_disk(config: DictConfig) -> Iterator[Finding]:
    """Check that the disk has room for the checkpoints that are kept at a time."""
    trainer = config.trainer
    folder = local_folder(model_path(config))
    parameters = count_parameters(folder) if folder else None
    free_gb = shutil.disk_usage(nearest_folder(str(trainer.default_local_dir))).free / 1e9
    if trainer.save_freq <= 0 or parameters is None:
        yield ok(f"{free_gb:,.1f} GB free")
        return
    one_gb, kept = checkpoint_gb(config, parameters), trainer.max_actor_ckpt_to_keep
    if kept is not None:
        kept = max(kept, 2)  # verl writes the next one before it removes the last
    elif trainer.total_training_steps is not None:
        kept = -(-trainer.total_training_steps // trainer.save_freq)
    what = f"a checkpoint takes about {one_gb:,.1f} GB, {free_gb:,.1f} GB are free in {trainer.default_local_dir}"
    way_out = "Set trainer.max_actor_ckpt_to_keep=2, a larger trainer.save_freq, or a run_dir with more room"
    if one_gb * (kept or 1) > free_gb:
        yield failed(f"{what}, and {kept or 1} are kept", way_out)
    elif kept is None:
        yield warning(f"{what}, and all are kept (trainer.max_actor_ckpt_to_keep is not set)", way_out)
    else:
        yield ok(f"{what}, {kept} are kept")


def joined_cluster(config: DictConfig, env: Mapping[str, str]) -> str | None:
    """Return the address of the Ray cluster that verl's ray.init would join, None if it would start one here.

    Args:
        config: The whole config.
        env: The environment of the driver.
    """
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address") or env.get("RAY_ADDRESS")
    if address == "local":
        return None
    if address and address != "auto":
        return str(address)
    # `ray start` on this machine writes the address here; ray.init joins that cluster by default.
    file = Path(env.get("RAY_TMPDIR") or "/tmp", "ray", "ray_current_cluster")
    return file.read_text().strip() if file.is_file() else None


def check_ray(config: DictConfig) -> Iterator[Finding]:
    """Check that Ray can be started, or which cluster the run joins."""
    cluster, counts = joined_cluster(config, os.environ), ray_counts(config)
    if cluster is None:
        folder = os.environ.get("RAY_TMPDIR") or "/tmp"
        length = len(os.path.join(folder, _SOCKET))
        if length > _LONGEST_SOCKET:
            yield failed(
                f"RAY_TMPDIR={folder}: Ray's sockets would have paths of {length} characters, and Linux allows "
                f"{_LONGEST_SOCKET}",
                "Set RAY_TMPDIR to a shorter path on this machine, such as /tmp",
            )
        if config.trainer.nnodes == 1:
            yield ok("Ray will be started on this machine")
        elif not counts:  # check_one_machine refuses them
            yield failed(
                f"trainer.nnodes={config.trainer.nnodes}, but there is no Ray cluster to join: Ray would be started on "
                "this machine only, and the run would wait for the other nodes forever",
                "Start a cluster with `ray start` on every node, then set RAY_ADDRESS",
            )
        return
    if counts and config.trainer.nnodes > 1:
        return  # check_one_machine refuses that
    if counts:
        yield failed(
            f"the run would join the Ray cluster at {cluster}, and ray_kwargs.ray_init sets {' and '.join(counts)}, "
            "which ray.init then refuses",
            "Set them to null; or start Ray on this machine with +ray_kwargs.ray_init.address=local",
        )
    elif not OmegaConf.select(config, "ray_kwargs.ray_init.address") and not os.environ.get("RAY_ADDRESS"):
        yield warning(
            f"a Ray cluster is running on this machine ({cluster}), and the run will join it",
            "If it should not: `ray stop`, or +ray_kwargs.ray_init.address=local",
        )
    else:
        yield ok(f"the run joins the Ray cluster at {cluster}; `cfpo-verl doctor --ray` checks its nodes")


def check_cpus(config: DictConfig) -> Iterator[Finding]:
    """Check that Ray has a logical CPU for every actor: those it cannot place wait forever, without a message."""
    if joined_cluster(config, os.environ) is not None:
        yield ok("not checked here: `cfpo-verl doctor --ray` counts the CPUs of the Ray cluster")
        return
    from ray._private.utils import get_num_cpus  # as ray.init counts, with the limits of a container

    needed, asked = cpus_needed(config), config.ray_kwargs.ray_init.get("num_cpus")
    available = int(get_num_cpus()) if asked is None else asked
    # Several nodes without a cluster are refused by check_ray or check_one_machine.
    if available < needed and config.trainer.nnodes == 1:
        units = config.transfer_queue.backend.SimpleStorage.num_data_storage_units
        yield failed(
            f"the run's actors need {needed} logical CPUs (TransferQueue 1 + {units} storage units, {CPUS_PER_GPU} for "
            f"each GPU, 1 to place the others), and Ray will have {available}: the run would hang without a message",
            f"Set ray_kwargs.ray_init.num_cpus={needed} (it may exceed the number of cores), or fewer "
            "transfer_queue.backend.SimpleStorage.num_data_storage_units",
        )
    else:
        yield ok(f"{needed} logical CPUs needed, {available} available")


def check_gpus(config: DictConfig) -> Iterator[Finding]:
    """Check that there are as many GPUs as the run takes."""
    if joined_cluster(config, os.environ) is not None:
        yield ok("not checked here: `cfpo-verl doctor --ray` counts the GPUs of the Ray cluster")
        return
    needed, asked = gpus_needed(config), config.ray_kwargs.ray_init.get("num_gpus")
    if asked is not None:
        available = asked
    elif config.trainer.device == "cuda":
        import torch

        available = torch.cuda.device_count()
    else:
        yield ok(f"{needed} devices needed, not counted for trainer.device={config.trainer.device}")
        return
    # Several nodes without a cluster are refused by check_ray or check_one_machine.
    if available < needed and config.trainer.nnodes == 1:
        yield failed(
            f"the run takes {needed} GPUs, and {'Ray is given' if asked is not None else 'this machine has'} "
            f"{available}",
            "Set trainer.n_gpus_per_node, or check a run on other machines with `cfpo-verl doctor --elsewhere`",
        )
    else:
        yield ok(f"{needed} GPUs needed, {available} available")


def check_ports(config: DictConfig) -> Iterator[Finding]:
    """Check that Ray's default ports are free: `ray start --head` fails on one that is not."""
    if joined_cluster(config, os.environ) is not None:
        return  # that cluster uses them
    for port, what in RAY_PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
                continue
            except OSError:
                name, _comma, option = what.partition(", ")
        taken = f"port {port} ({name}) is in use by {_listener(port)}"
        if config.trainer.nnodes > 1:
            yield warning(taken, f"`ray start --head` needs another one, see {option}")
        else:
            yield ok(f"{taken}; Ray chooses another one when the run starts it")


def _listener(port: int) -> str:
    try:
        connections = psutil.net_connections("tcp")
        listening = [found for found in connections if found.laddr and found.laddr.port == port and found.pid]
        return f"{psutil.Process(listening[0].pid).name()} (pid {listening[0].pid})" if listening else "another process"
    except psutil.Error:
        return "another process"


def check_limits(config: DictConfig) -> Iterator[Finding]:
    """Check how many files a process may open: every connection between Ray's processes counts as one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < LEAST_OPEN_FILES:
        yield warning(
            f"ulimit -Hn is {hard}: Ray needs at least {LEAST_OPEN_FILES} open files, and large runs 65535",
            "Raise nofile in /etc/security/limits.conf, or ask your administrator; in a container: --ulimit "
            "nofile=65535",
        )


def check_visible_devices(config: DictConfig) -> Iterator[Finding]:
    """Check the variables that select devices, by the rules of verl's workers."""
    yield from judge_visible_devices(worker_env(config))


def judge_visible_devices(env: Mapping[str, str]) -> Iterator[Finding]:
    """Find variables of an environment that disagree about the devices."""
    cuda, hip, rocr = (env.get(f"{name}_VISIBLE_DEVICES") for name in ("CUDA", "HIP", "ROCR"))
    if hip and cuda and hip != cuda:
        yield failed(
            f"HIP_VISIBLE_DEVICES={hip} and CUDA_VISIBLE_DEVICES={cuda} differ, which verl's workers refuse",
            "unset HIP_VISIBLE_DEVICES (on NVIDIA), or give both the same value",
        )
    if rocr and (cuda or hip):
        yield failed(
            f"ROCR_VISIBLE_DEVICES={rocr} is set together with {'CUDA' if cuda else 'HIP'}_VISIBLE_DEVICES, which "
            "verl's workers refuse",
            "unset ROCR_VISIBLE_DEVICES",
        )
    elif rocr or (hip and not cuda):
        yield ok(f"devices are selected by {'ROCR' if rocr else 'HIP'}_VISIBLE_DEVICES, which is for AMD GPUs")
