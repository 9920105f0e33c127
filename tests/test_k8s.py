"""What `cfpo-verl k8s` writes and refuses. No Kubernetes cluster is at hand: nothing here is applied to one."""

import copy
import dataclasses
import os
import time
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path, PurePosixPath

import kubernetes_validate
import pytest
import yaml
from ray.exceptions import RpcError
from typer.testing import CliRunner

from cfpo_verl import config_groups
from cfpo_verl.errors import UserError
from cfpo_verl.k8s import facts, jobs, manifest, schema, stop
from cfpo_verl.k8s.facts import Facts, Volume, check, is_label_key, is_quantity, job_name, place_run_dir
from cfpo_verl.sites import JobError
from cfpo_verl.train import read_config

GOLDEN = Path(__file__).parent / "golden" / "k8s"
SITE = """\
namespace: rl
image: registry.example.com/rl/verl-cfpo:0.9.1
ray_version: "2.60.0"
image_pull_secrets: [registry]
service_account: trainer
priority_class: training
node_selector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}
tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
labels: {kueue.x-k8s.io/queue-name: rl}
cpus_per_node: 96
memory_per_node: 1000Gi
extra_resources: {rdma/hca: "8"}
volume: {claim: shared}
environment: {HF_HOME: /shared/hf, GREETING: "it's $HOME, $(HOME)"}
environment_secrets: [wandb]
network_interface: net1
active_deadline_s: 86400
"""
RUNS = {
    1: ["experiment=gsm8k_1gpu"],
    2: ["experiment=math_14b_16gpu"],
    16: ["experiment=math_8gpu", "topology=16x8"],
}
MINIMAL = Facts(image="i:1", cpus_per_node=96, memory_per_node="1000Gi", volume=Volume(claim="shared"))


@pytest.fixture
def site(tmp_path):
    """A folder with kubernetes/mysite.yaml, to fill."""

    def write(text: str = SITE) -> Path:
        (tmp_path / "kubernetes").mkdir(exist_ok=True)
        (tmp_path / "kubernetes" / "mysite.yaml").write_text(text)
        return tmp_path

    return write


def parse(text: str) -> tuple[dict, dict]:
    config_map, ray_job = yaml.safe_load_all(text)
    return config_map, ray_job


def rendered(overrides: list[str], config_dir: Path) -> tuple[dict, dict]:
    return parse(jobs.render(*jobs.plan([*overrides, "kubernetes=mysite"], config_dir)))


def pod_templates(ray_job: dict) -> list[dict]:
    """The pod templates, each as often as there are pods of it."""
    cluster = ray_job["spec"]["rayClusterSpec"]
    workers = [each["template"] for each in cluster.get("workerGroupSpecs", []) for _ in range(each["replicas"])]
    return [cluster["headGroupSpec"]["template"], *workers]


@pytest.mark.parametrize("nodes", RUNS)
def test_manifest_is_the_golden_one(site, nodes):
    """The files are renewed with: RENEW_GOLDEN=1 pytest tests/test_k8s.py -k golden; then look at the difference."""
    site_facts, job = jobs.plan([*RUNS[nodes], "kubernetes=mysite", f"run_dir=runs/{nodes}"], site())
    text = jobs.render(site_facts, dataclasses.replace(job, config="trainer: {}\n# of verl's keys, here left out\n"))
    golden = GOLDEN / f"{nodes}_nodes.yaml"
    if os.environ.get("RENEW_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()
    pods = pod_templates(parse(text)[1])
    assert len(pods) == nodes
    gpus = [pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in pods]
    assert gpus == ["1" if nodes == 1 else "8"] * nodes


@pytest.mark.parametrize("nodes", RUNS)
@pytest.mark.parametrize("release", ["1.30.0", "1.37.0"])
def test_pods_and_config_maps_fit_kubernetes_own_schema(nodes, release):
    config_map, ray_job = parse((GOLDEN / f"{nodes}_nodes.yaml").read_text())
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **pod} for pod in pod_templates(ray_job)[:2]]
    for each in (config_map, *pods):
        assert kubernetes_validate.validate(each, release, strict=True) == release.removesuffix(".0")


