"""cfpo_verl.mismatch: which complete checkpoints a run can load, and that it never passes over one that it cannot.

tests/checkpoint_rank.py saves real checkpoints with verl's manager and lets verl load them; data.pt is of torchdata's
own loader, as verl builds it. Megatron's are written by its source.
"""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_rank import CASES
from conftest import run_ranks
from doctor_configs import failed, gpu_config, quickstart
from omegaconf import DictConfig, OmegaConf
from test_checkpoints import CONTENTS, folders, save, save_megatron, save_model, save_queue
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.trainer.config import CheckpointConfig
from verl.trainer.ppo.utils import create_rl_sampler

from cfpo_verl import resume, train, warmup
from cfpo_verl.checkpoints import Broken, Lora, inspect
from cfpo_verl.doctor import machine
from cfpo_verl.mismatch import ResumeError, Wanted, WantedModel, mismatch, wanted_checkpoint

ACTOR = "actor_rollout_ref.actor"


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> dict[int, tuple[Path, dict[str, dict[str, str]]]]:
    """Real checkpoints of one rank and of two, with a data.pt beside each, and what verl said to each pair."""
    folder = tmp_path_factory.mktemp("real")
    tokenizer = warmup.train_tokenizer(["1+1=2"], 300)
    model = warmup.build_model(tokenizer, warmup.WarmupConfig(hidden_size=32, layers=2, heads=2))
    warmup.save(folder / "model", model, tokenizer, [], {})
    made = {}
    for ranks in (1, 2):
        out = folder / str(ranks)
        out.mkdir()
        run_ranks(ranks, Path(__file__).with_name("checkpoint_rank.py"), folder / "model", out)
        for name in CASES:
            torch.save({}, out / name / "global_step_1" / "data.pt")
        made[ranks] = out, json.loads((out / "loaded.json").read_text())
    return made


def run_of(name: str, ranks: int) -> Wanted:
    """Return what a run with the config of a case wants."""
    case = CASES[name]
    config = gpu_config(
        f"{ACTOR}.strategy={'fsdp' if case.version == 1 else 'fsdp2'}",
        f"{ACTOR}.checkpoint.save_contents=[{','.join(case.contents)}]",
        f"actor_rollout_ref.model.lora_rank={case.rank}",
        f"actor_rollout_ref.model.lora_alpha={case.alpha}",
        f"trainer.n_gpus_per_node={ranks}",
    )
    wanted = wanted_checkpoint(config)
    assert wanted is not None
    return wanted


@pytest.mark.parametrize("ranks", [1, 2])
def test_refused_is_what_verl_does_not_load(real, ranks):
    """Every real checkpoint against every config: what verl loads is loaded, and all else is refused by name."""
    out, loaded = real[ranks]
    for saved, wanted in itertools.product(CASES, CASES):
        held = inspect(out / saved / "global_step_1")
        assert not isinstance(held, Broken), (saved, held)
        error = mismatch(out / saved / "global_step_1", held, run_of(wanted, ranks))
        verl_error = loaded[saved][wanted]
        assert (error is None) == (verl_error == ""), (saved, wanted, verl_error, error)
    # verl loads an adapter of another alpha, without a word, and it is another policy.
    assert loaded["fsdp2_rank_4"]["fsdp2_alpha_32"] == "another policy"


def test_real_checkpoints_say_what_they_hold(real):
    out, loaded = real[2]
    for name, case in CASES.items():
        model = inspect(out / name / "global_step_1").models["actor"]
        assert (model.world_size, model.fsdp_version, model.contents) == (2, case.version, set(case.contents))
        assert model.lora == (Lora(case.rank, case.alpha) if case.rank else None)
        assert loaded[name][name] == ""


