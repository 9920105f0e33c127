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
# Part of a pod's grace period that is reserved for `ray stop`.
_RAY_STOP_S = 30
# Kubernetes' size limit of a ConfigMap, in bytes.
_LARGEST_CONFIG_MAP = 1024 * 1024


@dataclass(frozen=True)
class Job:
    """The run of one RayJob.

    Args:
        name: Name of the RayJob.
        run_dir: Run folder, as a path in the pods.
        config: The resolved config, as YAML.
        overrides: Overrides that compose the config; recorded as an annotation.
        nodes: Number of pods, the head included.
        gpus_per_node: GPUs per pod, logical ones on the CPU.
        needs_gpus: Whether GPUs are requested from Kubernetes.
        ray_cpus: Logical CPUs per pod for Ray; None to use the pod's CPUs.
        ray_version: Version of Ray in the image.
        environment: Environment variables of every pod, set before Ray starts.
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

    The head has GPUs and trains like the other nodes: the driver and Ray's own processes need little, a run on one node
    is one pod, and the driver's checks of its machine apply to a machine that trains.

    Raises:
        JobError: If the config is too large for a ConfigMap.
    """
    if len(job.config.encode()) > _LARGEST_CONFIG_MAP - 4096:
        raise JobError(
            f"the resolved config has {len(job.config.encode())} bytes, and Kubernetes allows {_LARGEST_CONFIG_MAP} in "
            "a ConfigMap. Move its large values into a file on the volume"
        )
    digest = hashlib.sha256(job.config.encode()).hexdigest()
    # Each config gets a ConfigMap of its own, so that later attempts do not read a config that was rendered later.
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
            # The operator submits the job itself: no additional pod pulls the image, and no second shell parses it.
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
    # Explicit, because not every release of KubeRay reads GPUs from the limits, and GPUs are logical on the CPU.
    resources = {"num-cpus": str(job.ray_cpus or facts.cpus_per_node), "num-gpus": str(job.gpus_per_node)}
    cluster: dict[str, Any] = {
        "rayVersion": job.ray_version,
        # The operator creates a token and passes it to the pods.
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
    """Return the environment variables of every pod.

    They are those of a SLURM job, except the folders of temporary files and sockets: a pod has a /tmp of its own.
    """
    interface = facts.network_interface
    return {
        **job.environment,
        **facts.environment,
        **({"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface else {}),
        **RAY_ENVIRONMENT,
        # Otherwise Ray requires a token wherever it finds one, such as in a home folder that only some pods have.
        **({} if facts.token_auth else {"RAY_AUTH_MODE": "disabled"}),
    }


def _pod(facts: Facts, job: Job, config_map_name: str, container_name: str) -> dict[str, Any]:
    resources = {
        "cpu": str(facts.cpus_per_node),
        "memory": facts.memory_per_node,
        **({facts.gpu_resource: str(job.gpus_per_node)} if job.needs_gpus else {}),
        **facts.extra_resources,
    }
    # Ends Ray explicitly, because a shell as process 1 would not forward SIGTERM to it.
    stop = f"python -m cfpo_verl.k8s.stop {job.run_dir} --deadline-s {facts.grace_s - _RAY_STOP_S}; ray stop"
    container: dict[str, Any] = {
        "name": container_name,
        "image": facts.image,
        "imagePullPolicy": facts.image_pull_policy,
        "workingDir": facts.work_dir or facts.volume.mount_path,
        # Kubernetes would expand $(NAME) to another variable's value.
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
        # A pod whose Ray has ended is replaced: a restarted container would start a Ray without the old state.
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
    """Writes multi-line strings as block scalars, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(objects: list[dict[str, Any]], title: str) -> str:
    """Return the objects as one YAML stream."""
    documents = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
    return f"# {title}\n# Rendered by cfpo-verl {__version__}; docs/kubernetes.md explains it.\n---\n{documents}"
