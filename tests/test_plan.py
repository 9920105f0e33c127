"""`cfpo-verl plan` as a user sees it, its hardware file, and the page about it."""

import json
import subprocess
import sys

import pytest
from conftest import PROJECT, in_checkout

from cfpo_verl.composing import compose
from cfpo_verl.demands import gpus_needed
from cfpo_verl.errors import UserError
from cfpo_verl.plan.hardware import find_gpu, gpu_types
from cfpo_verl.plan.read_config import read_run

QUICKSTART = ("plan", "experiment=cpu_quickstart")
# The quickstart's batch on GPUs: enough to try the command on.
ON_GPUS = (
    *QUICKSTART,
    "trainer.device=cuda",
    "trainer.n_gpus_per_node=8",
    "actor_rollout_ref.model.path=Qwen/Qwen2.5-7B",
    "actor_rollout_ref.rollout.dtype=bfloat16",
    "actor_rollout_ref.rollout.free_cache_engine=true",
)


def test_the_quickstart_fits_and_is_told_part_by_part(run_script):
    result = run_script(*QUICKSTART)
    assert result.returncode == 0
    for words in ("weights", "gradients", "optimizer", "activations", "logits", "kv cache", "1 x cpu-2-cores"):
        assert words in result.stdout
    for words in ("generation", "old log-probabilities", "update", "weight sync", "3,072 tokens per step"):
        assert words in result.stdout
    assert "GPU hours for 20 steps" in result.stdout
    assert "It fits in 25 GB." in result.stdout


def test_json_has_the_same(run_cli):
    result = run_cli(*ON_GPUS, "--json", "--response-tokens", "6")
    assert result.returncode == 0
    found = json.loads(result.stdout)
    assert found["fits"] is True
    assert found["first_change"] is None
    assert (found["gpus"], found["parameters"], found["mean_response_tokens"]) == (8, 7_615_616_512, 6)
    # 256 responses of 6 tokens after prompts of 8.
    assert found["tokens_per_step"] == 256 * 14
    seconds = dict(found["seconds_per_step"])
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    assert found["gpu_hours"] == pytest.approx(found["gpu_hours_per_100_steps"] / 5)
    for parts in found["memory_per_gpu_gb"].values():
        assert parts.pop("total") == pytest.approx(sum(parts.values()))


def test_what_does_not_fit_has_a_way_out(run_cli):
    big = "actor_rollout_ref.model.path=Qwen/Qwen2.5-32B"
    result = run_cli(*ON_GPUS, big, "--json")
    assert result.returncode == 1
    change = json.loads(result.stdout)["first_change"]
    told = run_cli(*ON_GPUS, big)
    assert told.returncode == 1
    assert f"It does not fit in 80 GB. First change: {change['key']}={change['value']}" in told.stdout
    assert run_cli(*ON_GPUS, big, f"{change['key']}={change['value']}").returncode == (0 if change["is_enough"] else 1)


def test_scaling_is_shown_and_drawn(run_cli, tmp_path):
    result = run_cli(*ON_GPUS, "--scale", "--figure", "scale.png", "--json")
    assert result.returncode == 0
    scaling = json.loads(result.stdout)["scaling"]
    assert [row["gpus"] for row in scaling["rows"]] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert scaling["stops_paying_at_gpus"] == 16
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert "stops paying at 16 GPUs" in run_cli(*ON_GPUS, "--scale").stdout


