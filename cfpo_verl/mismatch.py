"""Whether a run can load a complete checkpoint: what its config wants against what the checkpoint holds.

The rules are those of verl 0.9.1 (tests/test_mismatch.py loads real checkpoints with verl's own managers; those of
Megatron are taken from its source).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cfpo_verl.checkpoints import SHARD, SHARD_NAMES, Held, HeldModel, Lora, has_safetensors
from cfpo_verl.demands import has_critic, trainer_nodes
from cfpo_verl.errors import UserError

_LAYOUTS = {"fsdp": "fsdp", "fsdp2": "fsdp", "veomni": "fsdp", "megatron": "megatron"}
_FSDP_VERSIONS = {"fsdp": 1, "fsdp2": 2}
_ENGINES = {"fsdp": "FSDP", "megatron": "Megatron", "megatron_fsdp": "Megatron-FSDP"}


class ResumeError(UserError):
    """A checkpoint is there that the run must not pass over, and that it cannot resume from."""

    def __init__(self, found: str, way_out: str) -> None:
        """Keep both sentences."""
        self.found, self.way_out = found, way_out
        super().__init__(f"{found}. {way_out}")


@dataclass(frozen=True)
class WantedModel:
    """What a run loads into one model, and what it saves of it.

    Args:
        key: Config key of its engine: actor_rollout_ref.actor or critic.
        strategy: verl's name of the engine.
        layout: The engine's files, see `HeldModel`.
        loads: What verl loads of load_contents, by the names of `HeldModel.contents`.
        saves: save_contents.
        lora: The adapter, None if the whole model is trained.
    """

    key: str
    strategy: str = "fsdp"
    layout: str = "fsdp"
    loads: tuple[str, ...] = ("model", "optimizer", "extra")
    saves: tuple[str, ...] = ("model", "optimizer", "extra")
    lora: Lora | None = None

    @property
    def fsdp_version(self) -> int | None:
        """1 or 2, None for other engines."""
        return _FSDP_VERSIONS.get(self.strategy)

    @property
    def model_key(self) -> str:
        """Config key of the model."""
        return "critic.model" if self.key == "critic" else "actor_rollout_ref.model"


@dataclass(frozen=True)
class Wanted:
    """What a run wants of a checkpoint.

    Args:
        world_size: Ranks of the run.
        models: The models by role.
        is_async: Whether the trainer is asynchronous, and so has prompts in flight.
        loader_workers: data.dataloader_num_workers.
        is_shuffled: data.shuffle.
        storage_units: Number of TransferQueue's storage units, None if its backend has none.
    """

    world_size: int
    models: dict[str, WantedModel] = field(default_factory=lambda: {"actor": WantedModel("actor_rollout_ref.actor")})
    is_async: bool = False
    loader_workers: int = 0
    is_shuffled: bool = True
    storage_units: int | None = None


@dataclass(frozen=True)
class Difference:
    """Why a run cannot load a checkpoint, and what would make it loadable."""

    found: str
    way_out: str


def wanted_checkpoint(config: DictConfig) -> Wanted | None:
    """Return what a run wants of a checkpoint, None for an engine whose checkpoint layout is unknown."""
    engines = {"actor": config.actor_rollout_ref.actor}
    if has_critic(config):
        engines["critic"] = config.critic
    if any(engine.strategy not in _LAYOUTS for engine in engines.values()):
        return None
    queue = config.transfer_queue.backend
    has_units = queue.storage_backend == "SimpleStorage"
    return Wanted(
        world_size=trainer_nodes(config).gpus,
        models={role: _wanted_model(config, role, engine) for role, engine in engines.items()},
        is_async=bool(config.trainer.use_v1) and config.trainer.v1.trainer_mode != "sync",
        loader_workers=config.data.dataloader_num_workers,
        is_shuffled=bool(config.data.shuffle),
        storage_units=queue.SimpleStorage.num_data_storage_units if has_units else None,
    )


def _wanted_model(config: DictConfig, role: str, engine: DictConfig) -> WantedModel:
    layout = _LAYOUTS[engine.strategy]
    if layout == "megatron" and engine.megatron.get("use_megatron_fsdp"):
        layout = "megatron_fsdp"
    lora = _lora(config.critic.model if role == "critic" else config.actor_rollout_ref.model, layout)
    asked = set(engine.checkpoint.load_contents)
    loads = asked & set(SHARD_NAMES)
    if layout == "megatron":
        weights = asked & {"model", "hf_model"}
        is_distributed = lora is not None or ("model" in asked and engine.megatron.use_dist_checkpointing)
        loads -= {"model"}
        loads |= {"model" if is_distributed else "hf_model"} if weights else set()
    return WantedModel(
        "critic" if role == "critic" else "actor_rollout_ref.actor",
        engine.strategy,
        layout,
        tuple(name for name in (*SHARD_NAMES, "hf_model") if name in loads),
        tuple(engine.checkpoint.save_contents),
        lora,
    )


def _lora(model: DictConfig, layout: str) -> Lora | None:
    """Return the adapter that verl's engine trains, None if it trains the whole model."""
    if layout != "fsdp":
        return Lora() if (OmegaConf.select(model, "lora.rank") or 0) > 0 else None
    rank = model.get("lora_rank") or 0
    if rank <= 0:
        return None
    # The folder of a trained adapter decides, not these keys.
    return Lora() if model.get("lora_adapter_path") else Lora(rank, model.get("lora_alpha"))


