"""Jobs of `cfpo-verl slurm` on a real SLURM cluster of two nodes (tests/slurm_cluster.py).

Three jobs train with verl, the others have a driver that uses Ray alone. All jobs that train share one seed.
"""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import SMALL, clean_environment, skip_unless_ci
from slurm_cluster import NODES, SlurmCluster, missing_programs, slurm_cluster

from cfpo_verl.run_dir import read_metrics

pytestmark = pytest.mark.slurm

PATH = f"PATH={Path(sys.executable).parent}:$PATH"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def cluster(workplace):
    missing = missing_programs()
    if missing:
        skip_unless_ci(missing)
    (workplace / "cluster").mkdir(exist_ok=True)
    with slurm_cluster(workplace) as running:
        yield running


class Job:
    """A submitted run, and where its files are."""

    def __init__(self, cluster: SlurmCluster, name: str, *overrides: str, driver: str = "", **site: object) -> None:
        """Submit it; with a driver, that Python program runs in place of `cfpo-verl train`.

        Such jobs share the nodes, so that several can run at once.
        """
        self.cluster, self.run_dir = cluster, cluster.shared / name
        facts: dict[str, object] = {"shared_dir": str(cluster.shared), "nodes_deadline_s": 120, "time": "1:00:00"}
        if driver:
            facts |= {"exclusive": False, "cpus_per_node": 1, "memory_per_node": "2G"}
        facts |= site
        (cluster.shared / "cluster" / f"{name}.yaml").write_text(json.dumps(facts))  # which is YAML
        arguments = ["experiment=cpu_quickstart", "trainer.nnodes=2", f"cluster={name}", f"run_dir={self.run_dir}"]
        arguments += [*SMALL, *overrides]
        if driver:
            (cluster.shared / f"{name}.py").write_text(driver)
            template = cluster.shared / f"{name}.j2"
            block = f"{{% block driver %}}\n    python {cluster.shared / name}.py\n{{% endblock %}}\n"
            template.write_text(f'{{% extends "job.sbatch.j2" %}}\n{block}')
            arguments += ["--template", str(template)]
            # What `submit` checks beforehand takes seconds, and is looked at in the jobs that train.
            script = self.command("render", *arguments).stdout.strip()
            if "elsewhere" in name:
                text = Path(script).read_text()
                Path(script).write_text(text.replace(f"RUN_DIR={self.run_dir}", f"RUN_DIR=/tmp/{name}"))
            self.id = cluster.run("sbatch", "--parsable", script).strip()
            (self.run_dir / "slurm" / "jobs.jsonl").write_text(json.dumps({"job_id": self.id}) + "\n")
            return
        result = self.command("submit", *arguments)
        assert result.returncode == 0, result.stderr
        self.id = result.stdout.split()[-1]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `cfpo-verl slurm`."""
        command = [Path(sys.executable).with_name("cfpo-verl"), "slurm", *arguments]
        env = {**clean_environment({}), **self.cluster.env}
        return subprocess.run(command, cwd=self.cluster.shared, env=env, capture_output=True, text=True)

    def log(self, name: str, attempt: int = 0) -> str:
        """Return a log, "" before there is one."""
        file = self.run_dir / "slurm" / f"job-{self.id}" / f"attempt-{attempt}" / name
        return file.read_text(errors="replace") if file.exists() else ""

    def logs(self) -> str:
        """Return the ends of all logs."""
        files = sorted((self.run_dir / "slurm").rglob("*.txt"))
        return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-2000:]}" for file in files)

    def end(self, deadline_s: float, states: tuple[str, ...] = ENDED) -> dict[str, str]:
        """Wait until the job has ended."""
        self.wait_until(lambda: self.cluster.state(self.id) in states, deadline_s, f"an end in {states}")
        return self.cluster.job(self.id)

    def wait_until(self, holds, deadline_s: float, what: str) -> None:
        end = time.monotonic() + deadline_s
        while not holds():
            assert time.monotonic() < end, f"{what}: not within {deadline_s:g} s\n{self.logs()}"
            time.sleep(0.5)


def assert_nothing_is_left(cluster: SlurmCluster, within_s: float = 15) -> None:
    end = time.monotonic() + within_s
    while left := [process for node in NODES for process in cluster.processes(node)]:
        assert time.monotonic() < end, f"still there: {[process.cmdline() for process in left]}"
        time.sleep(0.5)
    for node in NODES:
        assert list((cluster.folder / f"tmp-{node}").glob("cfpo-verl-*")) == []


RAY_ONLY = """
import json, os, sys
import ray

ray.init(log_to_driver=False)

