"""From overrides to a manifest."""

import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf

from cfpo_verl import sites
from cfpo_verl.composing import compose
from cfpo_verl.demands import cpus_needed, worker_variables
from cfpo_verl.k8s import facts as site_facts
from cfpo_verl.k8s import manifest, schema
from cfpo_verl.k8s.facts import GROUP, Facts
from cfpo_verl.k8s.manifest import Job
from cfpo_verl.sites import JobError


def plan(overrides: Sequence[str], config_dir: Path) -> tuple[Facts, Job]:
    """Compose what a RayJob runs.

    Args:
        overrides: As for `cfpo-verl train`, with kubernetes=NAME and kubernetes.KEY=VALUE.
        config_dir: Has a folder `kubernetes` with the site's own file.

    Raises:
        JobError: If the facts or a folder do not fit.
        ConfigError: If an override does not fit.
    """
    sites.check_chosen(GROUP, overrides)
    config = compose(sites.choose(GROUP, overrides, config_dir))
    facts: Facts = sites.read(GROUP, config)
    run_dir = site_facts.place_run_dir(facts, str(config.run_dir))
    config.run_dir = str(run_dir)
    ray_cpus = sites.join_ray(config)
    nodes = sites.count_nodes(config)
    there, needed = nodes * (ray_cpus or facts.cpus_per_node or 0), cpus_needed(config)
    if there < needed:
        raise JobError(
            f"kubernetes.cpus_per_node={facts.cpus_per_node}: the run's actors need {needed} CPUs of Ray, and {nodes} "
            f"pods have {there}; the run would hang without a word. Give at least {-(-needed // nodes)}"
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
    """Return the manifest, checked against the schema, as YAML.

    Raises:
        JobError: If it does not fit the schema.
    """
    objects = manifest.build(facts, job)
    schema.check(objects)
    pods = "1 pod" if job.nodes == 1 else f"{job.nodes} pods"
    return manifest.to_yaml(objects, f"{job.name}: {pods} with {job.gpus_per_node} GPUs each, in {job.run_dir}")
