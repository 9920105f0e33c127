"""What `cfpo-verl slurm` writes and refuses, without a cluster; tests/test_slurm_cluster.py has one."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from conftest import skip_unless_ci
from typer.testing import CliRunner

from cfpo_verl import config_groups, sites, train
from cfpo_verl.errors import UserError
from cfpo_verl.files import FileError
from cfpo_verl.sites import JobError
from cfpo_verl.slurm import client, jobs, wait
from cfpo_verl.slurm import cluster as clusters
from cfpo_verl.slurm.cluster import Cluster, Container, check, check_run_dir
from cfpo_verl.slurm.script import render, sbatch_options

GOLDEN = Path(__file__).parent / "golden" / "slurm"
SITE = """\
partition: gpu
account: rl
gpu_type: h100
shared_dir: /shared
network_interface: ib0
modules: [cuda/12.8]
setup: ["source /shared/venv/bin/activate"]
environment: {HF_HOME: /shared/hf, GREETING: "it's $HOME"}
"""
CONTAINERS = {
    "plain": "",
    "pyxis": "container: {runtime: pyxis, image: /shared/verl.sqsh, mounts: ['/shared/hf:/hf']}\n",
    "apptainer": "container: {runtime: apptainer, image: /shared/verl.sif, mounts: ['/shared/hf:/hf']}\n",
}
RUNS = {
    1: ["experiment=gsm8k_1gpu"],
    2: ["experiment=math_14b_16gpu"],
    16: ["experiment=math_8gpu", "topology=16x8"],
}
CASES = [(nodes, kind) for nodes in RUNS for kind in ("plain", "pyxis")] + [(2, "apptainer")]


@pytest.fixture
def site(tmp_path):
    """A folder with cluster/mysite.yaml, to fill."""

    def write(text: str) -> Path:
        (tmp_path / "cluster").mkdir(exist_ok=True)
        (tmp_path / "cluster" / "mysite.yaml").write_text(text)
        return tmp_path

    return write


def script_of(overrides: list[str], config_dir: Path, multirun: bool = False) -> str:
    cluster, home, runs = jobs.plan(overrides, config_dir, multirun)
    job = dataclasses.replace(jobs.make_job(cluster, home, runs), work_dir=Path("/shared/work"))
    return render(cluster, job)


@pytest.mark.parametrize(("nodes", "kind"), CASES)
def test_script_is_the_golden_one(site, nodes, kind):
    """The files are renewed with: RENEW_GOLDEN=1 pytest tests/test_slurm.py -k golden; then look at the difference."""
    run_dir = f"run_dir=/shared/runs/{nodes}_{kind}"
    script = script_of([*RUNS[nodes], "cluster=mysite", run_dir], site(SITE + CONTAINERS[kind]))
    golden = GOLDEN / f"{nodes}_nodes_{kind}.sbatch"
    if os.environ.get("RENEW_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(script)
    assert script == golden.read_text()
    assert f"#SBATCH --nodes={nodes}\n" in script
    assert f"#SBATCH --gpus-per-node=h100:{1 if nodes == 1 else 8}\n" in script


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.sbatch")), ids=lambda path: path.stem)
def test_golden_scripts_are_sound_shell(golden):
    assert subprocess.run(["bash", "-n", golden]).returncode == 0
    if shutil.which("shellcheck") is None:
        skip_unless_ci("shellcheck is not installed (make system-deps, as root)")
    result = subprocess.run(["shellcheck", "--severity=warning", golden], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_values_reach_the_shell_as_they_are(site):
    script = script_of(["experiment=gsm8k_1gpu", "cluster=mysite", "run_dir=/shared/runs/a b"], site(SITE))
    lines = script.splitlines()
    assignments = "\n".join(line for line in lines if line.startswith(("RUN_DIR=", "    export GREETING=")))
    shown = subprocess.run(["bash", "-c", f'{assignments}\nprintf "%s|%s" "$RUN_DIR" "$GREETING"'], capture_output=True)
    assert shown.stdout.decode() == "/shared/runs/a b|it's $HOME"


def test_environment_is_exported_before_ray_starts(site):
    script = script_of(["experiment=cpu_quickstart", "cluster=mysite", "run_dir=/shared/runs/a"], site(SITE))
    for name, value in config_groups.platform_env("cpu").items():
        assert f"    export {name}={value}\n" in script
    body = script[script.index("run_ray() {") :]
    assert body.index("prepare || return") < body.index("ray start")


def test_cpu_runs_ask_for_no_gpus(site):
    script = script_of(["experiment=cpu_quickstart", "cluster=mysite", "run_dir=/shared/runs/a"], site(SITE))
    assert "gpus-per-node" not in script.replace('--gpus-per-node "$GPUS_PER_NODE"', "")
    assert "RAY_CPUS=64" in script


def test_standalone_rollout_nodes_are_counted(site):
    script = script_of(["experiment=math_async_16gpu", "cluster=mysite", "run_dir=/shared/runs/a"], site(SITE))
    assert "#SBATCH --nodes=2\n" in script


def test_without_a_setup_the_environment_of_the_caller_is_used(site):
    script = script_of(["experiment=gsm8k_1gpu", "cluster=mysite", "run_dir=/shared/runs/a"], site(""))
    assert f"    export PATH={sys.prefix}/bin:$PATH\n" in script


def test_every_fact_has_a_default_and_the_example_states_it(site):
    """The example lists every field of the dataclass with its default, and an empty file means the same."""
    example = files("cfpo_verl.hydra_configs") / "cluster" / "example.yaml"
    assert yaml.safe_load(example.read_text()) == dataclasses.asdict(Cluster())
    cluster, _home, _runs = jobs.plan(
        ["experiment=gsm8k_1gpu", "run_dir=/shared/runs/a", "cluster=mysite"], site(""), False
    )
    assert cluster == Cluster()


def test_options_of_sbatch():
    cluster = Cluster(partition="gpu", qos="high", exclusive=False, cpus_per_node=32, gpu_request="gres")
    job = jobs.Job("name", Path("/r"), Path("/w"), 3, 4, True, None, {}, [Path("/a"), Path("/b")])
    options = sbatch_options(cluster, job)
    assert "--gres=gpu:4" in options
    assert "--cpus-per-task=32" in options
    assert "--exclusive" not in options
    assert "--array=0-1%4" in options
    assert "--signal=B:USR1@900" in options
    assert {"--partition=gpu", "--qos=high"} <= set(options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu_request": "gpus"}, "gpu_request='gpus': choose one of gpus-per-node, gres, none"),
        ({"container": Container("docker", "x")}, "runtime='docker': choose one of none, pyxis, apptainer"),
        ({"container": Container("pyxis")}, "set both an image and a runtime, or neither"),
        ({"container": Container("none", "x.sif")}, "set both an image and a runtime, or neither"),
        ({"time": "86400"}, "time='86400': use [days-]hours:minutes:seconds"),
        ({"time": "1 hour"}, "in quotes in YAML"),
        ({"network_interface": "ib0; rm"}, "give the name of a network interface"),
        ({"cpus_per_node": 0}, "give a number above 0, or null for all CPUs"),
        ({"exclusive": False}, "SLURM would allocate only one CPU. Set cluster.cpus_per_node"),
        ({"max_requeues": -1}, "give 0 (never) or more"),
        ({"max_parallel_jobs": 0}, "give 1 or more"),
        ({"nodes_deadline_s": 0}, "give seconds above 0"),
        ({"stop_before_end_s": 70000}, "give seconds from 1 to 65535"),
        ({"scratch_dir": "scratch"}, "give an absolute path of at most 20 characters"),
        ({"scratch_dir": "/local/scratch/of/the/node"}, "give an absolute path of at most 20 characters"),
        ({"shared_dir": "shared"}, "shared_dir='shared': give an absolute path"),
        ({"environment": {"A-B": "1"}}, "environment.A-B: not a valid name of an environment variable"),
        ({"environment": {"A": "1\n2"}}, "contains a line break"),
        ({"partition": "gpu\n#SBATCH --wrap=x"}, "contains a line break"),
        ({"sbatch": ["exclude=n1"]}, "options of sbatch begin with --"),
    ],
)
def test_facts_without_sense_are_refused(change, words):
    assert check(Cluster()) == []
    [problem] = check(dataclasses.replace(Cluster(), **change))
    assert words in problem


@pytest.mark.parametrize(
    ("run_dir", "facts", "words"),
    [
        ("/home/me/run", {"shared_dir": "/shared"}, "is not in cluster.shared_dir=/shared"),
        ("/shared/100%", {}, "would interpret '%'"),
        ("/shared/a'b", {}, "Choose another name"),
        ("/tmp/run", {}, "which is local to each node"),
    ],
)
def test_folders_that_nodes_would_not_share_are_refused(run_dir, facts, words):
    with pytest.raises(JobError) as refusal:
        check_run_dir(Cluster(**facts), Path(run_dir))
    assert words in str(refusal.value)
    check_run_dir(Cluster(shared_dir="/shared"), Path("/shared/runs/a b"))


def test_unknown_keys_are_refused_with_what_was_meant(site):
    for text, words in {
        "partitoin: gpu": "cluster.partitoin: unknown key. Did you mean partition?",
        "container: {imag: x}": "cluster.container.imag: unknown key. Did you mean image?",
        "max_requeues: many": "cluster.max_requeues: Value 'many'",
    }.items():
        with pytest.raises(JobError) as refusal:
            jobs.plan(["experiment=gsm8k_1gpu", "cluster=mysite", "run_dir=/shared/a"], site(text), False)
        assert words in str(refusal.value)
    with pytest.raises(JobError, match=r"cluster\.tim: unknown key\. Did you mean time"):
        jobs.plan(["experiment=gsm8k_1gpu", "cluster=mysite", "cluster.tim=1:00:00"], site(""), False)
    with pytest.raises(JobError, match=r"found: mysite"):
        jobs.plan(["experiment=gsm8k_1gpu", "cluster=other"], site(""), False)
    with pytest.raises(JobError, match="no cluster is chosen"):
        jobs.plan(["experiment=gsm8k_1gpu"], site(""), False)
    sites.check_key(clusters.GROUP, "container.mounts")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partition: gpu\nsetup: [a", "line 2: not valid YAML"),
        ("time: '1:00:00'\ntime: '2:00:00'", "line 2: not valid YAML (found duplicate key time)"),
        ("partition: \x01", "not valid YAML (unacceptable character"),
        ("- partition", "not a mapping of keys to values"),
        ("5", "cannot be read"),
        ("container: x", "cluster.container: Merge error"),
        ("environment: [a]", "cluster.environment: Cannot merge"),
    ],
)
def test_errors_of_a_site_file_name_it(site, text, words):
    folder = site(text)
    with pytest.raises(UserError) as error:
        jobs.plan(["experiment=gsm8k_1gpu", "cluster=mysite", "run_dir=/shared/a"], folder, False)
    assert str(error.value).startswith(f"{folder}/cluster/mysite.yaml: {words}")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+cluster.environment={A: {B: 1}}"], "cluster.environment.A={'B': 1}: give a text"),
        (["cluster.container.mounts=[null]"], "cluster.container.mounts[0]: "),
        (["run_dir=null"], "run_dir is not set"),
        (["~run_dir"], "Key 'run_dir' is not in struct"),
        (["run_dir=${nothing}"], "'nothing' not found"),
        (["~trainer.nnodes"], "Key 'nnodes' is not in struct"),
        (["trainer.experiment_name=${nothing}"], "'nothing' not found"),
        (["data.seed=${nothing}"], "'nothing' not found"),
        (["trainer.n_gpus_per_node=0"], "trainer.n_gpus_per_node=0: give a whole number above 0"),
        (["trainer.nnodes=many"], "trainer.nnodes=many: give a whole number above 0"),
        (["ray_kwargs.ray_init=null"], "ray_kwargs.ray_init=null: give a mapping"),
        (["seed=[0"], "no viable alternative at input '[0'"),
        (["algo=glob(*)"], "algo=glob(*): ConfigLoader is not set. List the values"),
    ],
)
def test_overrides_that_cannot_be_used_are_errors_of_the_users(site, tmp_path, overrides, words):
    run_dir = [] if "run_dir" in overrides[0] else [f"run_dir={tmp_path}/run"]
    arguments = ["experiment=gsm8k_1gpu", "cluster=mysite", *run_dir, *overrides]
    multirun = overrides[0].startswith(("seed", "algo"))
    with pytest.raises(UserError) as error:
        jobs.write(*jobs.plan(arguments, site("scratch_dir: /local"), multirun))
    assert words in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cluster"]


def test_unquoted_time_is_not_taken_for_minutes(site):
    with pytest.raises(JobError, match="time='86400'"):
        jobs.plan(["experiment=gsm8k_1gpu", "cluster=mysite", "run_dir=/shared/a"], site("time: 24:00:00"), False)


def test_sweep_is_an_array_with_a_folder_for_each_point(site, tmp_path):
    arguments = ["experiment=gsm8k_1gpu", "cluster=mysite", "seed=0,1", "algo=cfpo,grpo", "cluster.max_parallel_jobs=3"]
    cluster, home, runs = jobs.plan([*arguments, f"run_dir={tmp_path}/base"], site("scratch_dir: /local"), True)
    assert home == tmp_path / "base_sweep"
    script = jobs.write(cluster, home, runs).read_text()
    assert "#SBATCH --array=0-3%3\n" in script
    assert [run.run_dir.name for run in runs] == [
        f"base_seed={seed},algo={algo}" for seed in (0, 1) for algo in ("cfpo", "grpo")
    ]
    for run in runs:
        assert f"    {run.run_dir}\n" in script.replace("'", "")
        config = (run.run_dir / "slurm" / "config.yaml").read_text()
        assert f"seed: {dict(item.split('=') for item in run.overrides)['seed']}\n" in config
    assert jobs.run_dirs_of(home) == [run.run_dir for run in runs]
    jobs.note_submitted(home, runs, "7")
    assert [jobs.last_job(folder) for folder in (home, runs[0].run_dir, runs[3].run_dir)] == ["7", "7_0", "7_3"]


def test_a_folder_is_used_again_once_its_job_has_ended(site, tmp_path, monkeypatch):
    arguments = ["experiment=gsm8k_1gpu", "cluster=mysite", f"run_dir={tmp_path}/run"]
    made = jobs.plan(arguments, site("scratch_dir: /local"), False)
    script = jobs.write(*made).read_text()
    jobs.note_submitted(made[1], made[2], "7")
    monkeypatch.setattr(client, "state_if_active", {"7": "PENDING"}.get)
    with pytest.raises(JobError, match=r"its job 7 is PENDING.*Choose another run_dir, or cancel"):
        jobs.write(*made)
    assert (tmp_path / "run" / "slurm" / "job.sbatch").read_text() == script
    monkeypatch.setattr(client, "state_if_active", {}.get)
    jobs.write(*made)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"job_id": "6"}\n{"job_', "line 2: not the record of a job"),
        ('{"job_id": "6"}\n[7]', "line 2: not the record of a job"),
        ('{"id": "6"}', "line 1: not the record of a job"),
        ("", "line 1: not the record of a job"),
        (b"\xff", "cannot be read: not UTF-8 text"),
    ],
)
def test_broken_records_of_jobs_are_named(tmp_path, content, words):
    path = tmp_path / "slurm" / "jobs.jsonl"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        jobs.last_job(tmp_path)
    assert str(error.value).startswith(f"{path}: {words}")


def test_broken_lists_of_points_are_named(tmp_path):
    path = tmp_path / "slurm" / "points.txt"
    path.parent.mkdir()
    path.write_text("")
    with pytest.raises(JobError, match=r"points\.txt: lists no run folder"):
        jobs.run_dirs_of(tmp_path)
    path.write_bytes(b"\xff")
    with pytest.raises(FileError, match=r"points\.txt: cannot be read: not UTF-8"):
        jobs.run_dirs_of(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(site, tmp_path):
    (tmp_path / "taken").write_text("a file")
    arguments = ["experiment=gsm8k_1gpu", "cluster=mysite", f"run_dir={tmp_path}/taken/run"]
    made = jobs.plan(arguments, site("scratch_dir: /local"), False)
    with pytest.raises(FileError, match=r"taken/run.*: cannot be written \(Not a directory\)"):
        jobs.write(*made)
    with pytest.raises(FileError, match=r"taken/run/slurm/jobs\.jsonl: cannot be written"):
        jobs.note_submitted(made[1], made[2], "7")


def test_an_attempt_without_logs_is_an_error(run_cli, tmp_path):
    """`tail` without files would wait for standard input."""
    (tmp_path / "run" / "slurm" / "job-7" / "attempt-0").mkdir(parents=True)
    (tmp_path / "run" / "slurm" / "config.yaml").touch()
    result = run_cli("slurm", "logs", "run")
    assert result.returncode == 2
    assert "run: no logs yet" in result.stderr


def test_points_of_a_sweep_must_be_alike(site):
    with pytest.raises(JobError, match=r"differ in trainer\.nnodes"):
        jobs.plan(["experiment=math_8gpu", "cluster=mysite", "topology=1x8,2x8", "run_dir=/shared/a"], site(""), True)
    with pytest.raises(JobError, match="several points of the sweep have run_dir"):
        jobs.plan(["experiment=math_8gpu", "cluster=mysite", "seed=1,1", "run_dir=/shared/a"], site(""), True)


def test_render_writes_what_the_job_needs_and_starts_nothing(run_script, tmp_path, site):
    site("scratch_dir: /local\n")
    command = ["slurm", "render", "experiment=cpu_quickstart", "cluster=mysite", "trainer.nnodes=2", "run_dir=run"]
    result = run_script(*command)
    assert result.returncode == 0, result.stderr
    script = tmp_path / "run" / "slurm" / "job.sbatch"
    assert result.stdout.strip() == str(script)
    config = (tmp_path / "run" / "slurm" / "config.yaml").read_text()
    assert f"run_dir: {tmp_path}/run\n" in config
    assert "num_gpus" not in config  # ray.init refuses it where it joins
    assert "cluster:" not in config
    manifest = json.loads((tmp_path / "run" / "slurm" / "manifest.json").read_text())
    assert manifest["overrides"] == command[2:]
    assert manifest["versions"]["verl"] == "0.9.1"
    assert len(manifest["script_sha256"]) == 64
    assert sorted(path.name for path in (tmp_path / "run" / "slurm").iterdir()) == [
        "config.yaml",
        "job.sbatch",
        "manifest.json",
    ]


def test_template_of_the_users_own(run_cli, tmp_path, site):
    site("scratch_dir: /local\n")
    (tmp_path / "mine.j2").write_text(
        '{% extends "job.sbatch.j2" %}\n{% block driver %}\n    python mine.py\n{% endblock %}\n'
    )
    command = ["slurm", "render", "experiment=gsm8k_1gpu", "cluster=mysite", "run_dir=run", "--template"]
    assert run_cli(*command, "mine.j2").returncode == 0
    script = (tmp_path / "run" / "slurm" / "job.sbatch").read_text()
    assert "    python mine.py\n" in script
    assert "cfpo-verl train" not in script
    (tmp_path / "mine.j2").write_text("{{ nothing }}")
    shutil.rmtree(tmp_path / "run")
    result = run_cli(*command, "mine.j2")
    assert result.returncode == 2
    assert "mine.j2: line 1: UndefinedError: 'nothing' is undefined" in result.stderr
    assert not (tmp_path / "run").exists()
    missing = run_cli(*command, "other.j2")
    assert missing.returncode == 2
    assert "other.j2: cannot be read (No such file or directory)" in missing.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n{% block driver %}", "line 2: TemplateSyntaxError: Unexpected end of template"),
        ("a\nb\n{{ 1 // 0 }}", "line 3: ZeroDivisionError"),
        ('{% extends "job.sbatch.j2" %}\n{% block driver %}\n{{ cluster.nothing }}{% endblock %}', "line 3: Undefined"),
        ('{% include "absent.j2" %}', "line 1: TemplateNotFound: absent.j2"),
    ],
)
def test_errors_of_a_template_name_its_line(tmp_path, text, words):
    template = tmp_path / "mine.j2"
    template.write_text(text)
    job = jobs.Job("name", Path("/r"), Path("/w"), 1, 8, True, None, {})
    with pytest.raises(JobError) as error:
        render(Cluster(), job, template)
    assert f"{template}: {words}" in str(error.value)
    template.write_bytes(b"\xff")
    with pytest.raises(FileError, match=r"mine\.j2: cannot be read: not UTF-8"):
        render(Cluster(), job, template)


def test_submit_refuses_before_anything_is_written(run_cli, tmp_path, site):
    """The data of the experiment are missing."""
    site("scratch_dir: /local\n")
    result = run_cli("slurm", "submit", "experiment=cpu_quickstart", "cluster=mysite", "run_dir=run")
    assert result.returncode == 2
    assert "nothing was queued" in result.stderr
    assert "failed" in result.stderr
    assert not (tmp_path / "run" / "slurm").exists()


def test_errors_of_the_other_commands(run_cli, tmp_path):
    (tmp_path / "empty").mkdir()
    for command, words in {
        "status": "empty: no job was submitted for this folder (empty/slurm/jobs.jsonl is missing)",
        "logs": "empty: no job was rendered in this folder (empty/slurm/config.yaml is missing)",
        "cancel": "empty: no job was submitted for this folder",
    }.items():
        result = run_cli("slurm", command, "nowhere")
        assert result.returncode == 2
        assert "Invalid value for 'RUN_DIR': dir 'nowhere' does not exist." in result.stderr
        result = run_cli("slurm", command, "empty")
        assert result.returncode == 2
        assert f"cfpo-verl slurm {command}: {words}" in result.stderr
    assert "cluster facts" not in run_cli("slurm", "example").stderr
    assert "stop_before_end_s: 900" in run_cli("slurm", "example").stdout


def test_a_frozen_config_is_trained_whatever_became_of_the_files(run_cli, site, capsys):
    site("scratch_dir: /local\n")
    assert run_cli("slurm", "render", "experiment=cpu_quickstart", "cluster=mysite", "run_dir=run").returncode == 0
    frozen = "run/slurm/config.yaml"
    shown = run_cli("train", "--config", frozen, "actor_rollout_ref.actor.policy_loss.epsilon=0.15", "--dry-run")
    assert "epsilon: 0.15" in shown.stdout
    for arguments, words in (
        (["--config", frozen, "trainer.nnode=2"], "there is no key 'trainer.nnode' in it"),
        (["--config", frozen, "+trainer.new=2"], "with --config give KEY=VALUE"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: cannot be read"),
        (["--config", "cluster/mysite.yaml"], "not the config of a run"),
        (["--config"], "--config: expected one argument"),
    ):
        assert train.main(arguments) == 2
        errors = capsys.readouterr().err
        assert words in errors
        assert "Nothing was started." in errors


def test_waiting_ends_when_nothing_is_missing_and_names_what_is():
    node = {"Alive": True, "Labels": {wait.HOST_LABEL: "n1"}, "Resources": {"GPU": 8.0}}
    answers = iter([None, [node], [node, {**node, "Labels": {wait.HOST_LABEL: "n2"}}]])
    assert wait.wait(["n1", "n2"], 8, 60, lambda: next(answers)) == []
    assert wait.wait(["n1", "n2"], 8, 0, lambda: [node]) == ["n2 (not joined)"]
    assert wait.missing(["n1"], 8, [{**node, "Alive": False}]) == ["n1 (not joined)"]


def test_waiting_ends_with_the_status_that_the_batch_script_knows(monkeypatch):
    node = {"Alive": True, "Labels": {wait.HOST_LABEL: "n1"}, "Resources": {"GPU": 8.0}}
    monkeypatch.setattr(wait, "_ask_ray", lambda: [node])
    arguments = ["--gpus-per-node", "8", "--deadline-s", "0", "n1"]
    result = CliRunner().invoke(wait.app, arguments)
    assert (result.exit_code, result.output) == (0, "all 1 nodes have joined, with 8 GPUs each\n")
    result = CliRunner().invoke(wait.app, [*arguments, "n2"])
    assert result.exit_code == 69
    assert result.output.startswith("1 of 2 nodes have not joined within 0 s: n2 (not joined). Their logs are")
