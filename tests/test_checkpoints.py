"""cfpo_verl.checkpoints and cfpo_verl.resume: completeness, the choice of a checkpoint, the loggers' variables.

The folders are built as verl writes them, from files of torch.save; tests/test_mismatch.py and tests/test_resume.py
look at real ones.
"""

import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from doctor_configs import quickstart
from omegaconf import DictConfig
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager, find_latest_ckpt_path

from cfpo_verl import resume, train
from cfpo_verl.checkpoints import Broken, Held, HeldModel, Lora, inspect, saved_world_size, set_aside
from cfpo_verl.files import FileError
from cfpo_verl.mismatch import ResumeError, Wanted, WantedModel
from cfpo_verl.resume import Found, newest_complete

TWO_RANKS = Wanted(world_size=2)
CONTENTS = ("model", "optimizer", "extra")
PREFIXES = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
SHARDS = [f"{name}_world_size_2_rank_{rank}.pt" for name in PREFIXES.values() for rank in (0, 1)]


def save_model(folder: Path, world_size: int = 2, contents: Iterable[str] = CONTENTS, version: int = 1) -> None:
    """Write what FSDPCheckpointManager writes, in its order."""
    (folder / "huggingface").mkdir(parents=True, exist_ok=True)
    for rank in range(world_size):
        for name in (PREFIXES[content] for content in contents if content in PREFIXES):
            torch.save({"a": torch.ones(100)}, folder / f"{name}_world_size_{world_size}_rank_{rank}.pt")
    for name in ("config.json", "tokenizer_config.json"):
        (folder / "huggingface" / name).write_text("{}")
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": version, "world_size": world_size}))
    if "hf_model" in contents:
        (folder / "huggingface" / "model.safetensors").write_text("x")


def save(folder: Path, step: int, world_size: int = 2, contents: Iterable[str] = CONTENTS, version: int = 1) -> Path:
    """Write a complete checkpoint."""
    checkpoint = folder / f"global_step_{step}"
    save_model(checkpoint / "actor", world_size, contents, version)
    torch.save({"position": step}, checkpoint / "data.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    return checkpoint


def save_queue(checkpoint: Path, units: int = 8) -> None:
    """Write the files of TransferQueue's save_checkpoint."""
    (checkpoint / "transfer_queue" / "storage_units").mkdir(parents=True)
    (checkpoint / "transfer_queue" / "controller_state.pkl").write_text("x")
    (checkpoint / "transfer_queue" / "metadata.json").write_text('{"storage_saved": true}')
    stored = [{"position": position, "storage_unit_id": f"u{position}"} for position in range(units)]
    (checkpoint / "transfer_queue" / "storage_units" / "su_info.json").write_text(json.dumps(stored))


def problem(checkpoint: Path) -> str | None:
    """Return why a checkpoint is incomplete, None if it is complete."""
    found = inspect(checkpoint)
    return str(found) if isinstance(found, Broken) else None


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
    assert inspect(save(tmp_path, 5)) == Held({"actor": HeldModel("fsdp", frozenset(CONTENTS), 2, 1)})


@pytest.mark.parametrize("name", [*(f"actor/{shard}" for shard in SHARDS), "data.pt"])
def test_a_shard_is_missing_empty_or_cut_off(tmp_path, name):
    """Without its data.pt, which is written last, a save did not end; otherwise files were lost afterwards."""
    file = save(tmp_path, 5) / name
    whole = file.read_bytes()
    kind = "unfinished" if name == "data.pt" else "damaged"
    # Half of it, and all but the last bytes, in which a zip archive has its table of contents.
    for kept in (len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:kept])
        assert problem(tmp_path / "global_step_5") == f"{kind}: {name} is truncated"
    file.write_bytes(b"")
    assert problem(tmp_path / "global_step_5") == f"{kind}: {name} is empty"
    file.unlink()
    assert problem(tmp_path / "global_step_5") == f"{kind}: {name} is missing"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_what_rank_0_writes_last(tmp_path, name):
    checkpoint = save(tmp_path, 5)
    (checkpoint / "actor" / "huggingface" / name).unlink()
    assert problem(checkpoint) == f"damaged: actor/huggingface/{name} is missing or empty"


@pytest.mark.parametrize(
    "contents", [*(itertools.chain(*(itertools.combinations([*CONTENTS, "hf_model"], n) for n in (1, 2, 3, 4))))]
)
def test_a_checkpoint_says_itself_what_it_holds(tmp_path, contents):
    """Whatever any config wants: it is complete with what was saved, and nothing else is looked for."""
    checkpoint = save(tmp_path, 5, contents=contents)
    assert inspect(checkpoint).models["actor"].contents == set(contents)
    if "hf_model" in contents:
        (checkpoint / "actor" / "huggingface" / "model.safetensors").write_text("")
        assert problem(checkpoint) == "damaged: actor/huggingface/*.safetensors are missing or empty"


