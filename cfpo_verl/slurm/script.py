"""The batch script: what is filled into the template."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined, TemplateError

from cfpo_verl import __version__, run_dir
from cfpo_verl.sites import RAY_ENVIRONMENT, JobError
from cfpo_verl.slurm.cluster import Cluster
from cfpo_verl.train import STOPPED_ON_REQUEST

TEMPLATE = "job.sbatch.j2"
# What the functions that run on the nodes read.
_SHARED_VARIABLES = (
    *("RUN_DIR", "GPUS_PER_NODE", "RAY_CPUS", "NODES_DEADLINE_S", "INTERFACE", "SCRATCH", "LOGS", "CANARY", "TOKEN"),
    *("HOSTS", "HEAD_ADDRESS", "PORT"),
)


@dataclass(frozen=True)
class Job:
    """What one batch script runs.

    Args:
        name: Of the job, as squeue shows it.
        run_dir: Folder of the run; of a sweep, the folder that has the script.
        work_dir: Where the job's commands run, so that relative paths mean what they mean here.
        nodes: How many.
        gpus_per_node: GPUs of each node, logical ones on the CPU.
        needs_gpus: Whether GPUs are asked of SLURM.
        ray_cpus: Logical CPUs of each node for Ray; None for those that the job has.
        environment: Variables on every node, in place before Ray starts.
        points: The run folders of a sweep; empty for a single run.
    """

    name: str
    run_dir: Path
    work_dir: Path
    nodes: int
    gpus_per_node: int
    needs_gpus: bool
    ray_cpus: int | None
    environment: Mapping[str, str]
    points: Sequence[Path] = ()


def gpu_option(cluster: Cluster, gpus_per_node: int) -> str:
    """Return how a step or a job asks for its GPUs.

    Example:
        >>> gpu_option(Cluster(gpu_type="h100"), 8)
        'gpus-per-node=h100:8'
        >>> gpu_option(Cluster(gpu_request="gres"), 4)
        'gres=gpu:4'
    """
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    if cluster.gpu_request == "gres":
        return f"gres=gpu:{kind}{gpus_per_node}"
    return f"{cluster.gpu_request}={kind}{gpus_per_node}"


def asks_for_gpus(cluster: Cluster, job: Job) -> bool:
    """Say whether SLURM is asked for GPUs at all."""
    return job.needs_gpus and cluster.gpu_request != "none"


def sbatch_options(cluster: Cluster, job: Job) -> list[str]:
    """Return the options of sbatch, one for each #SBATCH line."""
    # The script itself writes a log for each attempt; this one has what SLURM says around it.
    log = "slurm-%A_%a.txt" if job.points else "slurm-%j.txt"
    options = [
        f"--job-name={job.name}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        f"--chdir={job.work_dir}",
        f"--output={job.run_dir}/slurm/{log}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{cluster.stop_before_end_s}",
        f"--time={cluster.time}",
    ]
    if asks_for_gpus(cluster, job):
        options.append(f"--{gpu_option(cluster, job.gpus_per_node)}")
    if cluster.exclusive:
        options.append("--exclusive")
    if cluster.cpus_per_node is not None:
        options.append(f"--cpus-per-task={cluster.cpus_per_node}")
    options.append(f"--mem={cluster.memory_per_node}")
    for name in ("partition", "account", "qos", "reservation", "constraint"):
        if value := getattr(cluster, name):
            options.append(f"--{name}={value}")
    if job.points:
        options.append(f"--array=0-{len(job.points) - 1}%{cluster.max_parallel_jobs}")
    return [*options, *cluster.sbatch]


def render(cluster: Cluster, job: Job, template: Path | None = None) -> str:
    """Return the batch script.

    Args:
        cluster: Facts about the cluster, checked.
        job: What it runs.
        template: A template of the user's own instead of ours; it may extend ours.

    Raises:
        JobError: If the template cannot be read, or asks for something that there is not.
    """
    ours = PackageLoader("cfpo_verl.slurm")
    loader = ours if template is None else ChoiceLoader([ours, FileSystemLoader(template.absolute().parent)])
    environment = Environment(
        loader=loader,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    container = cluster.container
    own_mounts = [f"{path}:{path}" for path in dict.fromkeys((job.work_dir, job.run_dir, *job.points))]
    uses_own_python = container.runtime == "none" and not cluster.setup
    what = f"{len(job.points)} runs" if job.points else "one run"
    values = {
        "version": __version__,
        "title": f"{job.name}: {what} on {job.nodes} nodes with {job.gpus_per_node} GPUs each",
        "cluster": cluster,
        "sbatch_options": sbatch_options(cluster, job),
        "points": [str(point) for point in job.points],
        "run_dir": job.run_dir,
        "workdir": job.work_dir,
        "gpus_per_node": job.gpus_per_node,
        "gpu_option": gpu_option(cluster, job.gpus_per_node) if asks_for_gpus(cluster, job) else "",
        "ray_cpus": job.ray_cpus,
        "environment": {**job.environment, **cluster.environment},
        "ray_environment": RAY_ENVIRONMENT,
        "python_path": Path(sys.prefix) / "bin" if uses_own_python else None,
        "mounts": [*own_mounts, *container.mounts],
        "shared_variables": " ".join(_SHARED_VARIABLES),
        "stop_file": run_dir.stop_request_path(Path()).name,
        "stopped_status": STOPPED_ON_REQUEST,
    }
    try:
        return environment.get_template(template.name if template else TEMPLATE).render(values)
    except (TemplateError, OSError) as error:
        raise JobError(
            f"template {template or TEMPLATE}: {type(error).__name__}: {error}. See docs/slurm.md for what it may use"
        ) from error