@ray.remote(num_gpus=1, scheduling_strategy="SPREAD")
def where():
    import time
    time.sleep(1)
    return os.uname().nodename, os.environ["VERL_PLATFORM"], os.environ["TMPDIR"], os.getcwd()

print(json.dumps({"tasks": ray.get([where.remote(), where.remote()]), "cpus": ray.cluster_resources()["CPU"]}))
"""


# Both jobs use verl's own classes with the name that verl would give to the socket in both of them.
WEIGHTS = """
import asyncio, os, sys, time
from pathlib import Path
import ray
import verl
import torch

HANDLE = "ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock"
job, barrier = os.environ["SLURM_JOB_ID"], Path(sys.argv[0]).parent / "barrier"
ray.init(log_to_driver=False)
assert len(ray.nodes()) == 2, ray.nodes()

def arrive(name):
    (barrier / f"{name}-{job}").touch()
    while len(list(barrier.glob(f"{name}-*"))) < 2:
        time.sleep(0.1)

@ray.remote
class Sender:
    def send(self, value):
        from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender
        async def weights():
            for number in range(20):
                await asyncio.sleep(0.2)  # long enough to meet the other job
                yield f"layer{number}", torch.full((200_000,), value)  # a bucket each
        sender = BucketedWeightSender(zmq_handle=HANDLE, bucket_size_mb=1, use_shm=True)
        asyncio.run(sender.async_send_weights(weights()))
        return os.uname().nodename

@ray.remote
class Receiver:
    def receive(self):
        from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
        got = []
        receiver = BucketedWeightReceiver(zmq_handle=HANDLE, device=torch.device("cpu"), use_shm=True)
        receiver.receive_weights(
            on_bucket_received=lambda weights, is_last: got.extend(float(tensor.mean()) for _name, tensor in weights)
        )
        return sorted(set(got)), len(got)

arrive("up")
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
answers = []
for node in ray.nodes():
    here = On(node["NodeID"], soft=False)
    sender, receiver = (actor.options(scheduling_strategy=here).remote() for actor in (Sender, Receiver))
    answers.append((sender.send.remote(float(job)), receiver.receive.remote()))
for sent, received in answers:
    print("received", ray.get(sent), *ray.get(received), flush=True)