def test_a_checkpoint_of_nothing(tmp_path):
    assert problem(save(tmp_path, 5, contents=())) == "damaged: actor/model_world_size_2_rank_0.pt is missing"


def test_a_critic_and_prompts_in_flight(tmp_path):
    checkpoint = save(tmp_path, 5)
    save_model(checkpoint / "critic", contents=("model",))
    save_queue(checkpoint, units=3)
    held = inspect(checkpoint)
    assert held.models["critic"].contents == {"model"}
    assert (held.has_prompts, held.storage_units) == (True, 3)
    (checkpoint / "critic" / "model_world_size_2_rank_1.pt").unlink()
    assert problem(checkpoint) == "damaged: critic/model_world_size_2_rank_1.pt is missing"
    save_model(checkpoint / "critic")
    for name in ("controller_state.pkl", "storage_units/su_info.json"):
        (checkpoint / "transfer_queue" / name).unlink()
        assert problem(checkpoint) == f"damaged: transfer_queue/{name} is missing or empty"
        (checkpoint / "transfer_queue" / name).write_text("[]")


def test_an_adapter(tmp_path):
    checkpoint = save(tmp_path, 5)
    (checkpoint / "actor" / "lora_train_meta.json").write_text('{"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM"}')
    assert inspect(checkpoint).models["actor"].lora == Lora(8, 16)


def test_what_verls_rotation_leaves_behind_is_no_checkpoint(tmp_path):
    """verl removes the folder of the actor only; its own capacity check is what runs here."""
    checkpoint = save(tmp_path, 5)
    manager = BaseCheckpointManager.__new__(BaseCheckpointManager)
    manager.previous_saved_paths = []
    manager.register_checkpoint(str(checkpoint / "actor"), 1)
    manager.register_checkpoint(str(save(tmp_path, 6) / "actor"), 1)
    assert [path.name for path in checkpoint.iterdir()] == ["data.pt"]
    assert problem(checkpoint) == "damaged: actor/ is missing"
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
        skipped={tmp_path / "global_step_10": Broken("actor/optim_world_size_2_rank_1.pt is missing")},
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


def test_the_number_of_ranks_that_saved(tmp_path):
    save_model(tmp_path / "actor", world_size=3)
    assert saved_world_size(tmp_path / "actor") == 3
    (tmp_path / "empty").mkdir()
    assert saved_world_size(tmp_path / "empty") is None


def test_shards_of_two_sizes(tmp_path):
    """The last write decides, whichever is larger or comes first in the folder."""
    for sizes in ((2, 3), (3, 2)):
        checkpoint = save(tmp_path, sizes[0], world_size=sizes[0])
        old = sorted((checkpoint / "actor").glob("*.pt"))
        for shard in old:
            os.utime(shard, (1, 1))
        save_model(checkpoint / "actor", world_size=sizes[1])
        assert inspect(checkpoint).models["actor"].world_size == sizes[1]
        old[0].unlink()  # of no meaning now
        assert inspect(checkpoint).models["actor"].world_size == sizes[1]
        (checkpoint / "actor" / "fsdp_config.json").unlink()  # the newest shard decides
        assert inspect(checkpoint).models["actor"] == HeldModel("fsdp", frozenset(CONTENTS), sizes[1])


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


MEGATRON = Wanted(
    4, {"actor": WantedModel("actor_rollout_ref.actor", "megatron", "megatron", ("optimizer", "hf_model"))}
)


def test_megatron_of_any_number_of_ranks(tmp_path):
    assert newest_complete(tmp_path, MEGATRON) == Found(None)
    checkpoint = save_megatron(tmp_path, 5)
    assert inspect(checkpoint).models["actor"] == HeldModel("megatron", {"optimizer", "extra", "hf_model"}, 8)
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
    assert problem(checkpoint) == f"damaged: actor/{reason}"


def test_megatron_with_an_empty_shard(tmp_path):
    checkpoint = save_megatron(tmp_path, 5)
    shards = checkpoint / "actor" / "optimizer" / "dist_ckpt"
    (shards / "__8_0.distcp").write_text("")  # of an earlier save with more ranks
    assert problem(checkpoint) is None
    (shards / "__7_0.distcp").write_text("")
    assert problem(checkpoint) == "damaged: actor/optimizer/dist_ckpt/__7_0.distcp is empty"
    (checkpoint / "actor" / "ckpt_contents.json").write_text('{"save_contents": [')
    assert "missing or broken" in problem(checkpoint)


