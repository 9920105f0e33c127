"""Facts about a site's Kubernetes cluster, from a file of the config group `kubernetes`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from cfpo_verl import sites
from cfpo_verl.sites import JobError

PULL_POLICIES = ("Always", "IfNotPresent", "Never")
# KubeRay appends 6 characters for the RayCluster and 10 for its services, whose names have at most 63.
LONGEST_JOB_NAME = 47
# "DNS-1035 label", "DNS-1123 subdomain", labels and quantities are Kubernetes' own terms and grammars.
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"([A-Za-z0-9]([-\w.]*[A-Za-z0-9])?)?", re.ASCII)
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)((?:[KMGTPE]i)|[munkMGTPE]|[eE][+-]?\d+)?", re.ASCII)
# Only characters that a POSIX shell leaves unchanged: an entry point is parsed by one or two shells.
_PLAIN_PATH = re.compile(r"/[\w./=,+@:-]*", re.ASCII)
_RAY_VERSION = re.compile(r"\d+\.\d+\.\d+\S*", re.ASCII)


@dataclass
class Volume:
    """The volume that all pods share.

    Args:
        claim: Name of its PersistentVolumeClaim.
        mount_path: Where it is mounted in the pods.
    """

    claim: str | None = None
    mount_path: str = "/shared"


@dataclass
class Facts:
    """Facts about a Kubernetes cluster. hydra_configs/kubernetes/example.yaml explains each key."""

    job_name: str | None = None
    namespace: str | None = None
    image: str | None = None
    ray_version: str | None = None
    token_auth: bool = True
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: list[str] = field(default_factory=list)
    service_account: str | None = None
    priority_class: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Any] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    gpu_resource: str = "nvidia.com/gpu"
    cpus_per_node: int | None = None
    memory_per_node: str | None = None
    shared_memory_per_node: str = "64Gi"
    extra_resources: dict[str, str] = field(default_factory=dict)
    volume: Volume = field(default_factory=Volume)
    work_dir: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    environment_secrets: list[str] = field(default_factory=list)
    network_interface: str | None = None
    backoff_limit: int = 3
    active_deadline_s: int | None = None
    ttl_after_finished_s: int = 0
    grace_s: int = 900


_EXAMPLES = {
    "image": "registry.example.com/rl/verl-cfpo:0.9.1",
    "cpus_per_node": "96",
    "memory_per_node": "1000Gi",
    "volume.claim": "shared",
}


def quantity(text: str) -> float:
    """Convert a Kubernetes quantity to a number; for memory, in bytes.

    Raises:
        ValueError: If the text is not a quantity.

    Example:
        >>> quantity("64Gi"), quantity("1.5G"), quantity("500m"), quantity("1e3")
        (68719476736.0, 1500000000.0, 0.5, 1000.0)
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity")
    number, suffix = match.groups()
    if suffix and suffix[0] in "eE" and len(suffix) > 1 and suffix[1] != "i":
        return float(text)
    if suffix and suffix.endswith("i"):
        return float(number) * 1024 ** ("KMGTPE".index(suffix[0]) + 1)
    powers = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
    return float(number) * 1000.0 ** powers[suffix or ""]


def is_quantity(text: str) -> bool:
    """Return whether a text is a quantity above 0."""
    return _QUANTITY.fullmatch(text) is not None and quantity(text) > 0


def is_label_key(text: str) -> bool:
    """Return whether a text is a valid key of a label, an annotation or a resource: [prefix/]name.

    Example:
        >>> is_label_key("nvidia.com/gpu"), is_label_key("rl"), is_label_key("a/b/c"), is_label_key("-x")
        (True, True, False, False)
    """
    prefix, slash, name = text.rpartition("/")
    prefix_fits = _fits(_DNS_1123, prefix, 253) if slash else True
    return prefix_fits and bool(name) and _fits(_LABEL, name, 63)


def _fits(grammar: re.Pattern[str], text: str, longest: int) -> bool:
    return len(text) <= longest and grammar.fullmatch(text) is not None