def paths(node: object, path: tuple = ()) -> list[tuple]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(each for key, child in children for each in paths(child, (*path, key)))]


# Below these, keys are names of the user's.
OPEN = {"labels", "annotations", "nodeSelector", "limits", "requests", "rayStartParams", "data"}


def test_misspelt_fields_are_refused_wherever_they_are():
    """Every object of the largest golden manifest, one at a time, gets a field that does not exist."""
    objects = parse((GOLDEN / "2_nodes.yaml").read_text())
    schema.check(objects)
    tried = 0
    for path in paths(list(objects)):
        changed = copy.deepcopy(list(objects))
        node = changed
        for key in path:
            node = node[key]
        if isinstance(node, dict) and not OPEN & set(path):
            tried += 1
            node["imagePulPolicy"] = "Always"
            with pytest.raises(JobError, match="imagePulPolicy"):
                schema.check(changed)
    assert tried > 40


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("apiVersion", "ray.io/v1alpha1"),
        ("metadata.name", "Upper"),
        ("metadata.name", "a" * 48),
        ("spec.backoffLimit", "3"),
        ("spec.ttlSecondsAfterFinished", -1),
        ("spec.activeDeadlineSeconds", 0),
        ("spec.submissionMode", "HTTP"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-gpus", 8),
        ("spec.rayClusterSpec.workerGroupSpecs.0.replicas", "1"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers", []),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory", "1 TB"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.volumes.0.configMap", {"name": "two-sources"}),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.tolerations.0.operator", "Exist"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.nodeSelector.zone", "a b"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_with_their_place(path, value):
    config_map, ray_job = parse((GOLDEN / "2_nodes.yaml").read_text())
    *parents, last = path.split(".")
    node = ray_job
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    node[last] = value
    with pytest.raises(JobError) as refusal:
        schema.check([config_map, ray_job])
    assert f"RayJob.{path}".removesuffix(".configMap") in str(refusal.value)


def test_run_trains_the_config_that_is_carried_along(site, tmp_path):
    config_map, ray_job = rendered(["experiment=math_8gpu", "run_dir=runs/a"], site())
    spec = ray_job["spec"]
    assert spec["entrypoint"] == "cfpo-verl train --config /etc/cfpo-verl/config.yaml --ray"
    [container] = pod_templates(ray_job)[0]["spec"]["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_templates(ray_job)[0]["spec"]["volumes"]}
    assert volumes[mounts["/etc/cfpo-verl"]]["configMap"]["name"] == config_map["metadata"]["name"]
    assert volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"] == "shared"
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}

    file = tmp_path / "config.yaml"
    file.write_text(config_map["data"]["config.yaml"])
    config = read_config(file, [])
    assert config.run_dir == "/shared/runs/a"
    assert config.trainer.default_local_dir == "/shared/runs/a/checkpoints"
    assert "kubernetes" not in config
    # ray.init refuses both where it joins a cluster.
    assert not {"num_cpus", "num_gpus"} & set(config.ray_kwargs.ray_init)


def test_another_config_is_another_config_map(site):
    names = {
        rendered(["experiment=math_8gpu", "run_dir=runs/a", f"seed={seed}"], site())[0]["metadata"]["name"]
        for seed in (0, 1, 1)
    }
    assert len(names) == 2


def test_environment_is_in_every_pod(site):
    _config_map, ray_job = rendered(["experiment=cpu_quickstart", "run_dir=runs/a"], site())
    for pod in pod_templates(ray_job):
        variables = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
        expected = config_groups.platform_env("cpu") | {
            "HF_HOME": "/shared/hf",
            "GREETING": "it's $HOME, $$(HOME)",  # which Kubernetes hands on as $(HOME)
            "NCCL_SOCKET_IFNAME": "net1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        assert expected.items() <= variables.items()
        assert pod["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "wandb"}}]


def test_a_token_guards_ray_unless_it_is_declined(site):
    def pods_and_cluster(token_auth: str) -> tuple[str, dict]:
        arguments = ["experiment=math_14b_16gpu", "run_dir=runs/a", f"kubernetes.token_auth={token_auth}"]
        _config_map, ray_job = rendered(arguments, site(SITE.replace('ray_version: "2.60.0"\n', "")))
        return str(pod_templates(ray_job)), ray_job["spec"]["rayClusterSpec"]

    pods, cluster = pods_and_cluster("true")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == version("ray")
    assert "RAY_AUTH_MODE" not in pods  # the operator sets it, with the token
    pods, cluster = pods_and_cluster("false")
    assert "authOptions" not in cluster
    assert pods.count("{'name': 'RAY_AUTH_MODE', 'value': 'disabled'}") == 2


def test_cpu_runs_ask_for_no_gpus_and_have_logical_ones(site):
    _config_map, ray_job = rendered(["experiment=cpu_quickstart", "run_dir=runs/a"], site())
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"] == {"dashboard-host": "0.0.0.0", "num-cpus": "64", "num-gpus": "1"}
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_standalone_rollout_gpus_are_counted(site):
    _config_map, ray_job = rendered(["experiment=math_async_16gpu", "run_dir=runs/a"], site())
    assert len(pod_templates(ray_job)) == 2


def test_every_fact_has_a_default_and_the_example_states_it():
    example = files("cfpo_verl.hydra_configs") / "kubernetes" / "example.yaml"
    assert yaml.safe_load(example.read_text()) == dataclasses.asdict(Facts())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": None}, "kubernetes.image is not set"),
        ({"image": "a b"}, "image='a b'"),
        ({"tolerations": [5]}, "kubernetes.tolerations: 5 is not a mapping"),
        ({"tolerations": [["a"]]}, "is not a mapping such as {key: nvidia.com/gpu"),
        ({"ray_version": "latest"}, "ray_version='latest'"),
        ({"image_pull_policy": "always"}, "choose one of Always"),
        ({"cpus_per_node": None}, "kubernetes.cpus_per_node is not set"),
        ({"cpus_per_node": 0}, "cpus_per_node=0"),
        ({"memory_per_node": "512 GB"}, "memory_per_node='512 GB': not a Kubernetes quantity"),
        ({"memory_per_node": "64Gi"}, "must be less than kubernetes.memory_per_node=64Gi"),
        ({"shared_memory_per_node": "0"}, "shared_memory_per_node='0': not a Kubernetes quantity above 0"),
        ({"extra_resources": {"rdma/hca": "eight"}}, "extra_resources.rdma/hca='eight'"),
        ({"extra_resources": {"a b": "8"}}, "extra_resources.a b: not a valid key"),
        ({"gpu_resource": "nvidia/com/gpu"}, "gpu_resource='nvidia/com/gpu'"),
        ({"volume": Volume()}, "kubernetes.volume.claim is not set"),
        ({"volume": Volume(claim="Shared")}, "volume.claim: 'Shared' is not a valid name"),
        ({"volume": Volume(claim="s", mount_path="shared")}, "mount_path='shared'"),
        ({"work_dir": "code"}, "work_dir='code'"),
        ({"namespace": "my_team"}, "namespace: 'my_team' is not a valid name"),
        ({"service_account": "a" * 254}, "RFC 1123"),
        ({"image_pull_secrets": ["-x"]}, "image_pull_secrets: '-x'"),
        ({"environment_secrets": ["W"]}, "environment_secrets: 'W'"),
        ({"environment": {"1A": "x"}}, "environment.1A: not a valid name"),
        ({"labels": {"team": "a b"}}, "labels.team='a b': a label's value"),
        ({"labels": {"team": "a" * 64}}, "at most 63"),
        ({"node_selector": {"/gpu": "x"}}, "node_selector./gpu: not a valid key"),
        ({"annotations": {"a/b/c": "x"}}, "annotations.a/b/c: not a valid key"),
        ({"network_interface": "net 1"}, "network_interface='net 1'"),
        ({"backoff_limit": -1}, "backoff_limit=-1"),
        ({"active_deadline_s": 0}, "active_deadline_s=0"),
        ({"ttl_after_finished_s": -1}, "ttl_after_finished_s=-1"),
        ({"grace_s": 30}, "grace_s=30"),
    ],
)
def test_facts_without_meaning_are_refused(change, words):
    assert check(MINIMAL) == []
    problems = check(dataclasses.replace(MINIMAL, **change))
    assert len(problems) == 1
    assert words in problems[0]


def test_quantities_and_keys():
    for text in ("1", "0.5", ".5", "100m", "1.5Gi", "1e3", "2E", "5n"):
        assert is_quantity(text), text
    for text in ("", "-1", "0", "1 Gi", "1GB", "Gi", "1e", "1.2.3"):
        assert not is_quantity(text), text
    assert facts.quantity("2E") == 2e18
    assert facts.quantity("1Ki") == 1024
    assert is_label_key("x" * 63)
    assert not is_label_key("x" * 64)
    assert not is_label_key("")


def test_names_of_jobs():
    assert job_name(MINIMAL, "a" * 47) == "a" * 47
    with pytest.raises(JobError, match=r"48 characters.*Set kubernetes\.job_name"):
        job_name(MINIMAL, "a" * 48)
    with pytest.raises(JobError, match="beginning with a letter"):
        job_name(MINIMAL, "7b_run")
    with pytest.raises(JobError, match=r"kubernetes\.job_name='my_run'"):
        job_name(dataclasses.replace(MINIMAL, job_name="my_run"), "good")


def test_run_dir_is_on_the_volume_and_plain():
    assert place_run_dir(MINIMAL, "runs/a") == PurePosixPath("/shared/runs/a")
    assert place_run_dir(dataclasses.replace(MINIMAL, work_dir="/shared/me"), "runs/a=1") == PurePosixPath(
        "/shared/me/runs/a=1"
    )
    for outside in ("/tmp/a", "../a", "/shared", "/sharedx/a", "."):
        with pytest.raises(JobError, match=r"Choose run_dir=/shared/"):
            place_run_dir(MINIMAL, outside)
    for odd in ("a b", "a;b", "$(a)", "a'b", "ä", "a\nb"):
        with pytest.raises(JobError, match="a shell would interpret"):
            place_run_dir(MINIMAL, odd)
    with pytest.raises(JobError, match="run_dir=/app/runs/a is not below"):
        place_run_dir(dataclasses.replace(MINIMAL, work_dir="/app"), "runs/a")


def test_too_few_cpus_are_refused(site):
    with pytest.raises(JobError, match=r"cpus_per_node=8: .* Give at least \d\d"):
        rendered(["experiment=math_8gpu", "run_dir=runs/a", "kubernetes.cpus_per_node=8"], site())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run_dir=null", "run_dir is not set"),
        ("run_dir=${nothing}", "'nothing' not found"),
        ("data.seed=${nothing}", "'nothing' not found"),
        ("trainer.n_gpus_per_node=0", "trainer.n_gpus_per_node=0: give a whole number above 0"),
        ("+kubernetes.labels={a: {b: c}}", "kubernetes.labels.a={'b': 'c'}: give a text"),
    ],
)
def test_overrides_that_cannot_be_used_are_errors_of_the_users(site, override, words):
    with pytest.raises(UserError) as error:
        rendered(["experiment=math_8gpu", override], site())
    assert words in str(error.value)


