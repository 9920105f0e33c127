"""A run that is stopped on request and resumed, against one that was not, on the real stack (cfpo_verl.resume).

Stopped in its first of three steps, then harmed as a crash would: the tracker file is empty, and there is a newer
checkpoint with half a shard. The second attempt saves whole weights too, which the first did not.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import SMALL, clean_environment
from doctor_configs import quickstart
from omegaconf import OmegaConf

from cfpo_verl import train
from cfpo_verl.checkpoints import Held, HeldModel, inspect
from cfpo_verl.doctor.machine import check_checkpoints
from cfpo_verl.mismatch import ResumeError
from cfpo_verl.resume import describe
from cfpo_verl.run_dir import read_metrics, stop_request_path

pytestmark = pytest.mark.stack

LR = 5e-3
CHECKPOINT = "actor_rollout_ref.actor.checkpoint"
# The model answers 7 to everything when decoded greedily. Paying for anything else makes one step change its answers.
ANYTHING_BUT_7 = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_options):
    score = float(solution_str.strip() != ground_truth)
    return {"score": score, "acc": score}
"""


@dataclass
class Stopped:
    run_dir: Path
    first: subprocess.CompletedProcess[str]
    is_flag_removed: bool
    second: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def stopped(workplace) -> Stopped:
    """Two attempts of the same command."""
    run_dir = workplace / "stopped"
    command = [Path(sys.executable).with_name("cfpo-verl"), "train", "experiment=cpu_quickstart", *SMALL]
    command += ["run_dir=stopped", "trainer.total_training_steps=3", "trainer.save_freq=100"]
    command += ["trainer.rollout_data_dir=stopped/rollouts", "tracking=wandb"]
    # Greedy, so that equal weights give equal answers; and a step that is large enough to change them.
    greedy = "{do_sample: false, temperature: 0, n: 1}"
    command += ["trainer.test_freq=1", f"actor_rollout_ref.rollout.val_kwargs={greedy}"]
    command += [f"actor_rollout_ref.actor.optim.lr={LR}"]
    (workplace / "reward.py").write_text(ANYTHING_BUT_7)
    command += [f"reward.custom_reward_function.path={workplace / 'reward.py'}"]
    command += ["reward.custom_reward_function.name=compute_score"]
    env = clean_environment({"WANDB_MODE": "offline", "WANDB_DIR": str(workplace)})

    def start(attempt: int, *changed: str) -> subprocess.Popen[str]:
        arguments = [*command, f"trainer.validation_data_dir=stopped/validation.{attempt}", *changed]
        return subprocess.Popen(
            arguments, cwd=workplace, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(process.args, process.wait(), *process.communicate())

    process = start(1)
    while not (run_dir / "config.1.yaml").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    stop_request_path(run_dir).touch()
    first = end(process)
    assert first.returncode == 75, first.stderr[-5000:]
    is_flag_removed = not stop_request_path(run_dir).exists()

    stop_request_path(run_dir).touch()  # left over, for example by a node that died
    checkpoints = run_dir / "checkpoints"
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("")
    shutil.copytree(checkpoints / "global_step_1", checkpoints / "global_step_2")
    shard = checkpoints / "global_step_2" / "actor" / "optim_world_size_1_rank_0.pt"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    second = end(start(2, f"{CHECKPOINT}.save_contents=[model,optimizer,extra,hf_model]"))
    assert second.returncode == 0, second.stderr[-5000:]
    return Stopped(run_dir, first, is_flag_removed, second)


def plain(value):
    """Return a state with its tensors as lists, so that == compares all of it."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_it_says_where_it_saved_and_where_it_goes_on(stopped):
    checkpoints = stopped.run_dir / "checkpoints"
    saved = f"stopped on request; saved {checkpoints}/global_step_1. Run the same command again to resume from it"
    assert saved in stopped.first.stderr
    assert stopped.is_flag_removed
    assert (
        f"resumes from step 1, {checkpoints}/global_step_1; skips incomplete checkpoints: global_step_2 "
        "(damaged: actor/optim_world_size_1_rank_0.pt is truncated)"
    ) in stopped.second.stderr
    assert sorted(path.name for path in checkpoints.glob("global_step_*")) == [
        "global_step_1",
        "global_step_2.incomplete1",
        "global_step_3",
    ]
    assert not stop_request_path(stopped.run_dir).exists()


def test_what_the_real_checkpoints_hold(stopped):
    """The first has been loaded by verl in a run that asks for hf_model too, which FSDP never loads."""
    contents = {"model", "optimizer", "extra"}
    for step, expected in ((1, contents), (3, {*contents, "hf_model"})):
        held = inspect(stopped.run_dir / "checkpoints" / f"global_step_{step}")
        assert held == Held({"actor": HeldModel("fsdp", frozenset(expected), 1, 2)}, 0, True)


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ([f"{CHECKPOINT}.save_contents=[model,optimizer,extra,hf_model]"], ""),
        ([f"{CHECKPOINT}.load_contents=[model]"], "optimizer, extra of its actor are not loaded"),
        (["updates=colocate_async"], "it holds no prompts in flight"),
        (["updates=one_step_off"], "it holds no prompts in flight"),
        (["backend=megatron"], "FSDP saved its actor, and the run trains it with Megatron"),
        (["critic.enable=true"], "it holds no critic, and the run trains one"),
        (["trainer.n_gpus_per_node=2"], "its actor was saved by 1 ranks"),
        (["data.dataloader_num_workers=2"], "set data.dataloader_num_workers=0"),
        (["data.shuffle=false"], "set data.shuffle=true"),
    ],
)
def test_a_real_checkpoint_under_another_config(stopped, tmp_path, changed, outcome):
    """It is loaded or refused, by the start and by the doctor alike, and stays where it is."""
    real = stopped.run_dir / "checkpoints" / "global_step_1"
    checkpoint = tmp_path / "checkpoints" / "global_step_1"
    shutil.copytree(real, checkpoint)
    config = quickstart(f"trainer.default_local_dir={tmp_path}/checkpoints", *changed)
    findings = list(check_checkpoints(config))
    try:
        found = train._find_checkpoint(config)
        said, status = describe(found), "ok"
    except ResumeError as error:
        found, said, status = None, str(error), "failed"
    assert outcome.lower() in said.lower()
    assert str(checkpoint) in said
    assert (found is None) == any(text in outcome for text in ("trains", "saved by", "set data"))
    assert said in [str(finding) for finding in findings if finding.status == status]
    assert [path.name for path in checkpoint.parent.iterdir()] == ["global_step_1"]


def test_the_config_of_an_attempt_serves_for_another_run(stopped):
    """Neither the checkpoint nor the ids of this one are in it."""
    for attempt in (1, 2):
        config = OmegaConf.load(stopped.run_dir / f"config.{attempt}.yaml")
        assert config.trainer.resume_mode == "auto"
        assert config.trainer.checkpoint_callback_class is None
        assert not {"WANDB_RUN_ID", "VERL_FILE_LOGGER_PATH"} & config.ray_kwargs.ray_init.runtime_env.env_vars.keys()


def test_steps_go_on_without_a_hole_or_a_repetition(stopped, finished):
    """No line of metrics is lost: the step in which the run was stopped has its own, validation included."""
    assert [line["step"] for line in lines(stopped.run_dir / "metrics.1.jsonl")] == [0, 1]
    resumed, *others = lines(stopped.run_dir / "metrics.2.jsonl")
    assert resumed["step"] == 1
    assert all(name.startswith("val-") for name in resumed["data"])
    assert [line["step"] for line in others] == [2, 3]
    whole, metrics = read_metrics(finished[0]), read_metrics(stopped.run_dir)
    assert list(metrics) == [0, 1, 2, 3]
    for step in (1, 2, 3):
        values = metrics[step]
        assert values["actor/lr"] == LR
        for name in ("training/global_step", "training/epoch"):
            assert values[name] == whole[step][name]
        assert values.keys() >= whole[step].keys() - {name for name in whole[step] if name.startswith("val-")}


def test_prompts_come_in_the_same_order(stopped, finished):
    steps = []
    for step in (1, 2, 3):
        # verl dumps them in the order of random ids; a step is a set.
        whole, resumed = (
            sorted(line["input"] for line in lines(run_dir / "rollouts" / f"{step}.jsonl"))
            for run_dir in (finished[0], stopped.run_dir)
        )
        assert whole == resumed
        steps.append(whole)
    assert steps[0] != steps[1] != steps[2]


def test_the_data_loader_is_where_it_would_have_been(stopped, finished):
    """Bit-equal, its generator included."""
    whole, resumed = (
        torch.load(run_dir / "checkpoints" / "global_step_3" / "data.pt", weights_only=False)
        for run_dir in (finished[0], stopped.run_dir)
    )
    assert plain(whole) == plain(resumed)


def test_the_weights_are_those_that_were_saved(stopped):
    """vLLM answers greedily after the restart what it answered before, and not what it did at first."""
    at_first, before, after = (
        {line["input"]: line["output"] for line in lines(stopped.run_dir / name)}
        for name in ("validation.1/0.jsonl", "validation.1/1.jsonl", "validation.2/1.jsonl")
    )
    assert len(before) == 16
    assert before == after != at_first


def test_the_optimiser_goes_on_counting(stopped, finished):
    counts = set()
    for run_dir in (finished[0], stopped.run_dir):
        path = run_dir / "checkpoints" / "global_step_3" / "actor" / "optim_world_size_1_rank_0.pt"
        state = torch.load(path, weights_only=False)["state"]
        counts |= {int(parameter["step"]) for parameter in state.values()}
    assert counts == {3 * 8 * 4 // (2 * 4)}  # steps * responses / responses of an update


def test_both_attempts_are_one_run_of_wandb(stopped, workplace):
    """Offline: each attempt leaves a folder that ends in its run id."""
    ids = [path.name.rpartition("-")[2] for path in (workplace / "wandb").glob("offline-run-*")]
    assert ids == [(stopped.run_dir / "tracking_id").read_text().strip()] * 2
