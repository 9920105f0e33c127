"""cfpo_verl.stop_request: the callback in verl's own training loop, whose other parts are stand-ins.

tests/test_resume.py stops a real run.
"""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from doctor_configs import quickstart
from omegaconf import OmegaConf, open_dict
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.v1 import trainer_base

from cfpo_verl import stop_request, train
from cfpo_verl.run_dir import stop_request_path, take_stop_request

SAVES = []


class Recorder(CheckpointCallback):
    """A user's own callback."""

    def on_save(self, trainer, global_step, checkpoint_dir, **kwargs):
        SAVES.append((global_step, Path(checkpoint_dir).name, sorted(kwargs)))


class Loop(trainer_base.PPOTrainer):
    """verl's loop around steps of which nothing is left but what a test does in them."""

    def __init__(self, config, in_step):
        self.config, self.in_step = config, in_step
        self.checkpoint_callback = trainer_base.build_checkpoint_callback(config)
        self.trainer_mode, self.use_critic = "sync", False
        self.global_steps, self.steps_per_epoch, self.total_training_steps = 0, 100, 4
        self.actor_rollout_wg = SimpleNamespace(save_checkpoint=lambda *_args, **_kwargs: None)
        self.train_dataloader = SimpleNamespace(state_dict=dict)
        self.events = []

    def step(self, metrics, timing_raw):
        self.in_step(self, self.global_steps)
        return SimpleNamespace(keys=[], partition_id="train")

    def on_sample_end(self):
        pass

    def on_step_end(self):
        self.events.append(f"weights {self.global_steps}")

    def _validate(self):
        self.events.append(f"validated {self.global_steps}")
        return {"val": 1.0}

    def _compute_metrics(self, *_args, **_kwargs):
        pass

    def _start_profiling(self):
        pass

    def _stop_profiling(self):
        pass

    def _shutdown_dump_executor(self):
        self.events.append("closed")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the loop as `cfpo-verl train` configures it; the flag is set in a step, before its end."""
    SAVES.clear()
    monkeypatch.setattr(stop_request, "POLL_S", 0.01)
    monkeypatch.setattr(trainer_base.tq, "kv_clear", lambda **_kwargs: None)
    monkeypatch.setattr(trainer_base.SkipManager, "init", lambda _config: None)
    monkeypatch.setattr(trainer_base.SkipManager, "set_step", lambda _step: None)

    def start(in_step, *overrides):
        config = quickstart(f"run_dir={tmp_path}", "trainer.val_before_train=false", "trainer.test_freq=1", *overrides)
        config.trainer.checkpoint_callback_class = f"{__name__}.Recorder"
        OmegaConf.resolve(config)
        with open_dict(config):
            train._watch_for_stop_request(config)
        loop = Loop(config, in_step)
        monkeypatch.setattr(
            trainer_base,
            "Tracking",
            lambda **_kwargs: SimpleNamespace(log=lambda data, step: loop.events.append(f"logged {step}")),
        )
        loop.fit(agent_loop_manager=None)
        return loop

    return start


def wait_for_save_freq(loop, value):
    """Wait for the watcher, which has the whole of a step in a real run."""
    deadline = time.monotonic() + 30
    while loop.config.trainer.save_freq != value:
        assert time.monotonic() < deadline, "the watcher did not see the file"
        time.sleep(0.01)


def request(run_dir, step, is_seen=True):
    """Return what makes the request in a step."""

    def in_step(loop, current):
        if current == step:
            stop_request_path(run_dir).touch()
            if is_seen:
                wait_for_save_freq(loop, 1)

    return in_step


def test_without_a_request_nothing_changes(run):
    loop = run(lambda _loop, _step: None)
    assert [event for event in loop.events if event.startswith("logged")] == [f"logged {step}" for step in (1, 2, 3, 4)]
    assert SAVES == []


def test_a_request_saves_the_step_finishes_it_and_ends_the_loop(run, tmp_path):
    loop = run(request(tmp_path, 2))
    assert loop.events == [
        *("weights 1", "validated 1", "logged 1"),
        *("weights 2", "validated 2", "logged 2", "closed"),
    ]
    saved = tmp_path / "checkpoints" / "global_step_2"
    assert (saved / "data.pt").is_file()
    # The user's own callback is called, with all that verl hands over.
    assert SAVES == [(2, "global_step_2", ["async_save"])]
    assert take_stop_request(tmp_path) == saved
    assert not stop_request_path(tmp_path).exists()


def test_a_request_that_comes_just_before_a_regular_save(run, tmp_path, monkeypatch):
    monkeypatch.setattr(stop_request, "POLL_S", 1000)  # the watcher does not see it
    loop = run(request(tmp_path, 2, is_seen=False), "trainer.save_freq=2")
    assert loop.events[-2:] == ["logged 2", "closed"]
    assert take_stop_request(tmp_path) == tmp_path / "checkpoints" / "global_step_2"


def test_a_request_in_the_last_step_changes_the_save_only(run, tmp_path):
    loop = run(request(tmp_path, 4))
    assert loop.events[-2:] == ["logged 4", "closed"]
    assert [step for step, *_others in SAVES] == [4]
    assert take_stop_request(tmp_path) is None  # trained to the end: status 0
    assert not stop_request_path(tmp_path).exists()


def test_a_request_can_be_taken_back(run, tmp_path):
    def in_step(loop, step):
        if step == 2:
            stop_request_path(tmp_path).touch()
            wait_for_save_freq(loop, 1)
            stop_request_path(tmp_path).unlink()
            wait_for_save_freq(loop, 100)

    loop = run(in_step, "trainer.save_freq=100")
    assert "logged 4" in loop.events
    assert [step for step, *_others in SAVES] == [4]  # verl saves the last step


@pytest.mark.parametrize("text", ["", "please", "[1]", '{"reason": "walltime"}'])
def test_what_somebody_wrote_into_the_request_is_no_answer(tmp_path, text):
    stop_request_path(tmp_path).write_text(text)
    assert take_stop_request(tmp_path) is None
    assert not stop_request_path(tmp_path).exists()
    assert take_stop_request(tmp_path) is None


def test_the_users_own_callback_is_kept_once(tmp_path):
    """A config that was resolved by an earlier attempt already names ours."""
    config = quickstart(f"run_dir={tmp_path}")
    for _attempt in range(2):
        with open_dict(config):
            train._watch_for_stop_request(config)
    assert config.trainer.checkpoint_callback_class == "cfpo_verl.stop_request.StopOnRequest"
    assert config.checkpoint_callback_class is None