def test_errors_of_a_site_file_name_it(site):
    folder = site("labels: {team: a")
    with pytest.raises(JobError, match=r"kubernetes/mysite\.yaml: line \d+: not valid YAML"):
        rendered(["experiment=math_8gpu"], folder)


def test_an_output_that_cannot_be_written_is_named(site, run_cli, tmp_path):
    site()
    (tmp_path / "taken").write_text("a file")
    result = run_cli("k8s", "render", "experiment=gsm8k_1gpu", "kubernetes=mysite", "--out", "taken/a.yaml")
    assert result.returncode == 2
    assert "cfpo-verl k8s render: taken" in result.stderr
    assert "cannot be written" in result.stderr


def test_pools_that_are_no_whole_nodes_are_refused(site):
    with pytest.raises(JobError, match=r"11 GPUs in all its pools, not a multiple of trainer\.n_gpus_per_node=8\."):
        rendered(["experiment=math_async_16gpu", "actor_rollout_ref.rollout.n_gpus_per_node=3"], site())


def test_a_config_that_no_config_map_holds_is_refused(site):
    site_facts, job = jobs.plan(["experiment=math_8gpu", "kubernetes=mysite", "run_dir=runs/a"], site())
    with pytest.raises(JobError, match="Kubernetes allows 1048576"):
        manifest.build(site_facts, dataclasses.replace(job, config="x" * 1024 * 1024))