def test_megatron_fsdp_has_all_in_one_of_its_folders(tmp_path):
    """The others exist and are empty; all of them empty is nothing saved."""
    actor = save_megatron(tmp_path, 5) / "actor"
    shutil.copytree(actor / "extra" / "dist_ckpt", actor / "model" / "dist_ckpt")
    for part in ("optimizer", "extra"):
        for file in (actor / part / "dist_ckpt").iterdir():
            file.unlink()
    model = inspect(actor.parent).models["actor"]
    assert (model.layout, model.contents) == ("megatron_fsdp", {"model", "optimizer", "extra", "hf_model"})
    (actor / "model" / "dist_ckpt" / ".metadata").unlink()
    assert problem(actor.parent) == "damaged: actor/model/dist_ckpt/.metadata is missing"
    for file in (actor / "model" / "dist_ckpt").iterdir():
        file.unlink()
    assert problem(actor.parent) == "damaged: actor/extra/dist_ckpt/.metadata is missing"


def test_of_two_engines_the_last_one_decides(tmp_path):
    checkpoint = save_megatron(tmp_path, 5)
    save_model(checkpoint / "actor")
    os.utime(checkpoint / "actor" / "ckpt_contents.json", (1, 1))
    assert inspect(checkpoint).models["actor"].layout == "fsdp"
    for file in checkpoint.glob("actor/*.pt"):
        os.utime(file, (1, 1))
    os.utime(checkpoint / "actor" / "fsdp_config.json", (1, 1))
    os.utime(checkpoint / "actor" / "ckpt_contents.json")
    assert inspect(checkpoint).models["actor"].layout == "megatron"


def folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("global*"))


def of_quickstart(folder: Path, *overrides: str) -> DictConfig:
    return quickstart(f"trainer.default_local_dir={folder}", *overrides)


def test_verl_is_told_what_was_found(tmp_path):
    config = of_quickstart(tmp_path)
    resume.use_checkpoint(config, resume.find_checkpoint(config))
    assert (config.trainer.resume_mode, config.trainer.resume_from_path) == ("disable", None)
    assert resume.find_checkpoint(config) is None  # what is chosen by hand stays
    save(tmp_path, 3, world_size=1, version=2)
    (save(tmp_path, 4, world_size=1, version=2) / "data.pt").unlink()
    (save(tmp_path, 5, world_size=1, version=2) / "actor" / "model_world_size_1_rank_0.pt").write_text("")
    config = of_quickstart(tmp_path)
    found = resume.find_checkpoint(config)
    assert resume.describe(found) == (
        f"resumes from step 3, {tmp_path}/global_step_3; skips incomplete checkpoints: global_step_5 "
        "(damaged: actor/model_world_size_1_rank_0.pt is empty); global_step_4 (unfinished: data.pt is missing)"
    )
    assert train._find_checkpoint(config) == found
    assert folders(tmp_path) == ["global_step_3", "global_step_4.incomplete1", "global_step_5.incomplete1"]
    resume.use_checkpoint(config, found)
    assert (config.trainer.resume_mode, config.trainer.resume_from_path) == (
        "resume_path",
        str(tmp_path / "global_step_3"),
    )
    assert resume.describe(Found(None)) == ""


def test_what_the_user_chose_is_not_replaced(tmp_path):
    """A newer one would be found, and a broken one renamed."""
    chosen = save(tmp_path, 3, world_size=1, version=2)
    save(tmp_path, 7, world_size=1, version=2)
    (save(tmp_path, 9, world_size=1, version=2) / "data.pt").unlink()
    before = folders(tmp_path)
    config = of_quickstart(tmp_path, "trainer.resume_mode=resume_path", f"trainer.resume_from_path={chosen}/")
    assert resume.find_checkpoint(config) is None
    assert train._find_checkpoint(config) is None
    # verl reads the step from what follows global_step_; a slash at the end would break that.
    assert (config.trainer.resume_mode, config.trainer.resume_from_path) == ("resume_path", str(chosen))
    assert folders(tmp_path) == before


def test_a_run_killed_in_its_first_save_starts_again(tmp_path, capsys):
    """As its job does without anyone: nothing is renamed, and what was begun is replaced by the next save."""
    checkpoint = save(tmp_path, 100, world_size=1, version=2)
    (checkpoint / "data.pt").unlink()
    (checkpoint / "actor" / "extra_state_world_size_1_rank_0.pt").write_text("")
    config = of_quickstart(tmp_path)
    found = train._find_checkpoint(config)
    assert found == Found(None, skipped={checkpoint: Broken("data.pt is missing", is_unfinished=True)})
    assert (
        "starts at step 1, because no save was finished: global_step_100 (unfinished: data.pt is missing). They stay "
        "until a save at the same step replaces them"
    ) in capsys.readouterr().err
    assert folders(tmp_path) == ["global_step_100"]
    save(tmp_path, 100, world_size=1, version=2)
    assert train._find_checkpoint(config).step == 100