def differences(held: Held, wanted: Wanted) -> Iterator[Difference]:
    """Yield every reason why verl could not load a complete checkpoint, or would lose something silently."""
    for role, model in wanted.models.items():
        if role in held.models:
            yield from _model_differences(role, held.models[role], model, wanted.world_size)
        else:
            yield Difference(
                f"it holds no {role}, and the run trains one",
                "set critic.enable=false, and an algorithm.adv_estimator other than gae",
            )
    if held.loader_workers not in (None, wanted.loader_workers):
        yield Difference(
            f"its data.pt is of a loader with data.dataloader_num_workers={held.loader_workers}, which torchdata does "
            f"not load into one with {wanted.loader_workers}",
            f"set data.dataloader_num_workers={held.loader_workers}",
        )
    if held.is_shuffled not in (None, wanted.is_shuffled):
        yield Difference(
            f"its data.pt is a position with data.shuffle={_flag(held.is_shuffled)}, and the run has "
            f"{_flag(wanted.is_shuffled)}",
            f"set data.shuffle={_flag(held.is_shuffled)}",
        )
    units, our_units = held.storage_units, wanted.storage_units
    if wanted.is_async and None not in (units, our_units) and units != our_units:
        key = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
        yield Difference(
            f"its prompts in flight are in {units} storage units, and the run has {our_units} ({key})",
            f"set {key}={units}",
        )


def _flag(value: bool | None) -> str:
    return str(value).lower()


def _model_differences(role: str, held: HeldModel, wanted: WantedModel, world_size: int) -> Iterator[Difference]:
    key = wanted.key
    if held.layout != wanted.layout:
        yield Difference(
            f"{_ENGINES[held.layout]} saved its {role}, and the run trains it with {_ENGINES[wanted.layout]} "
            f"({key}.strategy={wanted.strategy})",
            _engine_key(held, key),
        )
        return
    if held.layout == "fsdp" and held.world_size != world_size:
        yield Difference(
            f"its {role} was saved by {held.world_size} ranks, and FSDP can load it only on the same number: this run "
            f"has {world_size} (trainer.nnodes * trainer.n_gpus_per_node)",
            f"run on {held.world_size} GPUs",
        )
    # What verl 0.9.1 does: optimiser states are never loaded across versions; weights are, but not those of one rank.
    is_other_fsdp = None not in (held.fsdp_version, wanted.fsdp_version) and held.fsdp_version != wanted.fsdp_version
    if is_other_fsdp and ("optimizer" in wanted.loads or ("model" in wanted.loads and world_size == 1)):
        yield Difference(
            f"FSDP{held.fsdp_version} saved its {role}, and the run trains it with FSDP{wanted.fsdp_version} "
            f"({key}.strategy={wanted.strategy})",
            _engine_key(held, key),
        )
    yield from _lora_differences(role, held.lora, wanted)
    for content in wanted.loads:
        if content not in held.contents:
            yield _missing_content(role, content, held, wanted)


def _engine_key(held: HeldModel, key: str) -> str:
    """Return the setting with which the engine that saved a model is used again."""
    if held.layout == "megatron_fsdp":
        return f"set {key}.strategy=megatron and {key}.megatron.use_megatron_fsdp=true"
    if held.layout == "megatron":
        return f"set {key}.strategy=megatron and {key}.megatron.use_megatron_fsdp=false (backend=megatron)"
    strategy = {1: "fsdp", 2: "fsdp2"}.get(held.fsdp_version or 0, "fsdp or fsdp2")
    return f"set {key}.strategy={strategy} (backend=...)"


def _lora_differences(role: str, held: Lora | None, wanted: WantedModel) -> Iterator[Difference]:
    ours = wanted.lora
    keys = f"{wanted.model_key}.lora_rank" if wanted.layout == "fsdp" else f"{wanted.model_key}.lora.rank"
    if held is None and ours is not None:
        yield Difference(f"its {role} has no adapter, and the run trains one ({keys})", f"set {keys}=0")
    elif held is not None and ours is None:
        yield Difference(
            f"its {role} has a LoRA adapter{f' of rank {held.rank}' if held.rank else ''}, and the run trains the "
            f"whole model ({keys}=0)",
            f"set {keys}={held.rank or 'the rank of that adapter'}",
        )
    elif held is not None and ours is not None:
        for name, theirs, mine in (("rank", held.rank, ours.rank), ("alpha", held.alpha, ours.alpha)):
            if None not in (theirs, mine) and theirs != mine:
                # Another alpha is loaded by verl, and scales the adapter, so that it is another policy.
                key = f"{wanted.model_key}.lora_{name}"
                yield Difference(
                    f"the adapter of its {role} has {name} {theirs}, and {key}={mine}", f"set {key}={theirs}"
                )