print("gcs", os.environ["RAY_ADDRESS"])
arrive("done")
"""


@pytest.fixture(scope="module")
def ray_only(cluster):
    """Eight jobs and a sweep at once, and what was left when they had ended."""
    (cluster.shared / "barrier").mkdir()
    on_n2 = "if [ $(hostname) = n2 ]; then {}; fi"
    jobs = {
        "failing": Job(cluster, "failing", driver=RAY_ONLY + "sys.exit(7)\n", network_interface="eth0"),
        "absent": Job(cluster, "absent", driver=RAY_ONLY, setup=[PATH, on_n2.format("sleep 300")], nodes_deadline_s=30),
        "broken": Job(cluster, "broken", driver=RAY_ONLY, setup=[PATH, on_n2.format("echo no module here; false")]),
        "elsewhere": Job(cluster, "elsewhere", driver=RAY_ONLY),
        "spent": Job(cluster, "spent", driver="raise SystemExit(75)", max_requeues=0),
        "cancelled": Job(cluster, "cancelled", driver=RAY_ONLY + "import time; time.sleep(600)\n"),
        "left": Job(cluster, "left", driver=WEIGHTS),
        "right": Job(cluster, "right", driver=WEIGHTS),
    }
    array = _submit_sweep(cluster)
    cancelled = jobs["cancelled"]
    cancelled.wait_until(lambda: "tasks" in cancelled.log("driver.txt"), 120, "work in the job to cancel")
    again = ["experiment=cpu_quickstart", "trainer.nnodes=2", "cluster=cancelled", f"run_dir={cancelled.run_dir}"]
    refused = cancelled.command("render", *again)
    assert cancelled.command("cancel", str(cancelled.run_dir)).returncode == 0
    for job in jobs.values():
        job.end(300)
    cluster.wait_until(lambda: set(states_of(cluster, array)) <= set(ENDED), 300, "an end of the sweep")
    assert_nothing_is_left(cluster)
    return {**jobs, "array": array, "refused": refused}


def _submit_sweep(cluster: SlurmCluster) -> str:
    """Two jobs of an array on one node each, which say what they would train."""
    template = cluster.shared / "sweep.j2"
    block = """{% block driver %}\n    grep '^seed:' "$RUN_DIR/slurm/config.yaml"\n{% endblock %}\n"""
    template.write_text(f'{{% extends "job.sbatch.j2" %}}\n{block}')
    facts = {"shared_dir": str(cluster.shared), "exclusive": False, "cpus_per_node": 1, "memory_per_node": "2G"}
    (cluster.shared / "cluster" / "sweep.yaml").write_text(json.dumps(facts))
    command = [Path(sys.executable).with_name("cfpo-verl"), "slurm", "render", "experiment=cpu_quickstart"]
    command += ["cluster=sweep", "seed=3,5", f"run_dir={cluster.shared}/sweep", "--multirun", "--template", template]
    result = subprocess.run(command, cwd=cluster.shared, env=cluster.env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return cluster.run("sbatch", "--parsable", result.stdout.strip()).strip()


def states_of(cluster: SlurmCluster, array: str) -> list[str]:
    shown = cluster.run("scontrol", "show", "job", "--oneliner", array)
    return [word.removeprefix("JobState=") for word in shown.split() if word.startswith("JobState=")]


def test_exit_status_of_a_failing_driver_is_the_jobs(ray_only, cluster):
    job = ray_only["failing"]
    ended = cluster.job(job.id)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "7:0", "0"), job.logs()
    assert "the driver ended with status 7" in job.log("job.txt")
    printed = next(json.loads(line) for line in job.log("driver.txt").splitlines() if line.startswith("{"))
    assert sorted(printed["tasks"]) == [
        [node, "cpu", f"/tmp/cfpo-verl-{job.id}/tmp", str(cluster.shared)] for node in NODES
    ]
    assert printed["cpus"] == 128  # 64 logical ones on each node, as the platform says
    assert not list(job.run_dir.rglob("ray-token"))
    shown = job.command("status", str(job.run_dir))
    assert f"job {job.id}: FAILED (NonZeroExitCode)" in shown.stdout
    assert "exit status 7" in shown.stdout
    assert "no step yet" in shown.stdout
    assert "the driver ended with status 7" in job.command("logs", str(job.run_dir)).stdout


def test_a_job_that_may_not_queue_itself_again_says_so(ray_only, cluster):
    job = ray_only["spent"]
    ended = cluster.job(job.id)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0"), job.logs()
    assert "Not requeued: max_requeues=0 is reached. Submit again to continue" in job.log("job.txt")


def test_a_cancelled_job_ends_all_that_it_started(ray_only, cluster):
    job = ray_only["cancelled"]
    assert cluster.state(job.id) == "CANCELLED"
    assert "terminated by SLURM" in job.log("job.txt")


def test_a_node_that_never_comes_up_is_named_at_the_deadline(ray_only, cluster):
    job = ray_only["absent"]
    ended = cluster.job(job.id)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "69:0", "0"), job.logs()
    assert "1 of 2 nodes have not joined within 30 s: n2 (not joined)" in job.log("job.txt")


def test_the_folder_of_a_job_that_has_not_ended_is_left_alone(ray_only):
    refused, job = ray_only["refused"], ray_only["cancelled"]
    assert refused.returncode == 2
    assert re.search(rf"its job {job.id} is RUNNING and would read the new files", refused.stderr)


def test_a_node_that_cannot_start_ray_fails_the_job_at_once(ray_only, cluster):
    job = ray_only["broken"]
    ended = cluster.job(job.id)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "69:0", "0"), job.logs()
    assert "Ray on node n2 ended with status 1" in job.log("job.txt")
    assert "no module here" in job.log("job.txt")


def test_a_folder_that_the_nodes_do_not_share_is_noticed(ray_only, cluster):
    """/tmp is each node's own here, as on a real cluster."""
    ended = cluster.job(ray_only["elsewhere"].id)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "69:0")
    [log] = (cluster.folder / "tmp-n1" / "elsewhere").rglob("job.txt")
    assert "node n2 does not see" in log.read_text()
    assert "Choose a run_dir that all nodes share" in log.read_text()


