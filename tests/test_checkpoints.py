"""cfpo_verl.checkpoints and cfpo_verl.resume: completeness, the choice of a checkpoint, the loggers' variables.

The folders are built as verl writes them, from files of torch.save; tests/test_resume.py looks at real ones.
"""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from doctor_configs import gpu_config, quickstart
from verl.trainer.config import CheckpointConfig
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager, find_latest_ckpt_path

from cfpo_verl import resume, train
from cfpo_verl.checkpoints import (
    Expected,
    Found,
    WorldSizeError,
    newest_complete,
    saved_world_size,
    set_aside,
    why_incomplete,
)
from cfpo_verl.files import FileError

TWO_RANKS = Expected(world_size=2)
SHARDS = [f"{name}_world_size_2_rank_{rank}.pt" for name in ("model", "optim", "extra_state") for rank in (0, 1)]


def save_model(folder: Path, world_size: int = 2) -> None:
    """Write what FSDPCheckpointManager writes, in its order."""
    (folder / "huggingface").mkdir(parents=True)
    for rank in range(world_size):
        for name in ("model", "optim", "extra_state"):
            torch.save({"a": torch.ones(100)}, folder / f"{name}_world_size_{world_size}_rank_{rank}.pt")
    for name in ("config.json", "tokenizer_config.json"):
        (folder / "huggingface" / name).write_text("{}")
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world_size}))


def save(folder: Path, step: int, world_size: int = 2) -> Path:
    """Write a complete checkpoint."""
    checkpoint = folder / f"global_step_{step}"
    save_model(checkpoint / "actor", world_size)
    torch.save({"position": step}, checkpoint / "data.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    return checkpoint


def save_megatron(folder: Path, step: int) -> Path:
    """Write what MegatronCheckpointManager writes with a bridge, by its source."""
    checkpoint, actor = folder / f"global_step_{step}", folder / f"global_step_{step}" / "actor"
    for part in ("optimizer", "extra"):
        (actor / part / "dist_ckpt").mkdir(parents=True)
        for name in ("common.pt", "__0_0.distcp", ".metadata", "metadata.json"):
            (actor / part / "dist_ckpt" / name).write_text("x")
    (actor / "model" / "huggingface").mkdir(parents=True)
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        (actor / "model" / "huggingface" / name).write_text("x")
    (actor / "transformer_config.json").write_text("{}")
    contents = {
        "model": {"path": "model/huggingface", "format": "huggingface", "backend": "mbridge"},
        "optimizer": {"path": "optimizer/dist_ckpt", "format": "megatron_dist_checkpoint"},
        "rng_state": {"path": "extra/dist_ckpt", "format": "megatron_dist_checkpoint", "key": "rng_state"},
        "transformer_config": {"path": "transformer_config.json", "format": "json"},
    }
    manifest = {"save_contents": ["model", "optimizer", "extra"], "contents": contents, "world_size": 8}
    (actor / "ckpt_contents.json").write_text(json.dumps(manifest))
    torch.save({}, checkpoint / "data.pt")
    return checkpoint


def test_a_complete_checkpoint(tmp_path):
    assert why_incomplete(save(tmp_path, 5), TWO_RANKS) is None


@pytest.mark.parametrize("name", [*(f"actor/{shard}" for shard in SHARDS), "data.pt"])
def test_a_shard_is_missing_empty_or_cut_off(tmp_path, name):
    file = save(tmp_path, 5) / name
    whole, last = file.read_bytes(), file.name
    # Half of it, and all but the last bytes, in which a zip archive has its table of contents.
    for kept in (len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:kept])
        assert why_incomplete(tmp_path / "global_step_5", TWO_RANKS).endswith(f"{last} is truncated")
    file.write_bytes(b"")
    assert why_incomplete(tmp_path / "global_step_5", TWO_RANKS).endswith(f"{last} is empty")
    file.unlink()
    assert why_incomplete(tmp_path / "global_step_5", TWO_RANKS).endswith(f"{last} is missing")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_what_rank_0_writes_last(tmp_path, name):
    checkpoint = save(tmp_path, 5)
    (checkpoint / "actor" / "huggingface" / name).unlink()
    assert why_incomplete(checkpoint, TWO_RANKS) == f"actor/huggingface/{name} is missing or empty"


