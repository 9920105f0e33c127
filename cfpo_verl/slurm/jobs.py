"""Write what a job needs into its run folder, and find the jobs and logs of a run folder.

slurm/job.sbatch              the batch script; for a sweep, in the sweep's folder
slurm/config.yaml             the resolved config that the job trains; later edits of its sources do not affect it
slurm/manifest.json           overrides, versions, checksums
slurm/points.txt              the run folders of a sweep, in the sweep's folder
slurm/jobs.jsonl              the submitted jobs
slurm/slurm-<job>.txt         SLURM's own messages
slurm/job-<job>/attempt-<n>/  logs: job.txt, driver.txt, ray-<node>.txt

A folder may have several jobs in succession, and a job several attempts.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from cfpo_verl import sites
from cfpo_verl.composing import compose, explained
from cfpo_verl.demands import worker_variables
from cfpo_verl.files import reading, write_atomically, writing
from cfpo_verl.run_dir import package_versions, point_dir
from cfpo_verl.sites import JobError
from cfpo_verl.slurm import client
from cfpo_verl.slurm import cluster as clusters
from cfpo_verl.slurm.cluster import Cluster
from cfpo_verl.slurm.script import Job, render

_FOLDER = "slurm"
SCRIPT, CONFIG, MANIFEST, JOBS = "job.sbatch", "config.yaml", "manifest.json", "jobs.jsonl"
POINTS = "points.txt"


@dataclass(frozen=True)
class Run:
    """One run of a job.

    Args:
        overrides: The overrides that compose it.
        config: Composed config with an absolute run_dir, adapted to join a running Ray cluster.
        run_dir: Run folder.
        ray_cpus: Logical CPUs per node for Ray; None to use the CPUs allocated to the job.
    """

    overrides: Sequence[str]
    config: DictConfig
    run_dir: Path
    ray_cpus: int | None


def plan(overrides: Sequence[str], config_dir: Path, multirun: bool) -> tuple[Cluster, Path, list[Run]]:
    """Compose the config of every run of a job.

    Args:
        overrides: As for `cfpo-verl train`, with cluster=NAME and cluster.KEY=VALUE.
        config_dir: Folder that contains cluster/NAME.yaml.
        multirun: Whether comma-separated values make one run per combination.

    Returns:
        The cluster, the folder of the script, and the runs: one, or the points of a sweep.

    Raises:
        JobError: If the cluster facts or a run folder are invalid.
        ConfigError: If an override is invalid.
    """
    sites.check_chosen(clusters.GROUP, overrides)
    points = _points(overrides) if multirun else [list(overrides)]
    runs: list[Run] = []
    shapes = set()
    cluster: Cluster | None = None
    for point in points:
        with explained(point):
            config = compose(sites.choose(clusters.GROUP, point, config_dir))
            cluster = sites.read(clusters.GROUP, config)
            varied = [override for override in point if override not in overrides]
            run_dir = Path(sites.run_dir_of(config)).absolute()
            if varied and not any(override.startswith("run_dir=") for override in varied):
                run_dir = Path(point_dir(str(run_dir), varied))
            clusters.check_run_dir(cluster, run_dir)
            config.run_dir = str(run_dir)
            shapes.add((config.trainer.nnodes, config.trainer.n_gpus_per_node))
            runs.append(Run(point, config, run_dir, sites.join_ray(config)))
    assert cluster is not None
    if len({run.run_dir for run in runs}) < len(runs):
        raise JobError(f"several points of the sweep have run_dir={runs[0].run_dir}. Leave run_dir out, or vary it")
    if len(shapes) > 1:
        raise JobError(
            "the points of the sweep differ in trainer.nnodes or trainer.n_gpus_per_node, but all jobs of an array "
            "request the same resources. Submit them separately"
        )
    home = runs[0].run_dir
    if multirun:
        fixed = [override for override in overrides if override in runs[0].overrides]
        base = compose(sites.choose(clusters.GROUP, fixed, config_dir))
        home = Path(sites.run_dir_of(base)).absolute()
        home = home.with_name(f"{home.name}_sweep")
    return cluster, home, runs


def _points(overrides: Sequence[str]) -> list[list[str]]:
    """Return every combination of the values of a sweep, in the order of `cfpo-verl train --multirun`."""
    with explained(overrides):
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = []
    for override in parsed:
        line = override.input_line or ""
        if not override.is_sweep_override():
            choices.append([line])
            continue
        try:
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        except HydraException as error:  # glob(...), which only Hydra's own sweeper expands
            raise JobError(f"{line}: {error}. List the values, for example algo=cfpo,grpo") from error
    return [list(point) for point in itertools.product(*choices)]


def make_job(cluster: Cluster, home: Path, runs: Sequence[Run]) -> Job:
    """Describe the batch script of these runs.

    Raises:
        JobError: If the GPUs that the run needs do not fill whole nodes.
        ConfigError: If a value of the config cannot be resolved.
    """
    config = runs[0].config
    with explained(runs[0].overrides):
        return Job(
            name=str(config.trainer.experiment_name),
            run_dir=home,
            work_dir=Path.cwd(),
            nodes=sites.count_nodes(config),
            gpus_per_node=config.trainer.n_gpus_per_node,
            needs_gpus=config.trainer.device != "cpu",
            ray_cpus=runs[0].ray_cpus,
            # On a cluster they must be set before Ray starts.
            environment=worker_variables(config),
            points=[run.run_dir for run in runs] if home != runs[0].run_dir else [],
        )


def write(cluster: Cluster, home: Path, runs: Sequence[Run], template: Path | None = None) -> Path:
    """Write the script, and each run's config and manifest; return the script's path.

    Raises:
        JobError: If a job of one of the folders has not ended, or the template fails.
        ConfigError: If a value of a config cannot be resolved.
        FileError: If a file cannot be written.
    """
    _check_idle({home, *(run.run_dir for run in runs)})
    script = render(cluster, make_job(cluster, home, runs), template)
    resolved = []
    for run in runs:
        with explained(run.overrides):
            resolved.append(OmegaConf.to_yaml(run.config, resolve=True))
    for run, text in zip(runs, resolved, strict=True):
        write_atomically(run.run_dir / _FOLDER / CONFIG, text)
        manifest = {
            "overrides": list(run.overrides),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "config_sha256": _sha256(text),
            "script_sha256": _sha256(script),
            "script": str(home / _FOLDER / SCRIPT),
            "versions": package_versions(),
        }
        write_atomically(run.run_dir / _FOLDER / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    if home not in [run.run_dir for run in runs]:
        write_atomically(home / _FOLDER / POINTS, "".join(f"{run.run_dir}\n" for run in runs))
    path = home / _FOLDER / SCRIPT
    write_atomically(path, script)
    return path


def _check_idle(folders: Iterable[Path]) -> None:
    """Reject folders with an unfinished job: it would read the new config, and two jobs would train in one folder."""
    for folder in folders:
        if not (folder / _FOLDER / JOBS).is_file():
            continue
        job_id = last_job(folder)
        if state := client.state_if_active(job_id):
            raise JobError(
                f"run_dir={folder}: its job {job_id} is {state} and would read the new files. Choose another "
                f"run_dir, or cancel the job: cfpo-verl slurm cancel {folder}"
            )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def note_submitted(home: Path, runs: Sequence[Run], job_id: str) -> None:
    """Record a submitted job in the folders that it belongs to.

    Raises:
        FileError: If a record cannot be written.
    """
    points = [run.run_dir for run in runs]
    for index, folder in enumerate(points):
        _append(folder, f"{job_id}_{index}" if home != folder else job_id)
    if home not in points:
        _append(home, job_id)


def _append(folder: Path, job_id: str) -> None:
    line = json.dumps({"job_id": job_id, "submitted": datetime.now(UTC).isoformat(timespec="seconds")})
    path = folder / _FOLDER / JOBS
    with writing(path), path.open("a") as file:
        file.write(line + "\n")


def last_job(folder: Path) -> str:
    """Return the id of the last job submitted for a folder.

    Raises:
        JobError: If no job was submitted, or the last record is invalid.
        FileError: If the records cannot be read.
    """
    path = folder / _FOLDER / JOBS
    if not path.is_file():
        raise JobError(f"{folder}: no job was submitted for this folder ({path} is missing). Give the run_dir of a job")
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return str(json.loads(lines[-1])["job_id"])
    except (IndexError, ValueError, TypeError, KeyError) as error:
        raise JobError(
            f"{path}: line {max(len(lines), 1)}: not the record of a job, such as "
            '{"job_id": "123"}. Correct it; squeue shows the ids of jobs'
        ) from error


def logs_of(folder: Path) -> Path:
    """Return the folder with the logs of the last attempt.

    Raises:
        JobError: If no attempt has started.
    """
    attempts = list((folder / _FOLDER).glob("job-*/attempt-*"))
    if not attempts:
        raise JobError(f"{folder}: no attempt has started yet; see `cfpo-verl slurm status {folder}`")
    return max(attempts, key=lambda path: path.stat().st_mtime)


def run_dirs_of(folder: Path) -> list[Path]:
    """Return the run folders of a job: the folder itself, or the points of a sweep.

    Raises:
        JobError: If the folder is neither.
        FileError: If the list of the points cannot be read.
    """
    if (folder / _FOLDER / CONFIG).is_file():
        return [folder]
    path = folder / _FOLDER / POINTS
    if not path.is_file():
        raise JobError(
            f"{folder}: no job was rendered in this folder ({folder / _FOLDER / CONFIG} is missing). Give the run_dir "
            "of a job"
        )
    with reading(path):
        points = [Path(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not points:
        raise JobError(f"{path}: lists no run folder. Render the sweep again")
    return points


def last_log_line(run_dir: Path) -> str:
    """Return the last line that the batch script logged, "" if there is none yet."""
    try:
        lines = (logs_of(run_dir) / "job.txt").read_text(errors="replace").splitlines()
    except (JobError, OSError):
        return ""
    return lines[-1] if lines else ""