def job_name(facts: Facts, experiment_name: str) -> str:
    """Return the name of the RayJob.

    Raises:
        JobError: If it is too long for KubeRay, or contains characters that KubeRay does not allow.

    Example:
        >>> job_name(Facts(), "Math_8gpu_cfpo.seed0")
        'math-8gpu-cfpo-seed0'
    """
    name = facts.job_name or re.sub(r"[^a-z0-9]+", "-", experiment_name.lower()).strip("-")
    if not _fits(_DNS_1035, name, LONGEST_JOB_NAME):
        source = "" if facts.job_name else f" (from trainer.experiment_name={experiment_name})"
        raise JobError(
            f"kubernetes.job_name={name!r}{source}: {len(name)} characters. KubeRay allows {LONGEST_JOB_NAME} "
            "lower-case letters, digits and -, beginning with a letter and not ending with -. Set kubernetes.job_name"
        )
    return name


def place_run_dir(facts: Facts, run_dir: str) -> PurePosixPath:
    """Return the run folder as a path in the pods; a relative one starts at work_dir.

    Raises:
        JobError: If it is not on the shared volume, or contains characters that a shell would interpret.
    """
    mount = PurePosixPath(facts.volume.mount_path)
    path = PurePosixPath(facts.work_dir or mount) / run_dir
    if ".." in path.parts or not path.is_relative_to(mount) or path == mount:
        raise JobError(
            f"run_dir={path} is not below kubernetes.volume.mount_path={mount}, the persistent volume that all "
            f"pods share. Choose run_dir={mount}/..."
        )
    if not _PLAIN_PATH.fullmatch(str(path)):
        raise JobError(
            f"run_dir={path}: it becomes part of commands, in which a shell would interpret characters other than "
            "letters, digits and ./=,+@:_-. Choose another name"
        )
    return path


def _missing(facts: Facts) -> list[str]:
    values = {name: getattr(facts, name) for name in ("image", "cpus_per_node", "memory_per_node")}
    values["volume.claim"] = facts.volume.claim
    return [
        f"kubernetes.{name} is not set and has no default. Set it in the site's file, or for example with "
        f"kubernetes.{name}={_EXAMPLES[name]}"
        for name, value in values.items()
        if value in (None, "")
    ]


def check(facts: Facts) -> list[str]:
    """Return one message for each missing or invalid value, with the rule and the way out."""
    memory, shared_memory = facts.memory_per_node or "", facts.shared_memory_per_node
    rules: list[tuple[bool, str]] = [
        (
            facts.image is None or re.fullmatch(r"\S+", facts.image) is not None,
            f"kubernetes.image={facts.image!r}: give a reference without spaces, such as {_EXAMPLES['image']}",
        ),
        (
            facts.ray_version is None or _RAY_VERSION.fullmatch(facts.ray_version) is not None,
            f"kubernetes.ray_version={facts.ray_version!r}: give the version of the image's Ray, such as 2.60.0, in "
            "quotes",
        ),
        (
            facts.image_pull_policy in PULL_POLICIES,
            f"kubernetes.image_pull_policy={facts.image_pull_policy!r}: choose one of {', '.join(PULL_POLICIES)}",
        ),
        (
            facts.cpus_per_node is None or facts.cpus_per_node > 0,
            f"kubernetes.cpus_per_node={facts.cpus_per_node}: give a whole number above 0",
        ),
        (
            facts.network_interface is None or sites.INTERFACE.fullmatch(facts.network_interface) is not None,
            f"kubernetes.network_interface={facts.network_interface!r}: give the name of a network interface in the "
            "pods, for example net1",
        ),
        (
            not (is_quantity(memory) and is_quantity(shared_memory)) or quantity(shared_memory) < quantity(memory),
            f"kubernetes.shared_memory_per_node={shared_memory}: /dev/shm counts towards the pod's memory, so it must "
            f"be less than kubernetes.memory_per_node={memory}",
        ),
        (
            _PLAIN_PATH.fullmatch(facts.volume.mount_path) is not None and len(facts.volume.mount_path) > 1,
            f"kubernetes.volume.mount_path={facts.volume.mount_path!r}: give an absolute path of letters, digits and "
            "./=,+@:_-",
        ),
        (
            facts.work_dir is None or facts.work_dir.startswith("/"),
            f"kubernetes.work_dir={facts.work_dir!r}: give an absolute path in the pods",
        ),
        (facts.backoff_limit >= 0, f"kubernetes.backoff_limit={facts.backoff_limit}: give 0 (one attempt) or more"),
        (
            facts.active_deadline_s is None or facts.active_deadline_s > 0,
            f"kubernetes.active_deadline_s={facts.active_deadline_s}: give seconds above 0, or null",
        ),
        (
            facts.ttl_after_finished_s >= 0,
            f"kubernetes.ttl_after_finished_s={facts.ttl_after_finished_s}: give seconds, 0 or more",
        ),
        (
            facts.grace_s >= 60,
            f"kubernetes.grace_s={facts.grace_s}: give 60 seconds or more; ending Ray alone takes up to 30",
        ),
    ]
    return [
        *_missing(facts),
        *(message for holds, message in rules if not holds),
        *_check_names(facts),
        *_check_quantities(facts),
        *_check_labels(facts),
    ]