def test_only_what_is_loaded_has_to_be_there(tmp_path):
    checkpoint = save(tmp_path, 5)
    (checkpoint / "actor" / "optim_world_size_2_rank_1.pt").unlink()
    assert why_incomplete(checkpoint, Expected(2, contents=("model",))) is None
    with_copy = Expected(2, contents=("model", "hf_model"))
    assert why_incomplete(checkpoint, with_copy) == "actor/huggingface/*.safetensors are missing or empty"
    (checkpoint / "actor" / "huggingface" / "model.safetensors").write_text("x")
    assert why_incomplete(checkpoint, with_copy) is None


def test_a_critic_and_prompts_in_flight(tmp_path):
    checkpoint = save(tmp_path, 5)
    with_critic = Expected(2, roles=("actor", "critic"), is_async=True)
    assert why_incomplete(checkpoint, with_critic) == "critic/ is missing"
    save_model(checkpoint / "critic")
    assert why_incomplete(checkpoint, with_critic) == "transfer_queue/ is missing"
    (checkpoint / "transfer_queue").mkdir()
    (checkpoint / "transfer_queue" / "metadata.json").write_text("{}")
    assert why_incomplete(checkpoint, with_critic) is None
    (checkpoint / "critic" / "model_world_size_2_rank_1.pt").unlink()
    assert why_incomplete(checkpoint, with_critic) == "critic/model_world_size_2_rank_1.pt is missing"


def test_what_verls_rotation_leaves_behind_is_no_checkpoint(tmp_path):
    """verl removes the folder of the actor only; its own capacity check is what runs here."""
    checkpoint = save(tmp_path, 5)
    manager = BaseCheckpointManager.__new__(BaseCheckpointManager)
    manager.previous_saved_paths = []
    manager.register_checkpoint(str(checkpoint / "actor"), 1)
    manager.register_checkpoint(str(save(tmp_path, 6) / "actor"), 1)
    assert [path.name for path in checkpoint.iterdir()] == ["data.pt"]
    assert why_incomplete(checkpoint, TWO_RANKS) == "actor/ is missing"
    assert newest_complete(tmp_path, TWO_RANKS) == Found(tmp_path / "global_step_6")


def test_the_newest_complete_one_is_taken_whatever_the_tracker_says(tmp_path):
    assert newest_complete(tmp_path / "none", TWO_RANKS) == Found(None)
    for step in (2, 9, 10):
        save(tmp_path, step)
    (tmp_path / "global_step_12.incomplete1").mkdir()
    (tmp_path / "global_step_x").mkdir()
    (tmp_path / "global_step_30").write_text("a file")
    (tmp_path / "global_step_10" / "actor" / "optim_world_size_2_rank_1.pt").unlink()
    nine = Found(
        tmp_path / "global_step_9",
        {tmp_path / "global_step_10": "actor/optim_world_size_2_rank_1.pt is missing"},
    )
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    for text in ("", "10", "11", "2", "nonsense"):
        tracker.write_text(text)
        assert newest_complete(tmp_path, TWO_RANKS) == nine
    tracker.unlink()
    assert newest_complete(tmp_path, TWO_RANKS) == nine
    assert nine.step == 9


def test_verls_own_rule_is_the_tracker(tmp_path):
    """Why it is not used: it crashes on an empty one, and takes one that is incomplete or not the newest."""
    for step in (9, 10):
        save(tmp_path, step)
    (tmp_path / "global_step_10" / "actor" / "optim_world_size_2_rank_1.pt").unlink()
    assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_10")
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text("")
    with pytest.raises(ValueError, match="invalid literal for int"):
        find_latest_ckpt_path(str(tmp_path))
    tracker.write_text("11")
    assert find_latest_ckpt_path(str(tmp_path)) is None  # and the run begins at step 1, over the others


def test_another_number_of_ranks_is_refused_even_if_an_older_one_fits(tmp_path):
    save(tmp_path, 5, world_size=2)
    newest = save(tmp_path, 6, world_size=4)
    with pytest.raises(WorldSizeError, match=re.escape(f"{newest} was saved by 4 ranks")) as caught:
        newest_complete(tmp_path, TWO_RANKS)
    assert "this run has 2" in caught.value.found
    assert "verl.model_merger merge --backend fsdp" in caught.value.way_out
    assert newest_complete(tmp_path, Expected(world_size=4)).step == 6


def test_the_number_of_ranks_that_saved(tmp_path):
    save_model(tmp_path / "actor", world_size=3)
    assert saved_world_size(tmp_path / "actor") == 3
    (tmp_path / "actor" / "fsdp_config.json").unlink()  # rank 0 did not come to it
    assert saved_world_size(tmp_path / "actor") == 3
    (tmp_path / "empty").mkdir()
    assert saved_world_size(tmp_path / "empty") is None
    assert (
        why_incomplete(tmp_path, Expected(3, roles=("empty",))) == "empty/model_world_size_<W>_rank_<R>.pt are missing"
    )