@pytest.mark.parametrize(
    ("left", "overrides"),
    [
        ("actor/optim_world_size_1_rank_0.pt", ["actor_rollout_ref.actor.checkpoint.save_contents=[model,extra]"]),
        ("actor/huggingface", []),
        ("actor/lora_train_meta.json", []),
        ("critic", []),
        ("transfer_queue", []),
        ("actor/optimizer", []),
    ],
)
def test_an_unfinished_save_that_would_be_mixed_with_the_runs_own(tmp_path, left, overrides):
    """Files that the run would not replace would make its checkpoint seem to hold them."""
    checkpoint = save(tmp_path, 100, world_size=1, version=2)
    (checkpoint / "data.pt").unlink()
    config = of_quickstart(tmp_path, *overrides)
    if left == "actor/huggingface":
        (checkpoint / left / "model.safetensors").write_text("")
    elif left.endswith("json"):
        (checkpoint / left).write_text("{}")
    elif not left.endswith("pt"):
        assert train._find_checkpoint(config).path is None
        (checkpoint / left).mkdir()
    with pytest.raises(ResumeError, match=rf"whose save was interrupted, has {left}, which this run does not write"):
        train._find_checkpoint(config)
    assert folders(tmp_path) == ["global_step_100"]
    # The run that began it, or one that writes all of it, goes on by itself.
    same = of_quickstart(tmp_path, "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]")
    if left in ("actor/optim_world_size_1_rank_0.pt", "actor/huggingface"):
        assert train._find_checkpoint(same).path is None


def test_an_unfinished_save_of_another_number_of_ranks_is_replaced(tmp_path):
    """fsdp_config.json of the run's own save rules the others out."""
    (save(tmp_path, 100, world_size=4, version=2) / "data.pt").unlink()
    saving_less = of_quickstart(tmp_path, "actor_rollout_ref.actor.checkpoint.save_contents=[model,extra]")
    assert train._find_checkpoint(saving_less).path is None
    save(tmp_path, 100, world_size=1, contents=("model", "extra"), version=2)
    model = inspect(tmp_path / "global_step_100").models["actor"]
    assert (model.world_size, model.contents) == (1, {"model", "extra"})


def test_a_damaged_checkpoint_is_not_lost_without_a_word(tmp_path):
    """Its save had ended, so a run that starts at step 1 beside it would throw training away."""
    (save(tmp_path, 100, world_size=1, version=2) / "actor" / "model_world_size_1_rank_0.pt").write_text("")
    (save(tmp_path, 200, world_size=1, version=2) / "data.pt").unlink()
    config = of_quickstart(tmp_path)
    with pytest.raises(
        ResumeError, match=r"have been damaged since: .*global_step_100 \(actor/model_world_size_1"
    ) as caught:
        train._find_checkpoint(config)
    assert "Restore the files" in caught.value.way_out
    assert folders(tmp_path) == ["global_step_100", "global_step_200"]
    save(tmp_path, 50, world_size=1, version=2)  # with an older one, it goes on from there, as always
    assert train._find_checkpoint(config).step == 50
    assert folders(tmp_path) == ["global_step_100.incomplete1", "global_step_200.incomplete1", "global_step_50"]


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
    save(tmp_path, 2, world_size=1, version=2)
    (save(tmp_path, 3, world_size=1, version=2) / "data.pt").unlink()

    def deny(*_args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", deny)
    with pytest.raises(
        train.RefusedError, match=r"global_step_3 is incomplete and cannot be renamed \(Permission denied"
    ):
        train._find_checkpoint(of_quickstart(tmp_path))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    save(tmp_path, 3, world_size=1)

    def deny(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", deny)
    with pytest.raises(FileError, match=rf"{tmp_path}: cannot be read \(Permission denied\)"):
        newest_complete(tmp_path, Wanted(world_size=1))


def test_a_file_that_cannot_be_read_is_no_missing_one(tmp_path, monkeypatch):
    """Otherwise a network folder that is away for a moment would have a complete checkpoint renamed."""
    save_megatron(tmp_path, 3)
    read_text = Path.read_text

    def deny(path, *args, **kwargs):
        if path.name == "ckpt_contents.json":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", deny)
    with pytest.raises(FileError, match=r"ckpt_contents.json: cannot be read \(Input/output error\)"):
        newest_complete(tmp_path, MEGATRON)


def test_an_id_that_cannot_be_stored_is_named(tmp_path):
    (tmp_path / "tracking_id").mkdir()
    with pytest.raises(FileError, match=r"tracking_id: cannot be written \(Is a directory\)"):
        resume.tracking_env(quickstart("trainer.logger=[wandb]"), tmp_path, {})