def _check_names(facts: Facts) -> list[str]:
    names: dict[str, Sequence[str | None]] = {
        "namespace": [facts.namespace],
        "service_account": [facts.service_account],
        "priority_class": [facts.priority_class],
        "volume.claim": [facts.volume.claim],
        "image_pull_secrets": facts.image_pull_secrets,
        "environment_secrets": facts.environment_secrets,
    }
    problems = [
        f"kubernetes.{key}: {name!r} is not a valid name in Kubernetes: use at most 253 lower-case letters, digits, - "
        "and ., beginning and ending with a letter or digit (RFC 1123)"
        for key, given in names.items()
        for name in given
        if name and not _fits(_DNS_1123, name, 253)
    ]
    return problems + [
        f"kubernetes.environment.{name}: not a valid name of an environment variable"
        for name in facts.environment
        if not sites.VARIABLE.fullmatch(name)
    ]


def _check_quantities(facts: Facts) -> list[str]:
    amounts = {
        "memory_per_node": facts.memory_per_node,
        "shared_memory_per_node": facts.shared_memory_per_node,
        **{f"extra_resources.{name}": amount for name, amount in facts.extra_resources.items()},
    }
    return [
        f"kubernetes.{key}={amount!r}: not a Kubernetes quantity above 0, such as 512Gi, 500G or 8"
        for key, amount in amounts.items()
        if amount is not None and not is_quantity(amount)
    ]


def _check_labels(facts: Facts) -> list[str]:
    problems = [
        f"kubernetes.{group}.{key}: not a valid key. Use [prefix/]name, the name at most 63 letters, digits, -, _ "
        "and ., the prefix a domain name"
        for group in ("labels", "annotations", "node_selector", "extra_resources")
        for key in getattr(facts, group)
        if not is_label_key(key)
    ]
    problems += [
        f"kubernetes.tolerations: {toleration!r} is not a mapping such as {{key: nvidia.com/gpu, operator: Exists}}"
        for toleration in facts.tolerations
        if not isinstance(toleration, dict)
    ]
    if not is_label_key(facts.gpu_resource):
        problems.append(f"kubernetes.gpu_resource={facts.gpu_resource!r}: give a name such as nvidia.com/gpu")
    return problems + [
        f"kubernetes.{group}.{key}={value!r}: a label's value has at most 63 letters, digits, -, _ and ., beginning "
        "and ending with a letter or digit"
        for group in ("labels", "node_selector")
        for key, value in getattr(facts, group).items()
        if not _fits(_LABEL, value, 63)
    ]


GROUP = sites.Group("kubernetes", Facts, "cfpo-verl k8s", check)
