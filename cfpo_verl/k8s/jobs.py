"""Compose a run and render its manifest."""

import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf

from cfpo_verl import sites
from cfpo_verl.composing import compose, explained
from cfpo_verl.demands import cpus_needed, worker_variables
from cfpo_verl.k8s import facts as site_facts
from cfpo_verl.k8s import manifest, schema
from cfpo_verl.k8s.facts import GROUP, Facts
from cfpo_verl.k8s.manifest import Job
from cfpo_verl.sites import JobError


def plan(overrides: Sequence[str], config_dir: Path) -> tuple[Facts, Job]:
    """Compose the run of a RayJob.

    Args:
        overrides: As for `cfpo-verl train`, with kubernetes=NAME and kubernetes.KEY=VALUE.
        config_dir: Folder that contains kubernetes/NAME.yaml.

    Raises:
        JobError: If the facts or the run folder are invalid, or the pods have too few CPUs.
        ConfigError: If an override is invalid.
    """
    sites.check_chosen(GROUP, overrides)
    with explained(overrides):
        return _plan(overrides, config_dir)


def _plan(overrides: Sequence[str], config_dir: Path) -> tuple[Facts, Job]:
    config = compose(sites.choose(GROUP, overrides, config_dir))
    facts: Facts = sites.read(GROUP, config)
    run_dir = site_facts.place_run_dir(facts, sites.run_dir_of(config))
    config.run_dir = str(run_dir)
    ray_cpus = sites.join_ray(config)
    nodes = sites.count_nodes(config)
    available, needed = nodes * (ray_cpus or facts.cpus_per_node or 0), cpus_needed(config)
    if available < needed:
        raise JobError(
            f"kubernetes.cpus_per_node={facts.cpus_per_node}: the run's actors reserve {needed} CPUs in Ray, but "
            f"{nodes} pods have {available}; the run would hang silently. Give at least {-(-needed // nodes)}"
        )
    return facts, Job(
        name=site_facts.job_name(facts, str(config.trainer.experiment_name)),
        run_dir=run_dir,
        config=OmegaConf.to_yaml(config, resolve=True),
        overrides=shlex.join(overrides),
        nodes=nodes,
        gpus_per_node=config.trainer.n_gpus_per_node,
        needs_gpus=config.trainer.device != "cpu",
        ray_cpus=ray_cpus,
        ray_version=facts.ray_version or version("ray"),
        environment=worker_variables(config),
    )


def render(facts: Facts, job: Job) -> str:
    """Return the manifest as YAML, validated against the schema.

    Raises:
        JobError: If the manifest is invalid.
    """
    objects = manifest.build(facts, job)
    schema.check(objects)
    pods = "1 pod" if job.nodes == 1 else f"{job.nodes} pods"
    return manifest.to_yaml(objects, f"{job.name}: {pods} with {job.gpus_per_node} GPUs each, in {job.run_dir}")