def test_two_jobs_on_the_same_nodes_do_not_meet(ray_only, cluster):
    jobs = [ray_only[name] for name in ("left", "right")]
    for job in jobs:
        ended = cluster.job(job.id)
        assert (ended["JobState"], ended["NodeList"]) == ("COMPLETED", "n[1-2]"), job.logs()
        lines = [line for line in job.log("driver.txt").splitlines() if line.startswith("received")]
        # Each node of each job got 20 tensors with the number of its own job.
        assert sorted(lines) == [f"received {node} [{float(job.id)}] 20" for node in NODES], job.logs()
        # A block of 400 ports below those that the kernel gives to anyone, found from the job's number.
        ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        first = 10000 if ephemeral >= 20000 else 2000
        port = first + int(job.id) % ((ephemeral - first) // 400) * 400
        assert re.search(rf"^gcs 10\.98\.\d+\.1:{port}$", job.log("driver.txt"), re.MULTILINE), job.logs()


def test_each_job_of_a_sweep_has_its_own_run(ray_only, cluster):
    assert states_of(cluster, ray_only["array"]) == ["COMPLETED", "COMPLETED"]
    for seed in (3, 5):
        [driver] = (cluster.shared / f"sweep_seed={seed}" / "slurm").rglob("driver.txt")
        assert f"seed: {seed}\n" in driver.read_text()
        assert "done" in driver.with_name("job.txt").read_text()


TRAIN = ["trainer.total_training_steps=4", "trainer.val_before_train=false", "trainer.test_freq=-1"]


def prompts(run_dir: Path) -> dict[int, list[str]]:
    """Return the prompts of each step, in the order in which verl wrote them."""
    found = {}
    for file in (run_dir / "rollouts").glob("*.jsonl"):
        found[int(file.stem)] = sorted(json.loads(line)["input"] for line in file.read_text().splitlines())
    return found


@pytest.fixture(scope="module")
def undisturbed(cluster):
    """Four real steps on two nodes."""
    run_dir = cluster.shared / "undisturbed"
    job = Job(cluster, "undisturbed", *TRAIN, f"trainer.rollout_data_dir={run_dir}/rollouts")
    actors: dict[str, set[str]] = {node: set() for node in NODES}

    def look() -> bool:
        for node in NODES:
            for process in cluster.processes(node):
                try:
                    actors[node].add(process.cmdline()[0])
                except (psutil.Error, IndexError):
                    continue
        return cluster.state(job.id) in ENDED

    job.wait_until(look, 400, "an end")
    return job, actors


def test_two_nodes_train_with_the_plugin_on_both(undisturbed, cluster):
    job, actors = undisturbed
    assert cluster.state(job.id) == "COMPLETED", job.logs()
    metrics = read_metrics(job.run_dir)
    assert list(metrics) == [1, 2, 3, 4]
    for values in metrics.values():
        assert values["actor/cfpo/ratio_deviation"] > 0
        assert values["training/rollout_probs_diff_mean"] < 1e-4
    for node in NODES:
        programs = " ".join(actors[node])
        assert "raylet" in programs
        assert "WorkerDict" in programs
        assert "VLLM::EngineCore" in programs
    [line] = [line for line in job.log("driver.txt").splitlines() if "2 of 2 nodes answered" in line]
    assert "loss_mode=cfpo is registered on 10.98." in line
    assert line.count("10.98.") == 2
    assert_nothing_is_left(cluster)


def test_a_signal_saves_and_requeues_and_a_lost_node_is_survived(undisturbed, cluster):
    """The walltime is near, then a node is lost: three attempts, one run."""
    run_dir = cluster.shared / "disturbed"
    job = Job(cluster, "disturbed", *TRAIN, f"trainer.rollout_data_dir={run_dir}/rollouts")

    def steps(attempt: int) -> int:
        file = run_dir / f"metrics.{attempt}.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0

    job.wait_until(lambda: steps(1) >= 1, 300, "a first step")
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)
    job.wait_until(lambda: job.log("driver.txt", 1) != "", 120, "a second attempt")
    assert "asking the run to save and stop" in job.log("job.txt")
    requeued = "the run has saved a checkpoint and stopped as requested. Requeued (1 of at most 20 times)"
    assert requeued in job.log("job.txt")
    saved = steps(1)
    assert saved < 4
    assert [path.name for path in (run_dir / "checkpoints").glob("global_step_*")] == [f"global_step_{saved}"]

    job.wait_until(lambda: steps(2) >= 1, 300, "a step of the second attempt")
    [raylet] = [process for process in cluster.processes("n2") if Path(process.cmdline()[0]).name == "raylet"]
    killed = time.monotonic()
    raylet.send_signal(signal.SIGKILL)
    job.wait_until(lambda: "Requeued (2 of" in job.log("job.txt", 1), 90, "the loss of the node")
    assert time.monotonic() - killed < 60
    assert "node n2 was lost during the run" in job.log("job.txt", 1)

    ended = job.end(400)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), job.logs()
    assert f"resumes from step {saved}" in job.log("driver.txt", 1)
    assert f"resumes from step {saved}" in job.log("driver.txt", 2)
    # As without the two interruptions: numbers of steps, prompts of each step, schedule.
    other = undisturbed[0].run_dir
    metrics, expected = read_metrics(run_dir), read_metrics(other)
    assert list(metrics) == list(expected)
    assert prompts(run_dir) == prompts(other)
    for step, values in metrics.items():
        assert values["actor/lr"] == expected[step]["actor/lr"]
    assert_nothing_is_left(cluster)