def _missing_content(role: str, content: str, held: HeldModel, wanted: WantedModel) -> Difference:
    key = f"{wanted.key}.checkpoint.load_contents"
    holds = ", ".join(name for name in (*SHARD_NAMES, "hf_model") if name in held.contents)
    others = {"model", "hf_model"} & held.contents
    if wanted.layout == "megatron" and content in ("model", "hf_model") and others:
        form = "Megatron's shards" if content == "model" else "Hugging Face's format"
        return Difference(
            f"its {role} has no weights in {form} ({wanted.key}.megatron.use_dist_checkpointing="
            f"{_flag(content == 'model')})",
            f"set {wanted.key}.megatron.use_dist_checkpointing={_flag(content == 'hf_model')}",
        )
    rest = ",".join(name for name in wanted.loads if name in held.contents and name != "hf_model")
    return Difference(
        f"its {role} holds {holds}, and not {content}, which {key} asks for",
        f"set {key}=[{rest}] to go on without"
        if rest
        else f"save with {wanted.key}.checkpoint.save_contents=[{content}]",
    )


def mismatch(checkpoint: Path, held: Held, wanted: Wanted) -> ResumeError | None:
    """Return the error that refuses a complete checkpoint, with all differences; None if the run can load it."""
    found = list(differences(held, wanted))
    if not found:
        return None
    ways = "; ".join(dict.fromkeys(difference.way_out for difference in found))
    actor = held.models["actor"]
    # Both export and another engine need weights without an adapter.
    has_weights = {"model", "hf_model"} & actor.contents and actor.lora is None
    from_weights = (
        f"; or start a new run from its weights, without the optimiser state: `cfpo-verl export {checkpoint} --out "
        "MODEL`, then actor_rollout_ref.model.path=MODEL and another run_dir"
    )
    return ResumeError(
        f"{checkpoint} is complete, but was written under another config: "
        + "; ".join(difference.found for difference in found),
        f"{ways[0].upper()}{ways[1:]}. Or choose another run_dir, which leaves it as it is"
        + (from_weights if has_weights else ""),
    )


def notes(held: Held, wanted: Wanted) -> list[str]:
    """Return what a loadable checkpoint holds that the run does not use, or lacks, for the line shown at the start."""
    found = []
    for role, model in held.models.items():
        if role not in wanted.models:
            found.append(f"its {role} is not used")
            continue
        loads = wanted.models[role].loads
        if unused := [name for name in SHARD_NAMES if name in model.contents and name not in loads]:
            found.append(f"{', '.join(unused)} of its {role} are not loaded ({wanted.models[role].key}.checkpoint)")
    if held.has_prompts and not wanted.is_async:
        found.append("its prompts in flight are not used: they come again in the next epoch")
    if wanted.is_async and not held.has_prompts:
        found.append("it holds no prompts in flight")
    return found


def leftover(checkpoint: Path, wanted: Wanted) -> Path | None:
    """Return a file or folder of an unfinished save that a save of this run at that step would not replace.

    Such a file would be taken for a part of the run's own checkpoint. What every engine writes anew, and shards of
    another number of ranks, which fsdp_config.json rules out, do not matter. None if there is none.
    """
    for role in ("actor", "critic"):
        folder = checkpoint / role
        if folder.is_dir():
            if role not in wanted.models:
                return folder
            if found := _leftover_of_model(folder, wanted.models[role], wanted.world_size):
                return found
    queue = checkpoint / "transfer_queue"
    return queue if queue.is_dir() and not wanted.is_async else None


def _leftover_of_model(folder: Path, wanted: WantedModel, world_size: int) -> Path | None:
    is_fsdp = wanted.layout == "fsdp"
    for path in sorted(folder.iterdir()):
        found = SHARD.fullmatch(path.name)
        of_fsdp = found is not None or path.name == "fsdp_config.json"
        of_megatron = path.name in ("ckpt_contents.json", "model", "optimizer", "extra")
        if of_megatron if is_fsdp else of_fsdp:
            return path
        # Megatron's manifest says which of its files are the checkpoint's.
        if found and int(found[2]) == world_size and not {found[1]} & {SHARD_NAMES.get(name) for name in wanted.saves}:
            return path
        if path.name == "lora_train_meta.json" and wanted.lora is None:
            return path
        if is_fsdp and path.name == "huggingface" and has_safetensors(path) and "hf_model" not in wanted.saves:
            return path
    return None