def test_own_hardware_is_used(run_cli, tmp_path):
    (tmp_path / "own.yaml").write_text("gpus:\n  H100-80GB:\n    memory_gb: 20\n")
    result = run_cli(*ON_GPUS, "--hardware", "own.yaml", "--gpu", "H100-80GB", "--json")
    assert json.loads(result.stdout)["memory_gb"] == 20
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "trainer.nnodes=2"], "no experiment is given. Add experiment=NAME, one of: cpu_quickstart"),
        (["plan", "experiment=nothing"], "Could not find 'experiment/nothing'"),
        ([*QUICKSTART, "trainer.no_such_key=1"], "no_such_key"),
        ([*QUICKSTART, "actor_rollout_ref.model.path=org/model"], "actor_rollout_ref.model.path=org/model: no folder"),
        ([*QUICKSTART, "--gpu", "TPU"], "no GPU type is named 'TPU'. Choose one of: A100-80GB, H100-80GB"),
        ([*QUICKSTART, "--hardware", "none.yaml"], "none.yaml: cannot be read (No such file or directory)"),
        ([*QUICKSTART, "--response-tokens", "9"], "--response-tokens must be above 0 and at most 8"),
        ([*QUICKSTART, "--limit-share", "1"], "--limit-share must be at least 0 and below 1"),
        ([*QUICKSTART, "--figure", "x.png"], "--figure draws the table of --scale. Give --scale too"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_is_named(run_cli, arguments, message):
    result = run_cli(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_help_has_examples(run_cli):
    result = run_cli("plan", "--help")
    assert result.returncode == 0
    assert "cfpo-verl plan experiment=cpu_quickstart" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base:\n  a: 1\ngpus: [", "own.yaml, line 3: not YAML"),
        ("\xff", "own.yaml: cannot be read: not UTF-8"),
        ("gpu: {}", "only the keys base and gpus are allowed, got gpu"),
        ("1: {}", "keys must be strings, got 1"),
        ("- 1", "must be a mapping of keys to values, got a list"),
        ("base: 3", "base must be a mapping of keys to values, got 3"),
        ("gpus: [1]", r"gpus must be a mapping of keys to values, got \[1\]"),
        ("gpus: {X: 5}", r"gpus\.X must be a mapping of keys to numbers, got 5"),
        ("gpus: {X: {memory_gb: 10}}", "GPU type X: missing keys: memory_gb_s, nvlink_gb_s, peak"),
        ("gpus: {H200: {memory: 10}}", "GPU type H200: unknown keys: memory"),
        ("gpus: {H200: {1: 10}}", "GPU type H200: unknown keys: 1"),
        ("gpus: {H200: {memory_gb: 0}}", "GPU type H200: memory_gb must be a number above 0, got 0"),
        ("gpus: {H200: {memory_gb: .nan}}", "GPU type H200: memory_gb must be a number above 0, got nan"),
        ("base: {matmul_efficiency: fast}", "matmul_efficiency must be a number above 0, got 'fast'"),
    ],
)
def test_a_wrong_hardware_file_is_refused(text, message, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message) as refusal:
        gpu_types(path)
    assert str(refusal.value).startswith(str(path))


@pytest.mark.parametrize(
    ("figure", "message"),
    [("scale.xyz", "cannot draw a .xyz file. Choose a name ending in .png"), ("/proc/a.png", "/proc/a.png: cannot be")],
)
def test_a_figure_that_cannot_be_drawn(run_cli, figure, message):
    result = run_cli(*ON_GPUS, "--scale", "--figure", figure)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_file_of_problems_that_is_no_parquet(run_cli, tmp_path):
    (tmp_path / "x.parquet").write_text("abc")
    result = run_cli(*QUICKSTART, "data.train_files=x.parquet", "trainer.total_training_steps=null")
    assert result.returncode == 2
    assert "data.train_files: x.parquet: not a parquet file" in result.stderr


def test_own_assumptions_hold_for_every_gpu(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("base: {matmul_efficiency: 0.31, decode_step_overhead_s: 0}\n")
    for name in ("A100-80GB", "H100-80GB", "H200", "H20"):
        assert find_gpu(name, path).matmul_efficiency == 0.31
    # It says so itself.
    assert find_gpu("cpu-2-cores", path).matmul_efficiency == 1.0
    assert find_gpu("H200").matmul_efficiency == 0.4


def test_the_experiments_are_read():
    run = read_run(compose(["experiment=cpu_smollm2_gsm8k"]))
    assert run.shape.parameters == 134_515_008
    assert (run.batch.responses, run.batch.optimizer_steps, run.batch.steps) == (16, 4, 2)
    trainer = run.trainer
    assert (trainer.engine, trainer.weight_bytes, trainer.compute_bytes, trainer.pads_sequences) == (
        "fsdp2",
        4,
        4,
        True,
    )
    assert (trainer.update_sequences, trainer.update_tokens) == (4, 4 * 160)
    assert run.rollout.kv_cache_gb == pytest.approx(1.073741824)


def test_steps_come_from_the_data(arithmetic_files):
    train = arithmetic_files[0]
    overrides = ["experiment=cpu_quickstart", f"data.train_files={train}", "trainer.total_training_steps=null"]
    # 100 sums of two digits less 16 that are held out: 2 batches of 32, for 3 epochs.
    assert read_run(compose([*overrides, "trainer.total_epochs=3"])).batch.steps == 6
    assert read_run(compose(["experiment=cpu_quickstart", "trainer.total_training_steps=null"])).batch.steps is None


def test_nodes_that_the_trainer_does_not_read_are_not_counted(run_cli):
    """Only the trainer separate_async reads rollout.nnodes; the doctor and job scripts count alike."""
    overrides = ["experiment=math_8gpu", "actor_rollout_ref.rollout.nnodes=2"]
    result = run_cli("plan", *overrides, "--json")
    assert json.loads(result.stdout)["gpus"] == 8
    assert gpus_needed(compose(overrides)) == 8
    separate = compose(["experiment=math_async_16gpu"])
    assert (read_run(separate).gpus, gpus_needed(separate)) == (16, 16)


def test_planning_imports_neither_verl_nor_torch(run_python):
    result = run_python(
        "import sys; from cfpo_verl import plan; from cfpo_verl.composing import compose\n"
        "plan.memory_per_gpu_gb(compose(['experiment=cpu_quickstart']))\n"
        "print('torch' in sys.modules, 'verl' in sys.modules)"
    )
    assert result.stdout.split() == ["False", "False"], result.stderr


def test_the_page_has_what_the_benchmark_prints():
    command = [sys.executable, "-m", "benchmarks.plan"]
    result = subprocess.run(command, env=in_checkout({}), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    scaling, comparison = result.stdout.rstrip().split("\n\n", 1)
    page = (PROJECT / "docs" / "plan.md").read_text()
    assert scaling in page
    assert comparison in page