def test_another_number_of_ranks_is_refused(real):
    checkpoint = real[2][0] / "fsdp2" / "global_step_1"
    error = mismatch(checkpoint, inspect(checkpoint), run_of("fsdp2", 1))
    assert error.found.startswith(f"{checkpoint} is complete, but was written under another config: ")
    assert "was saved by 2 ranks, and FSDP can load it only on the same number: this run has 1" in error.found
    assert error.way_out.startswith("Run on 2 GPUs. Or choose another run_dir, which leaves it as it is")
    assert f"`cfpo-verl export {checkpoint} --out MODEL`" in error.way_out


def loader(batch_size: int, shuffle: bool = True, workers: int = 0) -> StatefulDataLoader:
    """Build the loader of the training data as verl's trainer does, over 64 numbers."""
    data = OmegaConf.create({"shuffle": shuffle, "seed": 1})
    return StatefulDataLoader(
        dataset=list(range(64)),
        batch_size=batch_size,
        num_workers=workers,
        drop_last=True,
        collate_fn=list,
        sampler=create_rl_sampler(data, list(range(64))),
    )


def fetch(source: StatefulDataLoader, count: int) -> list[int]:
    return [number for batch in itertools.islice(source, count) for number in batch]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_the_position_in_the_data_is_kept_between_sync_and_async(before, after, shuffle):
    """verl's asynchronous trainers load prompts one by one; torchdata counts prompts, not batches."""
    whole = fetch(loader(1, shuffle), 64)
    source = loader(before, shuffle)
    assert fetch(source, 24 // before) == whole[:24]
    resumed = loader(after, shuffle)
    resumed.load_state_dict(source.state_dict())
    assert fetch(resumed, 40 // after) == whole[24:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_data_loader_that_saved(tmp_path, workers, shuffle):
    """What torchdata does not load, or loads at another position, is refused."""
    checkpoint = save(tmp_path, 5)
    source = loader(8, shuffle, workers)
    batches = iter(source)
    for _ in range(3):
        next(batches)
    state = source.state_dict()
    expected = next(batches)
    torch.save(state, checkpoint / "data.pt")
    held = inspect(checkpoint)
    assert (held.loader_workers, held.is_shuffled) == (workers, shuffle)
    for ours in itertools.product([0, 2, 3], [True, False]):
        error = mismatch(checkpoint, held, Wanted(2, loader_workers=ours[0], is_shuffled=ours[1]))
        assert ("data.dataloader_num_workers" in str(error)) == (ours[0] != workers)
        assert ("data.shuffle" in str(error)) == (ours[1] != shuffle)
        resumed = loader(8, ours[1], ours[0])
        resumed.load_state_dict(state)
        if ours[0] != workers or (shuffle and not ours[1]):
            with pytest.raises(AssertionError):
                next(iter(resumed))
        else:  # an order that is shuffled only now begins anew
            assert (next(iter(resumed)) == expected) == (error is None)


def test_what_a_run_wants():
    assert CheckpointConfig().load_contents == list(CONTENTS)
    config = gpu_config()
    assert wanted_checkpoint(config) == Wanted(8, loader_workers=8, storage_units=8)
    config = gpu_config("trainer.nnodes=2", "trainer.v1.trainer_mode=colocate_async", "critic.enable=true")
    config.critic.checkpoint.load_contents = ["model"]
    wanted = wanted_checkpoint(config)
    assert (wanted.world_size, wanted.is_async) == (16, True)
    assert wanted.models["actor"].loads == CONTENTS
    assert wanted.models["critic"].loads == ("model",)  # by its own config, not the actor's
    assert wanted.models["critic"].key == "critic"
    assert wanted_checkpoint(gpu_config("model_engine=torchtitan")) is None


@pytest.mark.parametrize(
    ("overrides", "layout", "loads"),
    [
        ([], "megatron", ("optimizer", "extra", "hf_model")),
        ([f"{ACTOR}.megatron.use_dist_checkpointing=true"], "megatron", CONTENTS),
        ([f"{ACTOR}.checkpoint.load_contents=[hf_model]"], "megatron", ("hf_model",)),
        ([f"{ACTOR}.checkpoint.load_contents=[extra]"], "megatron", ("extra",)),
        (
            [
                f"{ACTOR}.megatron.use_dist_checkpointing=true",
                f"{ACTOR}.checkpoint.load_contents=[model,hf_model]",
            ],
            "megatron",
            ("model",),
        ),
        (["actor_rollout_ref.model.lora.rank=8"], "megatron", CONTENTS),
        ([f"{ACTOR}.megatron.use_megatron_fsdp=true"], "megatron_fsdp", CONTENTS),
    ],
)
def test_what_a_run_of_megatron_wants(overrides, layout, loads):
    """hf_model are the weights of its bridge, which it loads unless it loads its own shards."""
    model = wanted_checkpoint(gpu_config("model_engine=megatron", *overrides)).models["actor"]
    assert (model.layout, model.loads) == (layout, loads)


def megatron(**changes) -> Wanted:
    options = {"strategy": "megatron", "layout": "megatron", "loads": ("optimizer", "extra", "hf_model"), **changes}
    return Wanted(4, {"actor": WantedModel(ACTOR, **options)})


@pytest.mark.parametrize(
    ("wanted", "found", "way_out"),
    [
        (megatron(), None, None),
        (
            megatron(loads=("model",)),
            f"no weights in Megatron's shards ({ACTOR}.megatron.use_dist_checkpointing=true)",
            f"Set {ACTOR}.megatron.use_dist_checkpointing=false",
        ),
        (megatron(lora=Lora()), "its actor has no adapter", "Set actor_rollout_ref.model.lora.rank=0"),
        (
            megatron(layout="megatron_fsdp"),
            "Megatron saved its actor, and the run trains it with Megatron-FSDP",
            f"Set {ACTOR}.strategy=megatron and {ACTOR}.megatron.use_megatron_fsdp=false",
        ),
        (
            Wanted(4),
            f"Megatron saved its actor, and the run trains it with FSDP ({ACTOR}.strategy=fsdp)",
            f"Set {ACTOR}.strategy=megatron",
        ),
    ],
)
def test_checkpoints_of_megatron(tmp_path, wanted, found, way_out):
    checkpoint = save_megatron(tmp_path, 5)
    error = mismatch(checkpoint, inspect(checkpoint), wanted)
    assert (error is None) == (found is None)
    if error is not None:
        assert found in error.found
        assert error.way_out.startswith(way_out)


def test_megatron_with_its_own_shards_or_an_adapter(tmp_path):
    manifest_path = save_megatron(tmp_path, 5) / "actor" / "ckpt_contents.json"
    shutil.copytree(manifest_path.parent / "extra" / "dist_ckpt", manifest_path.parent / "model" / "dist_ckpt")
    manifest = json.loads(manifest_path.read_text())
    shards = {"path": "model/dist_ckpt", "format": "megatron_dist_checkpoint"}
    manifest["contents"]["model"] = shards
    manifest_path.write_text(json.dumps(manifest))
    assert inspect(tmp_path / "global_step_5").models["actor"].contents == set(CONTENTS)
    huggingface = {"path": "model/huggingface", "format": "huggingface"}
    manifest["contents"] |= {"model": huggingface, "peft_adapters": shards}
    manifest["backend"] = {"peft": True}
    manifest_path.write_text(json.dumps(manifest))
    model = inspect(tmp_path / "global_step_5").models["actor"]
    assert (model.contents, model.lora) == ({*CONTENTS, "hf_model"}, Lora())
    # Without it, verl would load the base model's weights alone.
    error = mismatch(tmp_path / "global_step_5", inspect(tmp_path / "global_step_5"), megatron())
    assert "has a LoRA adapter" in error.found
    assert "export" not in error.way_out


def of_run(folder: Path, *overrides: str) -> DictConfig:
    return quickstart(f"trainer.default_local_dir={folder}", *overrides)


@pytest.mark.parametrize(
    ("overrides", "found", "way_out"),
    [
        (
            [f"{ACTOR}.checkpoint.load_contents=[model,optimizer,extra]"],
            f"its actor holds model, extra, and not optimizer, which {ACTOR}.checkpoint.load_contents asks for",
            f"set {ACTOR}.checkpoint.load_contents=[model,extra] to go on without",
        ),
        (["critic.enable=true"], "it holds no critic, and the run trains one", "set critic.enable=false"),
        (
            [f"{ACTOR}.strategy=fsdp"],
            "FSDP2 saved its actor, and the run trains it with FSDP1",
            f"{ACTOR}.strategy=fsdp2",
        ),
        (["trainer.n_gpus_per_node=4"], "its actor was saved by 1 ranks", "run on 1 GPUs"),
        (["actor_rollout_ref.model.lora_rank=8"], "its actor has no adapter", "actor_rollout_ref.model.lora_rank=0"),
    ],
)
def test_each_difference_is_named_and_nothing_is_renamed(tmp_path, overrides, found, way_out):
    """The start, the doctor and a checkpoint chosen by hand say the same."""
    save(tmp_path, 50, world_size=1, version=2)  # older and loadable by some; not taken instead
    newest = save(tmp_path, 100, world_size=1, version=2, contents=("model", "extra"))
    config = of_run(tmp_path, *overrides)
    with pytest.raises(ResumeError) as caught:
        train._find_checkpoint(config)
    assert str(newest) in caught.value.found
    assert found in caught.value.found
    assert way_out.lower() in caught.value.way_out.lower()
    assert folders(tmp_path) == ["global_step_100", "global_step_50"]
    assert failed(machine.check_checkpoints(config)) == [f"{caught.value.found}. {caught.value.way_out}"]
    chosen = of_run(tmp_path, *overrides, "trainer.resume_mode=resume_path", f"trainer.resume_from_path={newest}")
    assert failed(machine.check_checkpoints(chosen)) == [f"{caught.value.found}. {caught.value.way_out}"]
    with pytest.raises(ResumeError, match="is complete, but was written under another config"):
        train._find_checkpoint(chosen)


def test_all_differences_are_named_at_once(tmp_path):
    checkpoint = save(tmp_path, 5, world_size=4, version=2, contents=("model",))
    config = of_run(tmp_path, "critic.enable=true", f"{ACTOR}.strategy=fsdp")
    with pytest.raises(ResumeError) as caught:
        train._find_checkpoint(config)
    for found in ("saved by 4 ranks", "FSDP2 saved", "not optimizer", "not extra", "no critic"):
        assert found in caught.value.found
    assert str(caught.value).count(str(checkpoint)) == 2  # once with the way out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"{ACTOR}.checkpoint.save_contents=[model,optimizer,extra,hf_model]"], []),
        (
            [f"{ACTOR}.checkpoint.save_contents=[model]"],
            [f"optimizer, extra of its actor are not loaded ({ACTOR}.checkpoint)"],
        ),
        (["trainer.v1.trainer_mode=colocate_async"], ["it holds no prompts in flight"]),
        (["critic.checkpoint.load_contents=[hf_model]"], []),
    ],
)
def test_what_differs_and_is_loaded_all_the_same(tmp_path, overrides, said):
    """M1: each of these had every loadable checkpoint renamed, and the run began at step 1."""
    checkpoint = save(tmp_path, 100, world_size=1, version=2)
    found = train._find_checkpoint(of_run(tmp_path, *overrides))
    assert (found.path, found.notes) == (checkpoint, said)
    assert resume.describe(found) == "; ".join([f"resumes from step 100, {checkpoint}", *said])
    assert folders(tmp_path) == ["global_step_100"]


