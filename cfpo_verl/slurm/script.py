"""The batch script, rendered from a Jinja2 template."""

import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

from cfpo_verl import __version__, run_dir
from cfpo_verl.files import reading
from cfpo_verl.sites import RAY_ENVIRONMENT, JobError
from cfpo_verl.slurm.cluster import Cluster
from cfpo_verl.train import STOPPED_ON_REQUEST

TEMPLATE = "job.sbatch.j2"
# Variables that the script's functions on the nodes use.
_SHARED_VARIABLES = (
    *("RUN_DIR", "GPUS_PER_NODE", "RAY_CPUS", "NODES_DEADLINE_S", "INTERFACE", "SCRATCH", "LOGS", "CANARY", "TOKEN"),
    *("HOSTS", "HEAD_ADDRESS", "PORT"),
)


@dataclass(frozen=True)
class Job:
    """The run, or the sweep, of one batch script.

    Args:
        name: Job name in SLURM.
        run_dir: Run folder; for a sweep, the folder that contains the script.
        work_dir: Working directory of the job, from which relative paths start.
        nodes: Number of nodes.
        gpus_per_node: GPUs per node, logical ones on the CPU.
        needs_gpus: Whether the run uses real GPUs.
        ray_cpus: Logical CPUs per node for Ray; None to use the CPUs allocated to the job.
        environment: Environment variables on every node, set before Ray starts.
        points: Run folders of a sweep; empty for a single run.
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
    """Return the option, without --, by which a job or a step requests its GPUs.

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
    """Return whether GPUs are requested from SLURM."""
    return job.needs_gpus and cluster.gpu_request != "none"


def sbatch_options(cluster: Cluster, job: Job) -> list[str]:
    """Return sbatch's options, one per #SBATCH line."""
    # The script logs each attempt to a file of its own; this file gets SLURM's messages.
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
        cluster: Validated facts about the cluster.
        job: The job to run.
        template: The user's template, which may extend ours; None for ours.

    Raises:
        JobError: If the user's template fails; the message names the line.
        FileError: If the user's template cannot be read.
    """
    loaders: list[BaseLoader] = [PackageLoader("cfpo_verl.slurm")]
    if template is not None:
        with reading(template):
            template.read_text(encoding="utf-8")
        loaders.append(FileSystemLoader(template.absolute().parent))
    environment = Environment(
        loader=ChoiceLoader(loaders),
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
    runs = f"{len(job.points)} runs" if job.points else "one run"
    values = {
        "version": __version__,
        "title": f"{job.name}: {runs} on {job.nodes} nodes with {job.gpus_per_node} GPUs each",
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
    if template is None:
        return environment.get_template(TEMPLATE).render(values)
    try:
        return environment.get_template(template.name).render(values)
    except Exception as error:  # a template can raise anything, such as a division by zero
        # Jinja2 adds frames with the lines of the template to the traceback.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(template.absolute())]
        line = f"line {lines[-1]}: " if lines else ""
        raise JobError(
            f"{template}: {line}{type(error).__name__}: {error}. See docs/slurm.md for the values a template can use"
        ) from error
