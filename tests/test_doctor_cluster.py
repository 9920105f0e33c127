"""cfpo_verl.doctor.cluster: what every node of a Ray cluster must have, and what must be the same on all."""

import json
from dataclasses import replace

import pytest
from doctor_configs import failed, gpu_config, ok, warnings

from cfpo_verl.config_groups import platform_env
from cfpo_verl.doctor import cluster
from cfpo_verl.doctor.environment import REGISTRY_PROBE

WORD = "seen"


@pytest.fixture
def config():
    return gpu_config("trainer.nnodes=2")


@pytest.fixture
def nodes():
    """Two equal nodes: 8 GPUs with 4 CPUs for each."""
    found = {
        "versions": {"Python": "3.11.7", "verl": "0.9.1", "ray": "2.60.0", "cfpo-verl": "0.1.0"},
        "canary": WORD,
        "missing": [],
        "open_files": 65536,
        "env": {},
    }
    registry = (["cfpo", "vanilla"], ["cfpo_grpo", "grpo"], {})
    resources = {"GPU": 8.0, "CPU": 32.0}
    return [cluster.Node(name, resources, dict(found), registry, "no output") for name in ("a", "b")]


def change(node, **found):
    return replace(node, found={**node.found, **found})


def test_equal_nodes_have_no_problems(config, nodes):
    found = list(cluster.judge(config, nodes, WORD))
    assert failed(found) == warnings(found) == []
    assert ok(found) == ["2 of 2 nodes answered; policy_loss.loss_mode=cfpo is registered on a, b"]


def test_versions_that_differ(config, nodes):
    nodes[1] = change(nodes[1], versions={**nodes[1].found["versions"], "verl": "0.9.2", "ray": None})
    assert failed(cluster.judge(config, nodes, WORD)) == [
        "verl differs between nodes: 0.9.1 on a; 0.9.2 on b. Install the same version on every node",
        "ray differs between nodes: 2.60.0 on a; none on b. Install the same version on every node",
    ]


def test_a_node_without_the_plugin(config, nodes):
    nodes[1] = replace(
        nodes[1], registry=(["vanilla"], ["cfpo_grpo"], {"cfpo": "ModuleNotFoundError: No module named 'cfpo_verl'"})
    )
    [problem] = failed(cluster.judge(config, nodes, WORD))
    assert problem.startswith(
        "node b: policy_loss.loss_mode=cfpo is not in verl's registry in a fresh process, and a plugin is not loaded: "
    )
    assert "No module named 'cfpo_verl'" in problem


def test_a_node_without_verl(config, nodes):
    nodes[1] = replace(nodes[1], registry=None, error="ModuleNotFoundError: No module named 'verl'")
    [problem] = failed(cluster.judge(config, nodes, WORD))
    assert problem.startswith("node b: verl cannot be imported: ModuleNotFoundError")


def test_a_node_that_does_not_answer(config, nodes):
    nodes[1] = replace(nodes[1], found=None, error="no answer within 120 s")
    found = list(cluster.judge(config, nodes, WORD))
    assert failed(found) == ["node b does not answer: no answer within 120 s. Check Python and Ray on that node"]
    assert ok(found) == ["1 of 2 nodes answered; policy_loss.loss_mode=cfpo is registered on a"]


def test_a_run_folder_that_is_not_shared(config, nodes):
    nodes[1] = change(nodes[1], canary="[Errno 2] No such file or directory")
    [problem] = failed(cluster.judge(config, nodes, WORD))
    assert problem.startswith("node b does not see what this machine writes to run_dir=runs/gpu")


def test_files_that_a_node_lacks(config, nodes):
    nodes[1] = change(nodes[1], missing=["/models/qwen"])
    assert failed(cluster.judge(config, nodes, WORD)) == [
        "node b has no /models/qwen. Put it on a file system that all nodes share"
    ]