def test_tolerations_are_checked_too(site):
    tolerations = 'kubernetes.tolerations=[{key: a, effect: "NoExecution"}]'
    with pytest.raises(JobError, match=r"tolerations\.0\.effect: 'NoExecution' is not one of"):
        rendered(["experiment=math_8gpu", "run_dir=runs/a", tolerations], site())


def test_unknown_keys_are_refused_with_what_was_meant(site):
    with pytest.raises(JobError, match=r"kubernetes\.imag: unknown key\. Did you mean image\?"):
        rendered(["experiment=math_8gpu"], site("imag: x"))
    with pytest.raises(JobError, match=r"kubernetes\.volume\.clame: unknown key\. Did you mean claim\?"):
        rendered(["experiment=math_8gpu", "kubernetes.volume.clame=x"], site())
    with pytest.raises(JobError, match="found: mysite"):
        jobs.plan(["experiment=math_8gpu", "kubernetes=nosuch"], site())
    with pytest.raises(JobError, match=r"no kubernetes is chosen.*cfpo-verl k8s example"):
        jobs.plan(["experiment=math_8gpu"], site())


def test_command_line(site, run_cli, run_script, tmp_path):
    shown = run_cli("k8s", "example")
    assert shown.returncode == 0
    assert "memory_per_node: null" in shown.stdout
    site()
    arguments = ["k8s", "render", "experiment=gsm8k_1gpu", "kubernetes=mysite", "--out", "a.yaml"]
    wrong = run_cli(*arguments, "run_dir=/home/me/runs")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "run_dir=/home/me/runs is not below kubernetes.volume.mount_path=/shared" in wrong.stderr
    misspelt = run_cli(*arguments, "trainer.nnode=2")
    assert misspelt.returncode == 2
    assert "Did you mean: trainer.nnodes" in misspelt.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kubernetes"]
    right = run_script(*arguments, "run_dir=runs/a")
    assert (right.returncode, right.stdout, right.stderr) == (0, "a.yaml\n", "")
    [_config_map, ray_job] = parse((tmp_path / "a.yaml").read_text())
    assert ray_job["metadata"]["annotations"]["cfpo-verl/overrides"].endswith("run_dir=runs/a")


