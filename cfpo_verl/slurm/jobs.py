"""From overrides to a folder that sbatch can take, and from such a folder to its job.

slurm/job.sbatch              the script; for a sweep in the sweep's folder
slurm/config.yaml             the resolved config: what the job trains, whatever happens to the files it came from
slurm/manifest.json           overrides, versions, checksums
slurm/jobs.jsonl              the jobs that were submitted
slurm/slurm-<job>.txt         what SLURM itself says
slurm/job-<job>/attempt-<n>/  logs: job.txt, driver.txt, ray-<node>.txt

A folder may have had several jobs, and a job several attempts.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cfpo_verl import sites
from cfpo_verl.composing import compose
from cfpo_verl.demands import worker_variables
from cfpo_verl.files import write_atomically
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
        overrides: As they were given.
        config: Composed, with an absolute run_dir, for a Ray cluster that is joined.
        run_dir: Its folder.
        ray_cpus: Logical CPUs of each node for Ray, None for those that the job has.
    """

    overrides: Sequence[str]
    config: DictConfig
    run_dir: Path
    ray_cpus: int | None


def plan(overrides: Sequence[str], config_dir: Path, multirun: bool) -> tuple[Cluster, Path, list[Run]]:
    """Compose what a job runs.

    Args:
        overrides: As for `cfpo-verl train`, with cluster=NAME and cluster.KEY=VALUE.
        config_dir: Has a folder `cluster` with the site's own file.
        multirun: Whether values that are lists make a run each.

    Returns:
        The cluster, the folder of the script, and the runs: one, or the points of a sweep.

    Raises:
        JobError: If the cluster or a folder does not fit.
        ConfigError: If an override does not fit.
    """
    sites.check_chosen(clusters.GROUP, overrides)
    points = _points(overrides) if multirun else [list(overrides)]
    runs: list[Run] = []
    cluster: Cluster | None = None
    for point in points:
        config = compose(sites.choose(clusters.GROUP, point, config_dir))
        cluster = sites.read(clusters.GROUP, config)
        varied = [override for override in point if override not in overrides]
        run_dir = Path(config.run_dir).absolute()
        if varied and not any(override.startswith("run_dir=") for override in varied):
            run_dir = Path(point_dir(str(run_dir), varied))
        clusters.check_run_dir(cluster, run_dir)
        config.run_dir = str(run_dir)
        ray_cpus = sites.join_ray(config)
        runs.append(Run(point, config, run_dir, ray_cpus))
    assert cluster is not None
    if len({run.run_dir for run in runs}) < len(runs):
        raise JobError(f"several points of the sweep have run_dir={runs[0].run_dir}. Leave run_dir out, or vary it")
    if len({_shape(run.config) for run in runs}) > 1:
        raise JobError(
            "the points of the sweep differ in trainer.nnodes or n_gpus_per_node, and the jobs of an array are alike. "
            "Submit them one by one"
        )
    home = runs[0].run_dir
    if multirun:
        fixed = [override for override in overrides if override in runs[0].overrides]
        base = compose(sites.choose(clusters.GROUP, fixed, config_dir))
        home = Path(base.run_dir).absolute()
        home = home.with_name(f"{home.name}_sweep")
    return cluster, home, runs


def _points(overrides: Sequence[str]) -> list[list[str]]:
    """Return every combination of the values of a sweep, in the order of `cfpo-verl train --multirun`."""
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.input_line or ""]
        for override in OverridesParser.create().parse_overrides(list(overrides))
    ]
    return [list(point) for point in itertools.product(*choices)]


def _shape(config: DictConfig) -> tuple[int, int]:
    return config.trainer.nnodes, config.trainer.n_gpus_per_node


def make_job(cluster: Cluster, home: Path, runs: Sequence[Run]) -> Job:
    """Say what the script of these runs needs of the cluster.

    Raises:
        JobError: If the GPUs that the run needs do not make whole nodes.
    """
    config = runs[0].config
    sweep = [run.run_dir for run in runs] if home != runs[0].run_dir else []
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
        points=sweep,
    )


def write(cluster: Cluster, home: Path, runs: Sequence[Run], template: Path | None = None) -> Path:
    """Write the script, and for each run its config and its manifest; return the script's path.

    Raises:
        JobError: If a job of one of the folders has not ended, or the template does not work.
    """
    _check_idle({home, *(run.run_dir for run in runs)})
    script = render(cluster, make_job(cluster, home, runs), template)
    for folder in {home, *(run.run_dir for run in runs)}:
        (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
    for run in runs:
        text = OmegaConf.to_yaml(run.config, resolve=True)
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
    """Refuse folders with a job that has not ended: it would read the new config, and two would train into one."""
    for folder in folders:
        if not (folder / _FOLDER / JOBS).is_file():
            continue
        job_id = last_job(folder)
        if state := client.state_if_active(job_id):
            raise JobError(
                f"run_dir={folder}: its job {job_id} is {state}, and would read what is written now. Choose another "
                f"run_dir, or end it: cfpo-verl slurm cancel {folder}"
            )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def note_submitted(home: Path, runs: Sequence[Run], job_id: str) -> None:
    """Note a submitted job in the folders that it belongs to."""
    points = [run.run_dir for run in runs]
    for index, folder in enumerate(points):
        _append(folder, f"{job_id}_{index}" if home != folder else job_id)
    if home not in points:
        _append(home, job_id)


def _append(folder: Path, job_id: str) -> None:
    line = json.dumps({"job_id": job_id, "submitted": datetime.now(UTC).isoformat(timespec="seconds")})
    with (folder / _FOLDER / JOBS).open("a") as file:
        file.write(line + "\n")


def last_job(folder: Path) -> str:
    """Return the id of the job that was last submitted for a folder.

    Raises:
        JobError: If there is none.
    """
    file = folder / _FOLDER / JOBS
    if not file.is_file():
        raise JobError(f"{folder}: no job was submitted for it (no {_FOLDER}/{JOBS}). Give the run_dir of one")
    records: list[Mapping[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    return str(records[-1]["job_id"])


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
    """Return the run folders of a job: the folder itself, or the points of a sweep."""
    if (folder / _FOLDER / CONFIG).is_file():
        return [folder]
    file = folder / _FOLDER / POINTS
    if not file.is_file():
        raise JobError(f"{folder}: nothing was rendered here (no {_FOLDER}/{CONFIG}). Give the run_dir of a run")
    return [Path(line) for line in file.read_text().splitlines()]


def last_words(run_dir: Path) -> str:
    """Return the last line that the batch script wrote, "" before there is one."""
    try:
        lines = (logs_of(run_dir) / "job.txt").read_text(errors="replace").splitlines()
    except (JobError, FileNotFoundError):
        return ""
    return lines[-1] if lines else ""