def test_limits_and_variables_of_a_node(config, nodes):
    env = {"CUDA_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "0"}
    nodes[1] = change(nodes[1], open_files=1024, env=env)
    found = list(cluster.judge(config, nodes, WORD))
    assert warnings(found)[0].startswith("node b: ulimit -Hn is 1024")
    assert failed(found)[0].startswith("node b: ROCR_VISIBLE_DEVICES=0 is set together with CUDA_VISIBLE_DEVICES")


def test_resources_of_the_cluster(config, nodes):
    # 16 GPUs; 1 controller + 8 storage units + 3 x 16 GPUs + 1 = 58 CPUs.
    [problem] = failed(cluster.judge(config, nodes[:1], WORD))[:1]
    assert problem.startswith("the run takes 16 GPUs, and the cluster has 8 on 1 nodes")
    few = [replace(node, resources={"GPU": 8.0, "CPU": 28.0}) for node in nodes]
    assert failed(cluster.judge(config, few, WORD))[0].startswith(
        "the run's actors need 58 logical CPUs, and the cluster"
    )
    uneven = [
        replace(nodes[0], resources={"GPU": 8.0, "CPU": 60.0}),
        replace(nodes[1], resources={"GPU": 8.0, "CPU": 8}),
    ]
    [problem] = failed(cluster.judge(config, uneven, WORD))
    assert problem.startswith(
        "1 nodes have trainer.n_gpus_per_node=8 GPUs and 3 CPUs for each GPU, and trainer.nnodes=2"
    )


def test_the_probe_tells_what_it_sees(run_python, tmp_path):
    """In a fresh process, without the part that imports verl."""
    (tmp_path / "canary").write_text(WORD)
    argument = json.dumps([str(tmp_path / "canary"), [str(tmp_path), "/nowhere"], ["verl", "no-such-package"]])
    source = cluster.NODE_PROBE.removesuffix(REGISTRY_PROBE)
    result = run_python(f"import sys\nsys.argv[1:] = [{argument!r}]\n{source}", CUDA_VISIBLE_DEVICES="3")
    name, _mark, found = result.stdout.strip().partition("=")
    assert name == "node", result.stderr
    found = json.loads(found)
    assert found["versions"]["verl"] == "0.9.1"
    assert found["versions"]["no-such-package"] is None
    assert (found["canary"], found["missing"]) == (WORD, ["/nowhere"])
    assert found["env"]["CUDA_VISIBLE_DEVICES"] == "3"


def test_no_cluster_to_be_joined(config, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr("ray.init", lambda **_options: (_ for _ in ()).throw(ConnectionError("nobody there")))
    [problem] = failed(cluster.check_nodes(config))
    assert problem.startswith("no Ray cluster can be joined (nobody there)")


@pytest.mark.stack
def test_a_real_cluster_of_two_nodes_that_differ(run_python, tmp_path):
    """Two raylets of one machine, the second without verl's plugins; versions that differ are planted above."""
    code = f"""
import json, os
from ray.cluster_utils import Cluster
from cfpo_verl.doctor import cluster
from cfpo_verl.composing import compose
head = Cluster(initialize_head=True, head_node_args={{"num_cpus": 4, "num_gpus": 1, "include_dashboard": False}})
head.add_node(num_cpus=4, num_gpus=1, env_vars={{"VERL_USE_EXTERNAL_PLUGINS": "none"}})
try:
    config = compose(["experiment=cpu_quickstart", "trainer.nnodes=2", "run_dir={tmp_path}/run"])
    os.environ["RAY_ADDRESS"] = head.address
    found = list(cluster.check_nodes(config))
finally:
    head.shutdown()
print("found=" + json.dumps([[finding.status, finding.found] for finding in found]))
"""
    result = run_python(code, **platform_env("cpu"))
    lines = [line for line in result.stdout.splitlines() if line.startswith("found=")]
    assert lines, result.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("found="))
    problems = [message for status, message in found if status == "failed"]
    assert not any("differs between nodes" in problem for problem in problems)
    [plugin] = [problem for problem in problems if "policy_loss.loss_mode=cfpo is not in verl's registry" in problem]
    assert plugin.startswith("node ")
    assert not any("does not see what this machine writes" in problem for problem in problems)
    assert any(message.startswith("2 of 2 nodes answered; policy_loss.loss_mode=cfpo is") for _status, message in found)
    assert not list(tmp_path.glob(".cfpo-verl-doctor-*"))  # the canary is gone
