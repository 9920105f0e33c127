"""What a composed verl config asks for: nodes, GPUs, CPUs, models, worker environment, data files.

Each question has one function here, which the doctor, `cfpo-verl plan`, SLURM and Kubernetes jobs and the search for
checkpoints call. The rules are those of verl 0.9.1, restated so that verl need not be imported; the tests compare them
with verl's own. Functions take the whole config and raise OmegaConf's errors for keys that it lacks.
"""

import os
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from cfpo_verl.errors import UserError

# CPUs that verl's placement groups reserve: max_colocate_count of ResourcePoolManager, and of standalone replicas.
CPUS_PER_GPU, CPUS_PER_STANDALONE_GPU = 3, 2

RAY_COUNTS = ("num_cpus", "num_gpus")


class DemandError(UserError):
    """A count in the config is not one; the message names the key, the value and the rule."""


@dataclass(frozen=True)
class Nodes:
    """Nodes with the same number of GPUs each.

    Args:
        count: Number of nodes.
        gpus_per_node: GPUs of each node.

    Example:
        >>> Nodes(2, 8).gpus
        16
    """

    count: int
    gpus_per_node: int

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return self.count * self.gpus_per_node


@dataclass(frozen=True)
class Layout:
    """How a model engine is spread over the trainer's GPUs.

    Args:
        ranks: GPUs of the trainer.
        model_parallel: GPUs that share a batch.
        sequence_parallel: GPUs that share a sequence. verl multiplies token budgets by it.
        data_parallel: Number of parts a batch is split into.
    """

    ranks: int
    model_parallel: int
    sequence_parallel: int
    data_parallel: int


def generates_separately(config: DictConfig) -> bool:
    """Return whether generation runs on nodes of its own, beside those of the trainer.

    Only verl's trainer `separate_async` reads actor_rollout_ref.rollout.nnodes, and only trainer.use_v1 starts it.
    """
    return bool(config.trainer.use_v1) and config.trainer.v1.trainer_mode == "separate_async"


def trainer_nodes(config: DictConfig) -> Nodes:
    """Return the nodes of the trainer.

    Raises:
        DemandError: If a count is not a whole number above 0.
    """
    trainer = config.trainer
    return Nodes(_count("trainer.nnodes", trainer.nnodes), _count("trainer.n_gpus_per_node", trainer.n_gpus_per_node))


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DemandError(f"{key}={value!r}: give a whole number above 0")
    return value


def generation_nodes(config: DictConfig) -> Nodes:
    """Return the nodes that generate: the trainer's, unless generation has its own."""
    rollout = config.actor_rollout_ref.rollout
    return Nodes(rollout.nnodes, rollout.n_gpus_per_node) if generates_separately(config) else trainer_nodes(config)


def gpus_needed(config: DictConfig) -> int:
    """Count the GPUs of all of a run's resource pools."""
    reward = config.reward.reward_model
    needed = trainer_nodes(config).gpus
    if reward.enable_resource_pool:  # verl makes this pool whether or not a reward model is enabled
        needed += reward.nnodes * reward.n_gpus_per_node
    if config.distillation.enabled:
        needed += config.distillation.nnodes * config.distillation.n_gpus_per_node
    return int(needed + _standalone_gpus(config))


def _standalone_gpus(config: DictConfig) -> int:
    return generation_nodes(config).gpus if generates_separately(config) else 0


def cpus_needed(config: DictConfig) -> int:
    """Count the logical CPUs that Ray must have: those that actors reserve for the whole run, and one more.

    TransferQueue's controller and storage units reserve one each, and every GPU in a placement group of verl reserves
    `CPUS_PER_GPU`. The other actors (task runner, agent loops, reward workers, rollout servers) reserve none, but Ray
    needs a free CPU to place them.
    """
    reserved = 0
    if config.trainer.use_v1 or config.transfer_queue.enable:
        reserved += 1
        if config.transfer_queue.backend.storage_backend == "SimpleStorage":
            reserved += config.transfer_queue.backend.SimpleStorage.num_data_storage_units
    standalone = _standalone_gpus(config)
    reserved += CPUS_PER_GPU * (gpus_needed(config) - standalone) + CPUS_PER_STANDALONE_GPU * standalone
    return int(reserved + 1)


def layout(config: DictConfig, role: str = "actor") -> Layout:
    """Return the layout of the actor or of the reference model, as verl's engines compute it.

    Args:
        config: The whole config.
        role: "actor" or "ref".
    """
    node, ranks = config.actor_rollout_ref[role], trainer_nodes(config).gpus
    if node.strategy == "megatron":
        engine = node.megatron
        sequence = engine.context_parallel_size
        model = engine.tensor_model_parallel_size * engine.pipeline_model_parallel_size * sequence
        data = 1 if engine.get("dynamic_context_parallel", False) else ranks // model
        return Layout(ranks, model, sequence, max(data, 1))
    if node.strategy == "torchtitan":
        engine = node.torchtitan
        data = engine.data_parallel_shard_size * engine.data_parallel_replicate_size
        return Layout(ranks, max(ranks // data, 1), engine.tensor_parallel_size, data)
    if node.strategy == "veomni":
        sequence = node.veomni.ulysses_parallel_size
    else:
        # verl's actor overrides its engine's value if it is set.
        sequence = max(node.ulysses_sequence_parallel_size, node.fsdp_config.ulysses_sequence_parallel_size)
    return Layout(ranks, sequence, sequence, max(ranks // sequence, 1))


def has_critic(config: DictConfig) -> bool:
    """Return whether a critic is trained, as `need_critic` of verl.trainer.ppo.utils decides."""
    enabled = config.critic.enable
    return bool(enabled) if enabled is not None else config.algorithm.adv_estimator == "gae"


def has_reference(config: DictConfig) -> bool:
    """Return whether a separate reference model is run. With LoRA the actor without its adapter is the reference."""
    needed = config.algorithm.use_kl_in_reward or config.actor_rollout_ref.actor.use_kl_loss
    return bool(needed) and not has_lora(config)


def has_lora(config: DictConfig) -> bool:
    """Return whether only an adapter is trained."""
    model = config.actor_rollout_ref.model
    rank = (model.get("lora") or {}).get("rank", 0) or model.get("lora_rank", 0)
    return rank > 0 or model.get("lora_adapter_path") is not None


def ray_counts(config: DictConfig) -> list[str]:
    """Return the keys of ray_kwargs.ray_init that are set and that ray.init accepts only where it starts Ray itself."""
    return [key for key in RAY_COUNTS if config.ray_kwargs.ray_init.get(key) is not None]


def worker_variables(config: DictConfig | ListConfig) -> dict[str, str]:
    """Return {variable: value}, the environment variables that a config sets for Ray's workers."""
    variables = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    return {str(name): str(value) for name, value in variables.items()}


def worker_env(config: DictConfig) -> dict[str, str]:
    """Return the whole environment of Ray's workers: this process's, and what the config sets."""
    return {**os.environ, **worker_variables(config)}


def data_files(config: DictConfig, key: str) -> list[Any]:
    """Return the files of one data key as a list: verl takes a single path too.

    Args:
        config: The whole config.
        key: "train_files" or "val_files".
    """
    return _as_list(config.data[key])


def loggers(config: DictConfig) -> list[Any]:
    """Return the names of the loggers as a list: verl takes a single name too."""
    return _as_list(config.trainer.logger)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, ListConfig) else [value]