def test_an_incomplete_checkpoint_is_renamed_not_removed(tmp_path):
    save(tmp_path, 5)
    set_aside(tmp_path / "global_step_5")
    save(tmp_path, 5)
    assert set_aside(tmp_path / "global_step_5") == tmp_path / "global_step_5.incomplete2"
    assert sorted(path.name for path in tmp_path.glob("global*")) == [
        "global_step_5.incomplete1",
        "global_step_5.incomplete2",
    ]
    assert (tmp_path / "global_step_5.incomplete1" / "data.pt").is_file()


MEGATRON = Expected(world_size=4, layout="megatron")


def test_megatron_of_any_number_of_ranks(tmp_path):
    assert newest_complete(tmp_path, MEGATRON) == Found(None)
    save_megatron(tmp_path, 5)
    assert newest_complete(tmp_path, MEGATRON).step == 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ckpt_contents.json", "ckpt_contents.json, which is written last, is missing or broken"),
        ("transformer_config.json", "transformer_config.json is missing"),
        ("model/huggingface/config.json", "model/huggingface/config.json is missing or empty"),
        ("model/huggingface/model.safetensors", "model/huggingface/*.safetensors are missing or empty"),
        ("optimizer/dist_ckpt", "optimizer/dist_ckpt is missing"),
        ("optimizer/dist_ckpt/.metadata", "optimizer/dist_ckpt/.metadata is missing"),
        ("extra/dist_ckpt/metadata.json", "extra/dist_ckpt/metadata.json is missing"),
    ],
)
def test_megatron_without_a_part(tmp_path, name, reason):
    checkpoint = save_megatron(tmp_path, 5)
    path = checkpoint / "actor" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert why_incomplete(checkpoint, MEGATRON) == f"actor/{reason}"


def test_megatron_with_an_empty_shard_or_less_than_is_loaded(tmp_path):
    checkpoint = save_megatron(tmp_path, 5)
    assert "hf_model was not saved" in why_incomplete(checkpoint, Expected(4, "megatron", contents=("hf_model",)))
    (checkpoint / "actor" / "optimizer" / "dist_ckpt" / "__0_0.distcp").write_text("")
    assert why_incomplete(checkpoint, MEGATRON) == "actor/optimizer/dist_ckpt/__0_0.distcp is empty"
    (checkpoint / "actor" / "ckpt_contents.json").write_text('{"save_contents": [')
    assert "missing or broken" in why_incomplete(checkpoint, MEGATRON)


def test_megatron_fsdp_has_all_in_one_of_its_folders(tmp_path):
    """The others exist and are empty; all of them empty is nothing saved."""
    checkpoint = save_megatron(tmp_path, 5)
    for part in ("optimizer", "extra"):
        for file in (checkpoint / "actor" / part / "dist_ckpt").iterdir():
            file.unlink()
        problem = why_incomplete(checkpoint, MEGATRON)
        assert problem == (None if part == "optimizer" else "actor/dist_ckpt/ is empty")


def test_what_a_run_needs():
    config = gpu_config()
    assert resume.expected_checkpoint(config) == Expected(world_size=8)
    assert CheckpointConfig().load_contents == ["model", "optimizer", "extra"]
    megatron = gpu_config("model_engine=megatron", "trainer.nnodes=2", "trainer.v1.trainer_mode=colocate_async")
    megatron.algorithm.adv_estimator = "gae"
    expected = Expected(16, "megatron", ("actor", "critic"), is_async=True)
    assert resume.expected_checkpoint(megatron) == expected
    assert resume.expected_checkpoint(gpu_config("model_engine=torchtitan")) is None


def test_verl_is_told_what_was_found(tmp_path):
    config = quickstart(f"trainer.default_local_dir={tmp_path}")
    resume.use_checkpoint(config, resume.find_checkpoint(config))
    assert (config.trainer.resume_mode, config.trainer.resume_from_path) == ("disable", None)
    assert resume.find_checkpoint(config) is None  # what is chosen by hand stays
    save(tmp_path, 3, world_size=1)
    (save(tmp_path, 4, world_size=1) / "data.pt").unlink()
    config = quickstart(f"trainer.default_local_dir={tmp_path}")
    found = resume.find_checkpoint(config)
    assert resume.describe(found) == (
        f"resumes from step 3, {tmp_path}/global_step_3; "
        "skips incomplete checkpoints: global_step_4 (data.pt is missing)"
    )
    resume.use_checkpoint(config, found)
    assert (config.trainer.resume_mode, config.trainer.resume_from_path) == (
        "resume_path",
        str(tmp_path / "global_step_3"),
    )
    (tmp_path / "global_step_3" / "data.pt").unlink()
    config = quickstart(f"trainer.default_local_dir={tmp_path}")
    described = resume.describe(resume.find_checkpoint(config))
    assert described.startswith("starts at step 1, because no checkpoint is complete: global_step_4 (")
    assert resume.describe(Found(None)) == ""


