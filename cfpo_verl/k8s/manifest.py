"""The manifest: a ConfigMap with the resolved config, and the RayJob that trains it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from cfpo_verl import __version__
from cfpo_verl.k8s.facts import Facts
from cfpo_verl.sites import RAY_ENVIRONMENT, JobError

CONFIG_DIR, CONFIG_FILE = "/etc/cfpo-verl", "config.yaml"
# Of a pod's grace: for `ray stop`, after the run has ended or its time is over.
_RAY_STOP_S = 30
# Kubernetes' limit for all of a ConfigMap.
_LARGEST_CONFIG_MAP = 1024 * 1024


@dataclass(frozen=True)
class Job:
    """What one RayJob runs.

    Args:
        name: Of the RayJob.
        run_dir: Folder of the run, as the pods see it.
        config: The resolved config, as YAML.
        overrides: What it was composed from, for the reader of the manifest.
        nodes: Pods, the head included.
        gpus_per_node: GPUs of each pod, logical ones on the CPU.
        needs_gpus: Whether GPUs are asked of Kubernetes.
        ray_cpus: Logical CPUs of each pod for Ray; None for those that it has.
        ray_version: Of the image.
        environment: Variables in every pod, in place before Ray starts.
    """

    name: str
    run_dir: PurePosixPath
    config: str
    overrides: str
    nodes: int
    gpus_per_node: int
    needs_gpus: bool
    ray_cpus: int | None
    ray_version: str
    environment: Mapping[str, str]


def build(facts: Facts, job: Job) -> list[dict[str, Any]]:
    """Return the objects of the manifest: a ConfigMap and a RayJob.

    The head is one of the nodes and has GPUs like the others: the driver and Ray's own processes need little, a run on
    one node is one pod, and what the driver checks of its machine is then checked where the run takes place.

    Raises:
        JobError: If the config does not fit into a ConfigMap.
    """
    if len(job.config.encode()) > _LARGEST_CONFIG_MAP - 4096:
        raise JobError(
            f"the resolved config has {len(job.config.encode())} bytes, and Kubernetes allows {_LARGEST_CONFIG_MAP} in "
            "a ConfigMap. Move what is large in it into a file on the volume"
        )
    digest = hashlib.sha256(job.config.encode()).hexdigest()
    # Another config is another ConfigMap: attempts that come later must not read what was rendered later.
    config_map_name = f"{job.name}-config-{digest[:10]}"
    labels = {"app.kubernetes.io/name": "cfpo-verl", **facts.labels}
    namespace = {"namespace": facts.namespace} if facts.namespace else {}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": config_map_name, **namespace, "labels": labels},
        "immutable": True,
        "data": {CONFIG_FILE: job.config},
    }
    ray_job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": job.name,
            **namespace,
            "labels": labels,
            "annotations": {
                "cfpo-verl/version": __version__,
                "cfpo-verl/overrides": job.overrides,
                "cfpo-verl/config-sha256": digest,
                **facts.annotations,
            },
        },
        "spec": {
            "entrypoint": f"cfpo-verl train --config {CONFIG_DIR}/{CONFIG_FILE} --ray",
            # The operator itself submits the job: no further pod that would pull the image, and no second shell.
            "submissionMode": "HTTPMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": facts.ttl_after_finished_s,
            "backoffLimit": facts.backoff_limit,
            **({"activeDeadlineSeconds": facts.active_deadline_s} if facts.active_deadline_s else {}),
            "rayClusterSpec": _ray_cluster(facts, job, config_map_name),
        },
    }
    return [config_map, ray_job]


def _ray_cluster(facts: Facts, job: Job, config_map_name: str) -> dict[str, Any]:
    # Said here, because not every release of KubeRay reads GPUs from the limits, and on the CPU they are logical.
    resources = {"num-cpus": str(job.ray_cpus or facts.cpus_per_node), "num-gpus": str(job.gpus_per_node)}
    cluster: dict[str, Any] = {
        "rayVersion": job.ray_version,
        # The operator makes a token, and gives it to the pods.
        **({"authOptions": {"mode": "token"}} if facts.token_auth else {}),
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0", **resources},
            "template": {"spec": _pod(facts, job, config_map_name, "ray-head")},
        },
    }
    if workers := job.nodes - 1:
        cluster["workerGroupSpecs"] = [
            {
                "groupName": "workers",
                "replicas": workers,
                "minReplicas": workers,
                "maxReplicas": workers,
                "rayStartParams": resources,
                "template": {"spec": _pod(facts, job, config_map_name, "ray-worker")},
            }
        ]
    return cluster


def environment(facts: Facts, job: Job) -> dict[str, str]:
    """Return the variables of every pod: those of a SLURM job, without what a pod has for itself anyway.

    A pod's /tmp is its own, so the folders of temporary files and sockets stay where they are.
    """
    interface = facts.network_interface
    return {
        **job.environment,
        **facts.environment,
        **({"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface else {}),
        **RAY_ENVIRONMENT,
        # Else Ray asks for a token wherever it finds one, such as in a home folder that only some pods have.
        **({} if facts.token_auth else {"RAY_AUTH_MODE": "disabled"}),
    }


def _pod(facts: Facts, job: Job, config_map_name: str, container_name: str) -> dict[str, Any]:
    resources = {
        "cpu": str(facts.cpus_per_node),
        "memory": facts.memory_per_node,
        **({facts.gpu_resource: str(job.gpus_per_node)} if job.needs_gpus else {}),
        **facts.extra_resources,
    }
    # Saves and ends the run if there is one, then ends Ray: a shell as process 1 would not pass on the signal.
    stop = f"python -m cfpo_verl.k8s.stop {job.run_dir} --deadline-s {facts.grace_s - _RAY_STOP_S}; ray stop"
    container: dict[str, Any] = {
        "name": container_name,
        "image": facts.image,
        "imagePullPolicy": facts.image_pull_policy,
        "workingDir": facts.work_dir or facts.volume.mount_path,
        # In $(NAME) Kubernetes would put another variable's value.
        "env": [{"name": name, "value": value.replace("$(", "$$(")} for name, value in environment(facts, job).items()],
        "resources": {"limits": resources, "requests": dict(resources)},
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/bash", "-c", stop]}}},
        "volumeMounts": [
            {"name": "shared", "mountPath": facts.volume.mount_path},
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    if facts.environment_secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in facts.environment_secrets]
    optional = {
        "serviceAccountName": facts.service_account,
        "priorityClassName": facts.priority_class,
        "imagePullSecrets": [{"name": name} for name in facts.image_pull_secrets],
        "nodeSelector": dict(facts.node_selector),
        "tolerations": [dict(toleration) for toleration in facts.tolerations],
    }
    return {
        # A pod whose Ray has ended is replaced, not filled with another Ray that knows nothing of the first.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": facts.grace_s,
        **{key: value for key, value in optional.items() if value},
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": facts.volume.claim}},
            {"name": "config", "configMap": {"name": config_map_name}},
            {
                "name": "shared-memory",
                "emptyDir": {"medium": "Memory", "sizeLimit": facts.shared_memory_per_node},
            },
        ],
    }


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and nothing as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(objects: list[dict[str, Any]], title: str) -> str:
    """Return the objects as one YAML stream."""
    documents = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
    return f"# {title}\n# Rendered by cfpo-verl {__version__}; docs/kubernetes.md explains it.\n---\n{documents}"
