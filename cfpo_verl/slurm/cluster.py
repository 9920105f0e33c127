"""Facts about a site's SLURM cluster, from a file of the config group `cluster`."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from cfpo_verl import sites
from cfpo_verl.sites import JobError

RUNTIMES = ("none", "pyxis", "apptainer")
GPU_REQUESTS = ("gpus-per-node", "gres", "none")
# Only SLURM's unambiguous forms. Without quotes, YAML reads 24:00:00 as the number 86400, which SLURM takes as
# minutes.
_TIME = re.compile(r"\d+:\d{2}:\d{2}|\d+-\d+(:\d{2}(:\d{2})?)?")


@dataclass
class Container:
    """The container that everything on the nodes runs in.

    Args:
        runtime: One of `RUNTIMES`.
        image: Image in a form the runtime accepts: docker://... or the path of a .sqsh or .sif file.
        mounts: Additional mounts, as HOST:CONTAINER.
    """

    runtime: str = "none"
    image: str | None = None
    mounts: list[str] = field(default_factory=list)


@dataclass
class Cluster:
    """Facts about a SLURM cluster. hydra_configs/cluster/example.yaml explains each key."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    time: str = "24:00:00"
    exclusive: bool = True
    gpu_request: str = "gpus-per-node"
    gpu_type: str | None = None
    cpus_per_node: int | None = None
    memory_per_node: str = "0"
    sbatch: list[str] = field(default_factory=list)
    shared_dir: str | None = None
    scratch_dir: str = "/tmp"
    network_interface: str | None = None
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    container: Container = field(default_factory=Container)
    nodes_deadline_s: int = 900
    stop_before_end_s: int = 900
    max_requeues: int = 20
    max_parallel_jobs: int = 4


def check(cluster: Cluster) -> list[str]:
    """Return one message for each invalid value, with the rule and the way out."""
    container = cluster.container
    rules: list[tuple[bool, str]] = [
        (
            cluster.gpu_request in GPU_REQUESTS,
            f"cluster.gpu_request={cluster.gpu_request!r}: choose one of {', '.join(GPU_REQUESTS)}",
        ),
        (
            container.runtime in RUNTIMES,
            f"cluster.container.runtime={container.runtime!r}: choose one of {', '.join(RUNTIMES)}",
        ),
        (
            bool(container.image) == (container.runtime != "none"),
            f"cluster.container.image={container.image!r} with runtime={container.runtime!r}: set both an "
            "image and a runtime, or neither",
        ),
        (
            _TIME.fullmatch(cluster.time) is not None,
            f"cluster.time={cluster.time!r}: use [days-]hours:minutes:seconds, for example 24:00:00, in quotes in YAML",
        ),
        (
            cluster.network_interface is None or sites.INTERFACE.fullmatch(cluster.network_interface) is not None,
            f"cluster.network_interface={cluster.network_interface!r}: give the name of a network interface, as "
            "`ip -4 addr` on a node shows it, for example ib0",
        ),
        (
            cluster.cpus_per_node is None or cluster.cpus_per_node > 0,
            f"cluster.cpus_per_node={cluster.cpus_per_node}: give a number above 0, or null for all CPUs of the node",
        ),
        (
            cluster.cpus_per_node is not None or cluster.exclusive,
            "cluster.cpus_per_node=null with exclusive=false: SLURM would allocate only one CPU. Set "
            "cluster.cpus_per_node",
        ),
        (
            cluster.max_requeues >= 0,
            f"cluster.max_requeues={cluster.max_requeues}: give 0 (never) or more",
        ),
        (
            cluster.max_parallel_jobs > 0,
            f"cluster.max_parallel_jobs={cluster.max_parallel_jobs}: give 1 or more",
        ),
        (
            cluster.nodes_deadline_s > 0,
            f"cluster.nodes_deadline_s={cluster.nodes_deadline_s}: give seconds above 0",
        ),
        # SLURM's own limit for --signal.
        (
            0 < cluster.stop_before_end_s <= 65535,
            f"cluster.stop_before_end_s={cluster.stop_before_end_s}: give seconds from 1 to 65535",
        ),
        (
            cluster.scratch_dir.startswith("/") and len(cluster.scratch_dir) <= 20,
            f"cluster.scratch_dir={cluster.scratch_dir!r}: give an absolute path of at most 20 characters on the "
            "node's own disk; it contains Ray's sockets, whose paths Linux limits to 107 characters",
        ),
        (
            cluster.shared_dir is None or cluster.shared_dir.startswith("/"),
            f"cluster.shared_dir={cluster.shared_dir!r}: give an absolute path",
        ),
    ]
    problems = [message for holds, message in rules if not holds]
    problems += [
        f"cluster.environment.{name}: not a valid name of an environment variable"
        for name in cluster.environment
        if not sites.VARIABLE.fullmatch(name)
    ]
    # Each value becomes one line of the script; a second line would run as a separate command, or be lost.
    lines: list[tuple[str, list[str]]] = [
        *((name, [str(getattr(cluster, name) or "")]) for name in _ONE_LINE),
        *((name, getattr(cluster, name)) for name in ("sbatch", "modules", "setup")),
        ("container", [container.image or "", *container.mounts]),
        ("environment", list(cluster.environment.values())),
    ]
    problems += [
        f"cluster.{name}: {value!r} contains a line break; each value must be one line"
        for name, values in lines
        for value in values
        if len(value.splitlines()) > 1
    ]
    problems += [
        f"cluster.sbatch: {line!r}: options of sbatch begin with --, for example --mail-type=END"
        for line in cluster.sbatch
        if not line.startswith("--")
    ]
    return problems


_ONE_LINE = ("partition", "account", "qos", "reservation", "constraint", "gpu_type", "memory_per_node")


GROUP = sites.Group("cluster", Cluster, "cfpo-verl slurm", check)


def check_run_dir(cluster: Cluster, run_dir: Path) -> None:
    """Reject a run folder that the nodes do not share.

    Raises:
        JobError: If it is outside shared_dir, or contains characters that sbatch or the shell would interpret.
    """
    if cluster.shared_dir is not None and not run_dir.is_relative_to(cluster.shared_dir):
        raise JobError(
            f"run_dir={run_dir} is not in cluster.shared_dir={cluster.shared_dir}, so not every node can access it. "
            f"Choose run_dir={cluster.shared_dir}/..."
        )
    # In the names of its log files sbatch expands patterns such as %x and interprets backslashes.
    odd = sorted(set(str(run_dir)) & set("%\\\"'\n$`"))
    if odd:
        raise JobError(
            f"run_dir={run_dir}: SLURM or the shell would interpret {' '.join(map(repr, odd))}. Choose another name"
        )
    if cluster.scratch_dir and run_dir.is_relative_to(cluster.scratch_dir) and cluster.shared_dir is None:
        raise JobError(
            f"run_dir={run_dir} is in cluster.scratch_dir={cluster.scratch_dir}, which is local to each node. "
            "Choose a run_dir on a file system that all nodes share, or set cluster.shared_dir if this one is"
        )