def test_all_attempts_are_one_run_of_the_tracking_service(tmp_path):
    config = quickstart("tracking=wandb")
    first = resume.tracking_env(config, tmp_path / "run", {})
    assert first["WANDB_RESUME"] == "allow"
    assert re.fullmatch("[a-z0-9]{21}", first["WANDB_RUN_ID"])
    assert resume.tracking_env(config, tmp_path / "run", {}) == first
    assert resume.tracking_env(config, tmp_path / "other", {}) != first
    swanlab = resume.tracking_env(quickstart("tracking=swanlab"), tmp_path / "run", {})
    assert swanlab == {"SWANLAB_RUN_ID": first["WANDB_RUN_ID"], "SWANLAB_RESUME": "allow"}
    own = {"WANDB_RUN_ID": "mine", "WANDB_RESUME": "must"}
    assert resume.tracking_env(config, tmp_path / "third", own) == own
    assert not (tmp_path / "third").exists()
    assert resume.tracking_env(quickstart(), tmp_path / "fourth", {}) == {}


def test_wandb_takes_the_id_from_the_environment(tmp_path, run_forked):
    env = resume.tracking_env(quickstart("tracking=wandb"), tmp_path, {})
    code = (
        "from verl.utils.tracking import Tracking\n"
        "tracking = Tracking('project', 'experiment', 'wandb', {'trainer': {}})\n"
        "tracking.log({'a': 1}, step=1)\n"
        "print('id', tracking.logger['wandb'].run.id)\n"
        "tracking.finish()"
    )
    done = run_forked(code, WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true", **env)
    assert f"id {env['WANDB_RUN_ID']}" in done.stdout, done.stderr


def test_a_checkpoint_that_cannot_be_written(tmp_path, run_forked):
    """torch.save says no word of a disk; a limit on the size of files stands in for a full one."""
    code = (
        "import resource, signal, sys, torch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"torch.save(torch.ones(10**6), {str(tmp_path / 'model.pt')!r})"
    )
    error = run_forked(code).stderr
    assert "inline_container" in error
    described = train.describe_failure(RuntimeError(error), tmp_path / "not" / "yet")
    assert described.startswith("RuntimeError: [enforce fail")
    assert "A file could not be written, probably a checkpoint" in described
    full = OSError(errno.ENOSPC, "No space left on device")
    assert "could not be written" in train.describe_failure(full, tmp_path)
    assert train.describe_failure(ValueError("epsilon is 3"), tmp_path) == "epsilon is 3"


def test_a_checkpoint_that_cannot_be_set_aside(tmp_path, monkeypatch):
    (save(tmp_path, 3, world_size=1) / "data.pt").unlink()

    def deny(*_args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", deny)
    config = quickstart(f"trainer.default_local_dir={tmp_path}")
    with pytest.raises(
        train.RefusedError, match=r"global_step_3 is incomplete and cannot be renamed \(Permission denied"
    ):
        train._find_checkpoint(config)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    save(tmp_path, 3, world_size=1)

    def deny(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", deny)
    with pytest.raises(FileError, match=rf"{tmp_path}: cannot be read \(Permission denied\)"):
        newest_complete(tmp_path, Expected(world_size=1))


def test_a_path_of_the_users_loses_its_slash(tmp_path):
    """verl reads the step from what follows global_step_."""
    config = quickstart("trainer.resume_mode=resume_path", "trainer.resume_from_path=some/global_step_3/")
    train._find_checkpoint(config)
    assert config.trainer.resume_from_path == str(tmp_path / "some" / "global_step_3")


def test_an_id_that_cannot_be_stored_is_named(tmp_path):
    (tmp_path / "tracking_id").mkdir()
    with pytest.raises(FileError, match=r"tracking_id: cannot be written \(Is a directory\)"):
        resume.tracking_env(quickstart("trainer.logger=[wandb]"), tmp_path, {})