def test_stopping_asks_waits_and_gives_up_in_time(tmp_path):
    seen = []

    def starts_and_ends() -> bool:
        seen.append((tmp_path / "stop_requested").exists())
        if len(seen) < 4:
            (tmp_path / "stop_requested").unlink(missing_ok=True)  # as a starting run does
        return len(seen) < 4

    assert stop.stop(tmp_path, starts_and_ends, 60) == "the run has ended"
    assert seen == [False, False, True, True]
    assert not (tmp_path / "stop_requested").exists()
    assert stop.stop(tmp_path, lambda: False, 60) == "no run to stop"
    assert not (tmp_path / "stop_requested").exists()
    started = time.monotonic()
    assert "has not ended within 0.1 s" in stop.stop(tmp_path, lambda: True, 0.1)
    assert time.monotonic() - started < 10


def test_stopping_does_not_wait_where_the_head_is_gone(tmp_path, monkeypatch):
    assert not stop.has_running_job("http://127.0.0.1:9")

    def time_out(address: str) -> None:
        """As Ray does after half a minute if RAY_ADDRESS is set, which a pod has."""
        raise RpcError("Timed out while waiting for GCS to become available.")

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", time_out)
    assert not stop.has_running_job("http://127.0.0.1:9")
    result = CliRunner().invoke(stop.app, [str(tmp_path), "--deadline-s", "60"])
    assert (result.exit_code, result.output) == (0, "no run to stop\n")
    assert not (tmp_path / "stop_requested").exists()