def test_what_a_checkpoint_holds_in_vain(tmp_path):
    checkpoint = save(tmp_path, 100, world_size=1, version=2, contents=(*CONTENTS, "hf_model"))
    save_model(checkpoint / "critic", 1, version=2)
    save_queue(checkpoint)
    found = train._find_checkpoint(of_run(tmp_path))
    assert found.notes == [
        "its critic is not used",
        "its prompts in flight are not used: they come again in the next epoch",
    ]
    used = of_run(tmp_path, "trainer.v1.trainer_mode=colocate_async", "critic.enable=true", "critic.strategy=fsdp2")
    used.transfer_queue.backend.SimpleStorage.num_data_storage_units = 8
    assert train._find_checkpoint(used).notes == []
    used.transfer_queue.backend.SimpleStorage.num_data_storage_units = 4
    with pytest.raises(ResumeError, match="prompts in flight are in 8 storage units, and the run has 4"):
        train._find_checkpoint(used)


def test_the_critic_is_judged_by_its_own_contents(tmp_path):
    """m11: not by those of the actor."""
    checkpoint = save(tmp_path, 100, world_size=1, version=2)
    save_model(checkpoint / "critic", 1, ("model",), version=2)
    with_critic = ["critic.enable=true", "critic.strategy=fsdp2"]
    with pytest.raises(ResumeError, match=r"its critic holds model, and not optimizer, which critic.checkpoint.load_"):
        train._find_checkpoint(of_run(tmp_path, *with_critic))
    loading_less = of_run(tmp_path, *with_critic, "critic.checkpoint.load_contents=[model]")
    assert train._find_checkpoint(loading_less).path == checkpoint


CHANGES = {
    "contents": ["", f"{ACTOR}.checkpoint.save_contents=[model,optimizer,extra,hf_model]"],
    "loads": ["", f"{ACTOR}.checkpoint.load_contents=[model]"],
    "strategy": ["", f"{ACTOR}.strategy=fsdp", "model_engine=megatron"],
    "mode": ["", "trainer.v1.trainer_mode=colocate_async"],
    "critic": ["", "critic.enable=true"],
    "ranks": ["", "trainer.n_gpus_per_node=2"],
    "lora": ["", "actor_rollout_ref.model.lora_rank=8"],
}


@pytest.mark.parametrize(
    ("saved", "times_loaded"),
    [
        # Contents, load_contents and mode make no difference; with a critic, neither does its training.
        ("actor", 2 * 2 * 2),
        ("actor, critic and prompts", 2 * 2 * 2 * 2),
        ("whole weights only", 0),
        # Nor do ranks with Megatron, which does not read lora_rank.
        ("megatron", 2 * 2 * 2 * 2 * 2),
    ],
)
def test_a_complete_checkpoint_is_loaded_or_refused_but_never_renamed(tmp_path, saved, times_loaded):
    """Over all combinations of changes; and if it is loaded, it is the newest one, not an older one that fits."""
    save(tmp_path, 50, world_size=1, version=2)
    if saved == "megatron":
        newest = save_megatron(tmp_path, 100)
    else:
        contents = ("hf_model",) if saved == "whole weights only" else CONTENTS
        newest = save(tmp_path, 100, world_size=1, version=2, contents=contents)
    configs = {"": of_run(tmp_path), "model_engine=megatron": gpu_config("model_engine=megatron")}
    if saved == "actor, critic and prompts":
        save_model(newest / "critic", 1)
        save_queue(newest, configs[""].transfer_queue.backend.SimpleStorage.num_data_storage_units)
    outcomes = []
    for overrides in itertools.product(*CHANGES.values()):
        [engine] = {text for text in overrides if text in configs and text} or {""}
        config = configs[engine].copy()  # composing all 192 anew would take minutes
        config.trainer.default_local_dir = str(tmp_path)
        config.trainer.n_gpus_per_node = 1
        for key, _, value in (text.partition("=") for text in overrides if text not in configs):
            OmegaConf.update(config, key, OmegaConf.create(f"value: {value}").value)
        try:
            outcomes.append(train._find_checkpoint(config).path)
        except ResumeError as error:
            outcomes.append(error.found.split()[0])
        assert folders(tmp_path) == ["global_step_100", "global_step_50"]
    assert len(outcomes) == 192
    assert set(map(str, outcomes)) == {str(newest)}
    assert sum(isinstance(outcome, Path) for outcome in outcomes) == times_loaded
